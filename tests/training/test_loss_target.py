"""Training until a loss: what is read, when it is looked at, and that only the whole split can say yes."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.training.loss_target import LossTarget


def batches(losses, read=None, counts=None):
    """Measurements of batches with these mean losses; `read` collects which of them were made."""
    counts = counts or [10] * len(losses)

    def measured(place: int) -> tuple[float, int]:
        if read is not None:
            read.append(place)
        return losses[place] * counts[place], counts[place]

    return [lambda place=place: measured(place) for place in range(len(losses))]


def test_the_whole_split_is_read_once_and_weighted_by_its_counts():
    read: list[int] = []
    target = LossTarget(2.0, batches([1.0, 3.0, 1.5], read, [10, 30, 7]))
    loss, complete = target.measure(1)
    assert complete
    assert sorted(read) == [0, 1, 2]
    assert loss == pytest.approx((10 + 90 + 10.5) / 47)


@given(st.integers(1, 2000))
def test_any_first_part_is_spread_and_all_is_read(count):
    read: list[int] = []
    LossTarget(math.inf, batches([1.0] * count, read)).measure(1)
    assert sorted(read) == list(range(count))
    for share in (2, 5, 10):
        first = sorted(read[: -(-count // share)])
        assert max((b - a for a, b in itertools.pairwise(first)), default=0) <= 2 * share + 3


def test_a_hopeless_measurement_stops_early_and_says_so():
    read: list[int] = []
    losses = [3.0 + 0.01 * (place % 7) for place in range(100)]
    loss, complete = LossTarget(2.0, batches(losses, read)).measure(1)
    assert (len(read), complete) == (4, False)
    assert loss == pytest.approx(3.03, abs=0.04)
    read.clear()
    assert LossTarget(2.0, batches(losses, read)).measure(1, whole=True)[1]
    assert len(read) == 100


@given(st.lists(st.floats(0.5, 3.0), min_size=1, max_size=40), st.floats(0.5, 3.0))
def test_what_is_said_to_be_reached_is_the_mean_of_everything(losses, wanted):
    loss, complete = LossTarget(wanted, batches(losses)).measure(7)
    if complete:
        assert loss == pytest.approx(sum(losses) / len(losses))


def test_near_the_target_everything_is_read():
    losses = [1.9 + 0.2 * math.sin(place) for place in range(50)]
    read: list[int] = []
    LossTarget(sum(losses) / 50 - 1e-3, batches(losses, read)).measure(1)
    assert len(read) == 50


def test_what_is_left_to_read_is_all_that_is_uncertain():
    read: list[int] = []
    # Three standard errors of batches 0.3 apart are never below 0.05, but for the few that are left.
    losses = [2.0 + 0.3 * (-1) ** (place // 2 % 2) for place in range(100)]
    assert not LossTarget(1.95, batches(losses, read)).measure(1)[1]
    assert 50 < len(read) < 100


def test_it_is_looked_at_only_when_training_is_near():
    target = LossTarget(2.0, batches([2.5] * 8))
    assert not target.due(1, {"loss": 2.21})
    assert target.due(2, {"loss": 4.0}, last=True)
    assert target.due(3, {"loss": 2.19})


def test_two_measurements_say_when_to_look_again():
    values = iter([[3.0], [2.6], [2.2], [2.0]])
    now = [0.0]

    def measured() -> tuple[float, int]:
        return now[0], 1

    target = LossTarget(2.0, [measured])
    looked = []
    for step in range(1, 2000):
        if target.due(step, {"loss": 2.1}):
            now[0] = next(values)[0]
            looked.append(step)
            if target.measure(step)[0] <= 2.0:
                break
    # Nothing is known at first; then 0.4 a step and 0.6 to go, of which most is waited for.
    assert looked[:2] == [1, 2]
    assert looked == sorted(set(looked))
    assert len(looked) == 4


def test_decisions_go_on_as_they_would_have():
    losses = [2.4 - 0.001 * step for step in range(600)]

    def looked(target: LossTarget, steps: range, now: list[float]) -> list[int]:
        found = []
        for step in steps:
            now[0] = losses[step] + 0.05
            if target.due(step, {"loss": losses[step]}):
                target.measure(step)
                found.append(step)
        return found

    now = [0.0]
    measurements = [lambda: (now[0], 1)]
    whole = looked(LossTarget(2.0, measurements), range(500), now)
    first = LossTarget(2.0, measurements)
    before = looked(first, range(250), now)
    second = LossTarget(2.0, measurements)
    second.restore(first.capture())
    assert before + looked(second, range(250, 500), now) == whole
    assert len(whole) > 5


def test_a_loss_that_is_no_number_is_passed_over():
    target = LossTarget(2.0, batches([2.5]))
    assert not target.due(1, {"loss": math.nan})
    assert target.due(2, {"loss": 2.0})


def test_there_must_be_something_to_measure():
    with pytest.raises(UserError, match="no validation text"):
        LossTarget(2.0, [])
