"""The learning-rate schedules at their corners and between them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.training.schedules import cosine, linear, rate_share, trapezoid


def test_corners():
    values = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.3: 1.0, 0.6: 1.0, 0.8: 0.55, 1.0: 0.1}
    for progress, value in values.items():
        assert trapezoid(progress, warmup=0.1, decay=0.4, final=0.1) == pytest.approx(value)


def test_no_warmup_and_no_decay():
    assert [trapezoid(progress, 0.0, 0.0) for progress in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]


@given(
    first=st.floats(0, 1),
    second=st.floats(0, 1),
    warmup=st.floats(0.01, 0.5),
    decay=st.floats(0.01, 0.5),
    final=st.floats(0, 1),
)
def test_it_stays_within_its_bounds_and_has_no_jumps(first, second, warmup, decay, final):
    a, b = (trapezoid(progress, warmup, decay, final) for progress in (first, second))
    assert -1e-9 <= a <= 1 + 1e-9
    steepest = max(1 / warmup, 1 / decay)
    assert abs(a - b) <= steepest * abs(first - second) + 1e-9


# --- cosine and linear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_and_linear_at_their_corners(final):
    middle = (1 + final) / 2
    for shape in (cosine, linear):
        for progress, value in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.6, middle), (1.0, final)):
            assert shape(progress, 0.2, final) == pytest.approx(value)
        assert shape(0.0, 0.0, final) == 1.0
        assert shape(1.0, 1.0, final) == 1.0  # nothing but a rise
    # A quarter of the way down, cos(pi / 4).
    assert cosine(0.4, 0.2, final) == pytest.approx(final + (1 - final) * (1 + math.sqrt(0.5)) / 2)
    assert linear(0.4, 0.2, final) == pytest.approx(1 - 0.25 * (1 - final))


@given(progress=st.floats(0, 1), warmup=st.floats(0, 0.9), final=st.floats(0, 1))
def test_cosine_is_torchs(progress, warmup, final):
    """The fall is that of torch.optim.lr_scheduler.CosineAnnealingLR, by its documented formula."""
    value = cosine(progress, warmup, final)
    if progress >= warmup:
        current, longest = progress - warmup, 1 - warmup
        assert value == pytest.approx(final + (1 - final) / 2 * (1 + math.cos(current / longest * math.pi)))
    assert -1e-9 <= value <= 1 + 1e-9


def test_schedules_by_name():
    arguments = {"progress": 0.7, "warmup": 0.1, "decay": 0.4, "final": 0.05}
    assert rate_share("trapezoid", **arguments) == trapezoid(0.7, 0.1, 0.4, 0.05)
    assert rate_share("cosine", **arguments) == cosine(0.7, 0.1, 0.05)
    assert rate_share("linear", **arguments) == linear(0.7, 0.1, 0.05)
