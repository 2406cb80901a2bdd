"""Which steps are left out, when a run is warned of, and when it ends."""

import json
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.training.anomalies import FATAL_SKIPS, LEAST, RECENT, WINDOW, AnomalyWindow, BatchStore, Guard
from parlance.training.objectives import TokenBatch

BATCH = [TokenBatch(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[6, 1], [8, 1]]))]


def noisy(count: int, mean: float = 3.0, spread: float = 0.1, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(mean, spread) for _ in range(count)]


def filled(sigma: float = 6.0, count: int = WINDOW) -> AnomalyWindow:
    window = AnomalyWindow(sigma)
    for loss, norm in zip(noisy(count), noisy(count, 1.0, 0.05, seed=1), strict=True):
        assert window.judge(loss, norm) is None
    return window


@pytest.mark.parametrize("name", ["loss", "norm"])
def test_the_limit_is_six_deviations_above_the_mean_of_the_last_128(name):
    probe = filled()
    values = torch.tensor(list(probe.losses if name == "loss" else probe.norms), dtype=torch.float64)
    limit = float(values.mean() + 6 * values.std())
    for value, left_out in (
        (limit * (1 - 1e-9), False),
        (limit * (1 + 1e-9), True),
        (float(values.mean()) - 1.0, False),
    ):
        figures = {"loss": 3.0, "norm": 1.0, name: value}
        reason = filled().judge(figures["loss"], figures["norm"])
        assert (reason is not None) == left_out
        if left_out:
            assert reason.startswith("its loss" if name == "loss" else "its gradient norm")
            assert "6.0 standard deviations above the mean" in reason


def test_nothing_is_left_out_before_there_is_enough_to_compare_with_or_without_a_limit():
    assert filled(count=LEAST - 1).judge(1e9, 1e9) is None
    assert filled(count=LEAST).judge(1e9, 1.0) is not None
    assert filled(sigma=0.0).judge(1e9, 1e9) is None


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
def test_what_is_no_number_is_always_left_out_and_forgotten(loss, norm):
    window = filled(sigma=0.0)
    before = list(window.losses)
    assert "finite" in window.judge(loss, norm)
    assert list(window.losses) == before


def test_a_lasting_change_of_level_is_accepted():
    window = filled()
    skipped = [window.judge(5.0, 1.0) is not None for _ in range(20)]
    assert skipped[0]
    assert not any(skipped[6:])


def test_values_that_hardly_differ_do_not_make_outliers_of_rounding():
    window = AnomalyWindow(6.0)
    for _ in range(WINDOW):
        window.judge(2.0, 1.0)
    assert window.judge(2.0 + 1e-6, 1.0) is None
    assert window.judge(2.1, 1.0) is not None


@given(st.integers(0, 10_000), st.floats(0.0, 2.0))
def test_a_falling_or_level_loss_gives_no_warning(seed, fall):
    window = AnomalyWindow(0.0)
    for place, value in enumerate(noisy(WINDOW, seed=seed)):
        window.judge(value - fall * place / WINDOW, 1.0)
    assert window.rising() is None


def test_a_rising_loss_warns_and_saves_the_worst_batch(tmp_path, capsys):
    guard = Guard(6.0, BatchStore(tmp_path / "anomalies", lambda tokens: "/".join(map(str, tokens))))
    worst = [TokenBatch(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))]
    losses = [*noisy(WINDOW), *(3.0 + 0.012 * place for place in range(RECENT + 8))]
    losses[WINDOW + 20] = 3.5
    for place, loss in enumerate(losses):
        assert guard.passes(loss, 1.0, worst if place == WINDOW + 20 else BATCH, [])
    told = capsys.readouterr().err
    assert told.count("training may be diverging: the mean loss of the last 32 steps") == 1
    (file,) = (tmp_path / "anomalies").iterdir()
    assert str(file) in told
    saved = json.loads(file.read_text())
    assert saved["step"] == WINDOW + 21
    assert saved["tokens"] == [[1, 2, 3]]
    assert saved["text"] == ["1/2/3"]
    assert saved["figures"] == {"loss": 3.5}


def test_three_in_a_row_warn_and_the_first_of_them_is_saved(tmp_path, capsys):
    guard = Guard(6.0, BatchStore(tmp_path))
    assert guard.passes(3.0, 1.0, [], [])
    first = [TokenBatch(torch.tensor([[9, 9]]), torch.tensor([[9, 9]]))]
    for batches in (first, BATCH, BATCH):
        assert not guard.passes(math.nan, 1.0, batches, [torch.ones(2)])
    assert (guard.skipped, guard.in_a_row) == (3, 3)
    told = capsys.readouterr().err
    assert "step 2 was skipped: its loss is not a finite number" in told
    assert "training may be diverging: 3 steps in a row were skipped; the batch of step 2 is in" in told
    saved = json.loads((tmp_path / "step-00000002.json").read_text())
    assert saved["tokens"] == [[9, 9]]
    assert saved["figures"] == {"loss": "nan", "gradient_norm": 1.0}
    assert guard.passes(3.0, 1.0, [], [])
    assert (guard.skipped, guard.in_a_row) == (3, 0)


def test_too_many_in_a_row_end_the_run():
    guard = Guard(6.0)
    for _ in range(FATAL_SKIPS - 1):
        assert not guard.passes(3.0, math.inf, [], [torch.ones(1)])
    with pytest.raises(UserError, match=r"20 steps in a row were skipped, the last \(step 20\) because its gradient"):
        guard.passes(3.0, math.inf, [], [torch.ones(1)])


def test_weights_that_are_no_numbers_end_the_run_at_once():
    with pytest.raises(UserError, match="weights are no numbers any more"):
        Guard(6.0).passes(math.nan, 1.0, [], [torch.ones(3), torch.tensor([1.0, math.nan])])


def test_only_so_many_batches_are_saved(tmp_path):
    store = BatchStore(tmp_path)
    saved = [store.save(step, "why", {}, BATCH) for step in range(12)]
    assert [file is not None for file in saved] == [True] * 10 + [False] * 2


def test_a_warning_that_cannot_be_saved_is_still_given(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    guard = Guard(6.0, BatchStore(tmp_path / "file" / "anomalies"))
    for _ in range(3):
        guard.passes(math.nan, 1.0, BATCH, [])
    told = capsys.readouterr().err
    assert "training may be diverging" in told
    assert "cannot" in told


def test_a_guard_goes_on_as_it_would_have():
    values = [(loss, norm) for loss, norm in zip(noisy(400), noisy(400, 1.0, 0.05, seed=1), strict=True)]
    values[150], values[290] = (9.0, 1.0), (3.0, 7.0)
    whole, first = Guard(6.0), Guard(6.0)
    passed = [whole.passes(*each, [], []) for each in values]
    half = [first.passes(*each, [], []) for each in values[:200]]
    second = Guard(6.0)
    second.restore(json.loads(json.dumps(first.capture())))
    assert half + [second.passes(*each, [], []) for each in values[200:]] == passed
    assert passed.count(False) == 2
    assert second.capture() == whole.capture()
