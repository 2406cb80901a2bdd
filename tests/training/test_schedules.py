"""The learning-rate schedule at its corners and between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.training.schedules import trapezoid


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
