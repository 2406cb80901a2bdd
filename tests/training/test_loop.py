"""The outer loop: budgets, resume states, orderly stops, validation, the metrics log."""

import json
import math
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
from parlance.training import throughput
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import Budget, Loop
from parlance.training.loss_target import LossTarget
from parlance.training.throughput import Speed


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
    with pytest.raises(UserError, match="sft: give a budget above zero, in steps, in seconds or in tokens"):
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


# --- tokens, targets, agreement --------------------------------------------------------------------------------------


class Reader(Body):
    """Reads ten tokens a step and loses a tenth of its loss each time."""

    def step(self, progress: float) -> dict[str, float]:
        figures = super().step(progress)
        count = int(self.value)
        return figures | {"loss": 4.0 * 0.9**count, "tokens": 10 * count}


def test_a_budget_in_tokens(loop):
    body, it = Reader(), loop(Budget(tokens=45))
    result = it.run(body)
    assert body.progress == pytest.approx([0.0, 10 / 45, 20 / 45, 30 / 45, 40 / 45])
    assert (result.steps, result.last["tokens"]) == (5, 50)
    # A resumed run counts what was read before.
    with pytest.raises(Interrupted):
        it.run(Reader(signal_at=2))
    body = Reader()
    assert it.run(body, resume=True).steps == 5
    assert body.progress == pytest.approx([20 / 45, 30 / 45, 40 / 45])


def target(body: Body, loss: float) -> LossTarget:
    return LossTarget(loss, [lambda: (4.0 * 0.9 ** int(body.value), 1)] * 3)


@pytest.mark.parametrize("stop_at", [0, 7, 9])
def test_training_ends_where_the_loss_is_reached(loop, stop_at):
    body = Reader(signal_at=stop_at)
    it = loop(Budget(steps=100, until_loss=1.2), target=target(body, 1.2), log_seconds=100.0)
    if stop_at:
        with pytest.raises(Interrupted):
            it.run(body)
        body = Reader()
        it.target = target(body, 1.2)
    result = it.run(body, resume=stop_at > 0)
    # 4 * 0.9^n is 1.2 after 11.4 steps; looked at when the running mean says so, which lags behind.
    assert result.reached
    assert result.whole_loss == pytest.approx(4.0 * 0.9**result.steps)
    assert 12 <= result.steps <= 20
    assert rows(it)[-1]["whole_validation_loss"] == pytest.approx(result.whole_loss)


def test_a_stop_does_not_move_the_step_at_which_the_loss_is_reached(loop):
    ends = set()
    for stop_at in (0, 3, 12):
        body = Reader(signal_at=stop_at)
        it = loop(Budget(steps=100), target=target(body, 1.2))
        if stop_at:
            with pytest.raises(Interrupted):
                it.run(body)
            body = Reader()
            it.target = target(body, 1.2)
        ends.add(it.run(body, resume=stop_at > 0).steps)
    assert len(ends) == 1


def test_a_loss_that_is_not_reached_is_measured_at_the_end(loop):
    body = Reader()
    result = loop(Budget(steps=5), target=target(body, 0.1)).run(body)
    assert (result.steps, result.reached) == (5, False)
    assert result.whole_loss == pytest.approx(4.0 * 0.9**5)
    assert loop(Budget(steps=1)).run(Reader()).reached is None


@pytest.mark.parametrize("slow", ["validation", "measurement"])
def test_a_budget_that_runs_out_in_an_evaluation_still_ends_with_the_whole_loss(loop, clock, slow):
    body = Reader(clock, 1.0)

    def validate() -> dict[str, float]:
        clock.now += 100.0 if slow == "validation" else 0.0
        return {"validation_loss": 1.0}

    def measured() -> tuple[float, int]:
        clock.now += 1.0
        return 3.0, 1

    target = LossTarget(2.9, [measured] * 10)
    it = loop(Budget(seconds=12.0), validate=validate, validations=1, target=target)
    result = it.run(body)
    assert (result.reached, result.whole_loss) == (False, 3.0)
    assert rows(it)[-1]["whole_validation_loss"] == 3.0


def test_processes_decide_alike(loop, clock):
    """Another process is slower, and is the one that was asked to stop in its fourth step."""
    seen = []

    def agree(values):
        seen.append(list(values))
        return [values[0] + 100.0, *(float(len(seen) >= 7) for _ in values[1:])]

    it = loop(Budget(seconds=1000.0), agree=agree)
    body = Body(clock, 1.0)
    with pytest.raises(Interrupted, match="stopped at step 4"):
        it.run(body)
    assert body.progress == pytest.approx([0.0, 0.101, 0.102, 0.103])
    assert it.states.latest()[2]["elapsed"] == pytest.approx(104.0)


def test_speed_is_that_of_the_steps_alone(loop, clock, monkeypatch):
    monkeypatch.setattr(throughput, "WORTH_SECONDS", 2.0)

    def validate() -> dict[str, float]:
        clock.now += 5.0
        return {"validation_loss": 2.0}

    speed = Speed(flops_per_token=3.0, peak=lambda: 1000.0, bits={"validation_loss": 0.5, "loss": 2.0})
    it = loop(Budget(steps=4), validate=validate, validations=1, speed=speed, log_seconds=100.0)
    it.run(Reader(clock, 0.5))
    first, last = rows(it)
    assert (first["step"], last["step"]) == (2, 4)
    for row in (first, last):
        assert row["tokens_per_second"] == pytest.approx(20.0)
        assert row["bits_per_byte"] == pytest.approx(2.0 * row["loss"])
    # The peak is measured only where training takes a while.
    assert "mfu" not in first
    assert last["mfu"] == pytest.approx(20.0 * 3.0 / 1000.0)
    assert first["validation_bits_per_byte"] == 1.0
    assert "validation_bits_per_byte" not in last


# --- evaluations are preceded by a state; harm is not saved ----------------------------------------------------------


def test_the_state_is_saved_before_an_evaluation_that_fails(loop, clock):
    def validate() -> dict[str, float]:
        raise MemoryError("the evaluation fails")

    it = loop(Budget(steps=10), validate=validate, validations=1)
    with pytest.raises(MemoryError):
        it.run(Body(clock, 2.0))
    assert it.states.latest()[0] == 5
    # With hardly anything to lose, it is not.
    with pytest.raises(MemoryError):
        it.run(Body(clock, 0.1))
    assert it.states.latest() is None


@pytest.mark.parametrize(
    ("seconds", "every", "kept"), [(2.0, 30.0, 4), (1.0, 30.0, None), (1.0, 3.0, 3), (2.0, math.inf, None)]
)
def test_the_end_is_saved_before_what_follows(loop, clock, seconds, every, kept):
    it = loop(Budget(steps=4), checkpoint_seconds=every)
    result = it.run(Body(clock, seconds))
    found = it.states.latest()
    assert (found and found[0]) == kept
    if kept == 4:  # and going on from there is the same end
        again = it.run(Body(clock, seconds), resume=True)
        assert (again.steps, again.seconds, again.last) == (result.steps, result.seconds, result.last)


@pytest.mark.parametrize("log_seconds", [0.0, 100.0])
def test_a_death_in_an_evaluation_costs_that_evaluation(loop, clock, log_seconds):
    """The run that goes on makes it at the same step, and only once."""
    calls = []

    def validate() -> dict[str, float]:
        calls.append(int(body.value))
        if len(calls) == 2:
            raise MemoryError("killed")
        return {"validation_loss": 1.0 / body.value.item()}

    settings = {"validate": validate, "validations": 4, "log_seconds": log_seconds, "checkpoint_seconds": 4.0}
    body = Body(clock, 2.0)
    it = loop(Budget(steps=10), **settings)
    with pytest.raises(MemoryError):
        it.run(body)
    body = Body(clock, 2.0)
    it.run(body, resume=True)
    assert calls == [2, 4, 4, 6, 8]
    assert body.progress[0] == 0.4
    logged = [(row["step"], row.get("validation_loss")) for row in rows(it)]
    expected = {step: 1.0 / step for step in (2, 4, 6, 8)}
    steps = range(1, 11) if log_seconds == 0 else [2, 4, 6, 8, 10]
    assert logged == [(step, expected.get(step)) for step in steps]


def test_what_is_looked_at_after_a_validation_changes_nothing(loop):
    seen = []
    it = loop(Budget(steps=10), validate=lambda: {"validation_loss": 1.0}, validations=2, observe=seen.append)
    it.run(Body())
    assert seen == [4, 7]


class Unsound(Body):
    """From its fourth step on, no step is made."""

    def step(self, progress: float) -> dict[str, float]:
        figures = super().step(progress)
        left_out = max(0, int(self.value) - 3)
        return figures | ({"skipped": left_out, "unsound": left_out} if left_out else {})


@pytest.mark.parametrize("stop_at", [0, 6])
def test_states_of_steps_without_an_update_do_not_replace_good_ones(loop, stop_at, clock):
    it = loop(Budget(steps=8), checkpoint_seconds=0.0, log_seconds=100.0)
    body = Unsound(clock, 1.0, signal_at=stop_at)
    if stop_at:
        with pytest.raises(Interrupted, match="could not be saved, and the one before it stays"):
            it.run(body)
    else:
        it.run(body)
        # Every one of these steps has its row.
        assert [row["step"] for row in rows(it)] == [4, 5, 6, 7, 8]
    assert it.states.latest()[0] == 3


def test_a_stop_says_so_where_there_is_no_state_at_all(loop, monkeypatch):
    it = loop(Budget(steps=8))

    def fail(*_arguments):
        raise UserError("cannot write state: no space left") from OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(it.states, "save", fail)
        with pytest.raises(Interrupted, match="could not be saved, and there is none before it"):
            it.run(Body(signal_at=2))
    with pytest.raises(Interrupted, match="its state is saved"):
        it.run(Body(signal_at=3))
    monkeypatch.setattr(it.states, "save", fail)
    with pytest.raises(Interrupted, match="the one before it stays: that of step 3"):
        it.run(Body(signal_at=5), resume=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_state_of_the_same_step_is_not_written_twice(loop, background):
    it = loop(Budget(steps=3), checkpoint_seconds=0.0, background=background)
    written, original = [], it.states.save

    def save(step, *state):
        written.append(step)
        original(step, *state)

    it.states.save = save
    it.run(Body())
    it.run(Body(), resume=True)
    assert sorted(set(written)) == written


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_during_a_state_does_not_end_training(loop, monkeypatch, capsys, background):
    it = loop(Budget(steps=6), checkpoint_seconds=0.0, background=background)
    original = it.states.save

    def save(step, tensors, info):
        if step in (3, 4):
            raise UserError("cannot write state: no space left") from OSError(28, "no space left")
        original(step, tensors, info)

    monkeypatch.setattr(it.states, "save", save)
    result = it.run(Body())
    assert result.steps == 6
    assert [row["step"] for row in rows(it)] == [1, 2, 3, 4, 5, 6]
    assert it.states.latest() is not None
    if not background:
        assert capsys.readouterr().err.count("no resume state was written") == 2
        assert it.states.latest()[0] == 6


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


def test_resuming_nothing_begins(loop, capsys):
    body = Body()
    assert loop(Budget(steps=2)).run(body, resume=True).steps == 2
    assert "sft begins anew, at step 0: there is no intact training state" in capsys.readouterr().err
    loop(Budget(steps=2)).run(body)
    assert "begins anew" not in capsys.readouterr().err


def test_damaged_states_are_kept_where_training_begins_anew(loop, capsys):
    it = loop(Budget(steps=4))
    with pytest.raises(Interrupted):
        it.run(Body(signal_at=2))
    (it.states.folder / "step-00000002" / "state.json").write_text("{}")
    body = Body()
    it.run(body, resume=True)
    assert body.progress[0] == 0.0
    told = capsys.readouterr().err
    assert "state.json does not match its checksum; it is now step-00000002.damaged" in told
    assert "begins anew, at step 0" in told
    assert [path.name for path in it.states.folder.iterdir()] == ["step-00000002.damaged"]


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
