"""The outer loop: budgets, resume states, orderly stops, validation, the metrics log."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog
from parlance.training import loop as loop_module
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import Budget, Loop


class Clock:
    """The loop's time, moved by the steps."""

    def __init__(self) -> None:
        self.now = 50.0

    def monotonic(self) -> float:
        return self.now


class Body:
    """Counts its steps in a tensor; a step takes `seconds`; in a given one it sends itself a signal or dies."""

    def __init__(
        self,
        clock: Clock | None = None,
        seconds: float = 0.0,
        *,
        signal_at: int = 0,
        number: int = signal.SIGTERM,
        die_at: int = 0,
    ) -> None:
        self.value = torch.zeros(1)
        self.progress: list[float] = []
        self.clock, self.seconds = clock or Clock(), seconds
        self.signal_at, self.number, self.die_at = signal_at, number, die_at

    def step(self, progress: float) -> dict[str, float]:
        self.progress.append(progress)
        self.value += 1
        count = int(self.value)
        if count == self.signal_at:
            os.kill(os.getpid(), self.number)
        if count == self.die_at:
            raise MemoryError("killed")
        self.clock.now += self.seconds
        return {"loss": 1.0 / count}

    def capture(self):
        return {"value": self.value}, {"steps": int(self.value)}

    def restore(self, tensors, info):
        self.value.copy_(tensors["value"])
        assert info["steps"] == int(self.value)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    return clock


@pytest.fixture
def loop(tmp_path):
    """A function (budget, settings) -> Loop in one folder; every step is logged."""

    def make(budget: Budget, **settings) -> Loop:
        states, log = TrainingStates(tmp_path / "training"), MetricsLog(tmp_path / "metrics.jsonl")
        return Loop("sft", budget, states, log, **({"log_seconds": 0.0} | settings))

    return make


def rows(loop: Loop) -> list[dict]:
    return [json.loads(line) for line in loop.metrics.path.read_text().splitlines()]


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_in_steps(loop):
    body, it = Body(), loop(Budget(steps=5))
    result = it.run(body)
    assert (result.steps, result.last) == (5, {"loss": 0.2})
    assert body.progress == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert [(row["stage"], row["step"], row["loss"]) for row in rows(it)] == [("sft", n, 1 / n) for n in range(1, 6)]
    assert not (it.states.folder).exists()


def test_a_budget_in_seconds(loop, clock):
    body = Body(clock, 0.5)
    result = loop(Budget(seconds=2.0)).run(body)
    assert body.progress == [0.0, 0.25, 0.5, 0.75]
    assert result.seconds == 2.0
    # The step that crosses the line is finished.
    body = Body(clock, 0.75)
    assert loop(Budget(seconds=2.0)).run(body).seconds == 2.25
    assert body.progress == [0.0, 0.375, 0.75]


def test_of_two_budgets_the_first_to_be_spent_ends_it(loop, clock):
    body = Body(clock, 0.5)
    result = loop(Budget(steps=4, seconds=100.0)).run(body)
    assert (result.steps, body.progress) == (4, [0.0, 0.25, 0.5, 0.75])
    body = Body(clock, 0.5)
    result = loop(Budget(steps=100, seconds=2.0)).run(body)
    assert (result.steps, body.progress) == (4, [0.0, 0.25, 0.5, 0.75])


def test_validation_is_paid_from_the_budget(loop, clock):
    def validate() -> dict[str, float]:
        clock.now += 0.5
        return {"validation_loss": 1.0}

    body = Body(clock, 0.25)
    result = loop(Budget(seconds=2.0), validate=validate, validations=1).run(body)
    assert body.progress == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.75, 0.875])
    assert result.seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    "budget", [Budget(), Budget(steps=0), Budget(seconds=-1.0), Budget(steps=-3), Budget(steps=5, seconds=0.0)]
)
def test_a_budget_is_above_zero(loop, budget):
    with pytest.raises(UserError, match="sft: give a budget above zero, in steps or in seconds"):
        loop(budget).run(Body())


def test_rows_are_written_at_most_so_often_and_at_the_end(loop, clock):
    it = loop(Budget(steps=20), log_seconds=1.0)
    it.run(Body(clock, 0.3))
    assert [row["step"] for row in rows(it)] == [4, 8, 12, 16, 20]
    it = loop(Budget(steps=20), log_seconds=100.0)
    it.run(Body(clock, 0.3))
    assert [(row["step"], row["seconds"]) for row in rows(it)] == [(20, 6.0)]


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "validations", "expected"),
    [(10, 4, [2, 4, 6, 8]), (5, 4, [1, 2, 3, 4]), (2, 4, [1, 2]), (12, 1, [6]), (7, 2, [3, 5]), (4, 0, [])],
)
def test_validation_comes_evenly(loop, steps, validations, expected):
    calls = []

    def validate() -> dict[str, float]:
        calls.append(len(body.progress))
        return {"validation_loss": 3.0}

    body = Body()
    it = loop(Budget(steps=steps), validate=validate, validations=validations, log_seconds=100.0)
    result = it.run(body)
    assert calls == expected
    logged = [row["step"] for row in rows(it) if "validation_loss" in row]
    assert logged == expected
    assert rows(it)[-1]["step"] == steps
    assert ("validation_loss" in result.last) == (steps in expected)


# --- stopping and resuming -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_with_the_state_saved(loop, number):
    it = loop(Budget(steps=10))
    with pytest.raises(Interrupted, match="sft stopped at step 4; its state is saved"):
        it.run(Body(signal_at=4, number=number))
    assert it.states.latest()[0] == 4
    body = Body()
    result = it.run(body, resume=True)
    assert (result.steps, int(body.value)) == (10, 10)
    assert body.progress == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [row["step"] for row in rows(it)] == list(range(1, 11))


def test_a_death_costs_the_steps_since_the_last_state_and_the_log_forgets_them(loop):
    it = loop(Budget(steps=10), checkpoint_seconds=0.0)
    with pytest.raises(MemoryError):
        it.run(Body(die_at=6))
    assert it.states.latest()[0] == 5
    # As if the newest state had been lost too: the log has rows beyond the state that is found.
    (it.states.folder / "step-00000005" / "state.json").unlink()
    body = Body()
    it.run(body, resume=True)
    assert body.progress[0] == 0.4
    assert [row["step"] for row in rows(it)] == list(range(1, 11))


def test_validations_done_are_not_repeated_after_a_resume(loop):
    calls = []

    def validate() -> dict[str, float]:
        calls.append(len(rows(it)) + 1)
        return {"validation_loss": 1.0}

    it = loop(Budget(steps=10), validate=validate)
    with pytest.raises(Interrupted):
        it.run(Body(signal_at=5))
    it.run(Body(), resume=True)
    assert calls == [2, 4, 6, 8]


def test_a_stop_in_the_last_step_resumes_to_the_same_result(loop):
    it = loop(Budget(steps=3))
    with pytest.raises(Interrupted):
        it.run(Body(signal_at=3))
    result = it.run(Body(), resume=True)
    assert (result.steps, result.last) == (3, {"loss": 1 / 3})
    assert [row["step"] for row in rows(it)] == [1, 2, 3]


def test_time_before_a_stop_counts(loop, clock):
    it = loop(Budget(seconds=10.0))
    with pytest.raises(Interrupted):
        it.run(Body(clock, 1.0, signal_at=5))
    clock.now += 1000.0  # time in which nothing ran does not
    body = Body(clock, 1.0)
    result = it.run(body, resume=True)
    assert body.progress == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert (result.steps, result.seconds) == (10, pytest.approx(10.0))
    assert [row["seconds"] for row in rows(it)] == [float(n) for n in range(1, 11)]


def test_without_resume_everything_begins_anew(loop):
    it = loop(Budget(steps=4))
    with pytest.raises(Interrupted):
        it.run(Body(signal_at=2))
    (it.states.folder / "plan.json").write_text("{}")
    body = Body()
    it.run(body)
    assert body.progress[0] == 0.0
    assert [row["step"] for row in rows(it)] == [1, 2, 3, 4]
    assert it.states.latest() is None
    assert (it.states.folder / "plan.json").exists()


def test_resuming_nothing_begins(loop):
    body = Body()
    assert loop(Budget(steps=2)).run(body, resume=True).steps == 2


def test_states_are_saved_every_so_often(loop, clock):
    it = loop(Budget(steps=100), checkpoint_seconds=30.0)
    with pytest.raises(MemoryError):
        it.run(Body(clock, 7.0, die_at=19))
    # Every fifth step is the first beyond 30 seconds; two states are kept.
    assert sorted(path.name for path in it.states.folder.iterdir()) == ["step-00000010", "step-00000015"]
    step, tensors, info = it.states.latest()
    assert (step, int(tensors["value"]), info["elapsed"]) == (15, 15, pytest.approx(105.0))


def test_other_stages_keep_their_rows(loop):
    it = loop(Budget(steps=2))
    it.metrics.write("pretrain", 9, loss=1.0)
    it.run(Body())
    assert [(row["stage"], row["step"]) for row in rows(it)] == [("pretrain", 9), ("sft", 1), ("sft", 2)]


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import Body
from parlance.core.errors import Interrupted
from parlance.core.metrics import MetricsLog
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import Budget, Loop
class Slow(Body):
    def step(self, progress):
        time.sleep(0.001)
        return super().step(progress)
folder = Path(sys.argv[2])
loop = Loop("sft", Budget(steps=10**6), TrainingStates(folder / "training"), MetricsLog(folder / "metrics.jsonl"),
            checkpoint_seconds=0.05, log_seconds=0.0)
try:
    loop.run(Slow())
except Interrupted:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_another_process_is_stopped_or_killed(tmp_path, number, loop):
    """A real process: SIGTERM is orderly, SIGKILL is not, and both leave a state to go on from."""
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "training").glob("step-????????")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(timeout=30)
    finally:
        process.kill()
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL)
    it = loop(Budget(steps=10**6))
    step, tensors, _ = it.states.latest()
    assert int(tensors["value"]) == step
    more = loop(Budget(steps=step + 3))
    body = Body()
    more.run(body, resume=True)
    assert int(body.value) == step + 3
    assert [row["step"] for row in rows(more)] == list(range(1, step + 4))
