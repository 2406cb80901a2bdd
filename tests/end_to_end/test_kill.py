"""Stopping is normal: a run that is killed in every stage and resumed each time equals the run that nobody touched.

Real processes of the default recipe are stopped one after the other, at moments drawn from a fixed seed: with SIGKILL,
which no program can catch, and with Ctrl-C. Each is resumed by the next. The truth is `default_run`, the same command
in one piece.
"""

import json
import random
import shlex
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import DEFAULT_RUN, STEPS, parlance, stop_at

FOLDERS = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "policy"}
KILL, CTRL_C = signal.SIGKILL, signal.SIGINT


class Victim:
    """One run, and what became of the processes that worked on it."""

    def __init__(self, out: Path, log: Path) -> None:
        self.out, self.log = out, log
        self.random = random.Random(7)
        self.farewells: list[str] = []
        """What the processes said that Ctrl-C stopped."""
        self.seen_states: dict[str, list[int]] = {stage: [] for stage in FOLDERS}
        """The newest resume state of a stage at each moment its training was stopped."""

    def stop(self, moment: Callable[[], bool], number: signal.Signals, longest_delay: float) -> None:
        """Begin or resume the run and stop it up to `longest_delay` seconds after `moment`."""
        begun = (self.out / "recipe.yaml").exists()
        words = ["run", "--out", str(self.out), "--resume"] if begun else [*DEFAULT_RUN, "--out", str(self.out)]
        status = stop_at(moment, words, self.log, number, self.random.uniform(0, longest_delay))
        said = self.log.read_text()
        assert "Traceback" not in said
        if number == CTRL_C:
            assert status == 130, said
            self.farewells.append(said.splitlines()[-1])
        else:
            assert status == -signal.SIGKILL, said

    def stop_in(self, stage: str, folder: str, number: signal.Signals, longest_delay: float) -> None:
        """Stop the run within a stage that does not train."""
        announcement = f"== {stage}\n"
        self.stop(lambda: announcement in self.log.read_text(), number, longest_delay)
        assert not (self.out / folder / "stage.json").exists(), f"{stage} was faster than its end"

    def stop_training(self, stage: str, number: signal.Signals) -> None:
        """Stop the run at a random later step of a training stage, some way before its end."""
        newest = self.newest(stage)
        step = self.random.randint(newest + 1, max(newest + 1, (newest + STEPS[stage] * 3 // 4) // 2))
        self.stop(lambda: self.newest(stage) >= step, number, 0.05)
        assert not (self.out / FOLDERS[stage] / "stage.json").exists(), f"{stage} was faster than its end"
        self.seen_states[stage].append(self.newest(stage))

    def newest(self, stage: str) -> int:
        """Step of the newest resume state of a stage; 0 where there is none."""
        names = [path.name for path in (self.out / FOLDERS[stage] / "training").glob("step-*[0-9]")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A run that was stopped 14 times and finished by the last process."""
    folder = tmp_path_factory.mktemp("killed")
    victim = Victim(folder / "run", folder / "stderr")
    victim.stop_in("corpus", "corpus", KILL, 1.0)
    victim.stop_in("corpus", "corpus", CTRL_C, 1.0)
    victim.stop_in("tokenizer", "tokenizer", KILL, 0.0)
    victim.stop_in("demonstrations", "demonstrations", KILL, 1.0)
    # While the model is set up, or in the pilots that predict its loss.
    victim.stop_in("pretrain", "base", KILL, 0.3)
    victim.stop_training("pretrain", KILL)
    victim.stop_training("pretrain", KILL)
    victim.stop_training("sft", KILL)
    victim.stop_training("sft", CTRL_C)
    victim.stop(lambda: (victim.out / "rankings.partial").exists(), KILL, 0.0)
    victim.stop_training("reward", KILL)
    victim.stop_training("ppo", KILL)
    victim.stop_training("ppo", KILL)
    victim.stop(lambda: (victim.out / "evaluation.partial").exists(), KILL, 0.5)
    done = parlance("run", "--out", victim.out, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    return victim


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_the_weights_are_those_of_the_untouched_run(victim: Victim, default_run: Path, folder: str) -> None:
    weights = Path(folder) / "model.safetensors"
    assert (victim.out / weights).read_bytes() == (default_run / weights).read_bytes()


def test_so_are_the_data_and_the_results(victim: Victim, default_run: Path) -> None:
    files = [path.relative_to(default_run) for path in default_run.rglob("*") if path.is_file()]
    same = [
        path
        for path in files
        if path.parts[0] in ("corpus", "tokenizer", "tokens", "ngram", "demonstrations", "rankings", "evaluation")
        and path.name != "stage.json"  # it has times
    ]
    assert len(same) > 20
    assert [str(path) for path in same if (victim.out / path).read_bytes() != (default_run / path).read_bytes()] == []


def test_every_training_stage_was_stopped_on_its_way(victim: Victim) -> None:
    for stage, steps in STEPS.items():
        assert victim.seen_states[stage], stage
        assert all(0 < state < steps for state in victim.seen_states[stage]), stage


def test_no_step_is_in_the_log_twice(victim: Victim) -> None:
    rows = [json.loads(line) for line in (victim.out / "metrics.jsonl").read_text().splitlines()]
    counts = Counter((row["stage"], row["step"]) for row in rows)
    assert [step for step, count in counts.items() if count > 1] == []
    for stage, steps in STEPS.items():
        mine = [row["step"] for row in rows if row["stage"] == stage]
        assert mine == sorted(mine)
        assert mine[-1] == steps
    # PPO logs every update, whatever the clock says: not one may be missing either.
    assert [row["step"] for row in rows if row["stage"] == "ppo"] == list(range(1, STEPS["ppo"] + 1))


def test_nothing_is_left_behind(victim: Victim, default_run: Path) -> None:
    def names(run: Path) -> set[str]:
        return {str(path.relative_to(run)) for path in run.rglob("*")}

    assert names(victim.out) == names(default_run)


def test_time_is_counted_over_all_processes(victim: Victim, default_run: Path) -> None:
    seconds = [json.loads((run / "summary.json").read_text())["seconds"] for run in (victim.out, default_run)]
    # The last process alone evaluates only; the whole took longer than one corpus and four trainings.
    last = json.loads((victim.out / "evaluation" / "stage.json").read_text())["seconds"]
    assert seconds[0] > 2 * last
    assert seconds[0] > 0.5 * seconds[1]


def test_ctrl_c_says_how_to_go_on(victim: Victim) -> None:
    assert len(victim.farewells) == 2
    for farewell in victim.farewells:
        _, _, command = farewell.partition("go on with: ")
        assert shlex.split(command)[-4:] == ["run", "--out", str(victim.out), "--resume"]
    assert "its state is saved" in victim.farewells[1]
