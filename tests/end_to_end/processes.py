"""What the tests of this folder run, and how: real `parlance` processes, run to their end or stopped at a moment."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAM = [sys.executable, "-m", "parlance"]
PATIENCE = 240.0
"""Seconds after which a process that should have ended counts as hung."""

SMALL = (
    "--device=cpu",
    "--set=pretraining.layers=1",
    "--set=pretraining.width=64",
    "--set=tokenizer.vocab_size=512",
    # More often than anybody would want, so that there is always a state to resume from.
    "--set=checkpoint_seconds=0.1",
)
"""A model that trains in seconds."""

STEPS = {"pretrain": 120, "sft": 60, "reward": 60, "ppo": 8}
DEFAULT_RUN = (
    "run",
    "--steps=" + ",".join(f"{stage}={number}" for stage, number in STEPS.items()),
    *SMALL,
    "--set=task.ranked_prompts=80",
    "--set=task.heldout_prompts=24",
)
"""The default recipe, small; everything but `--out`."""


@dataclass(frozen=True)
class OwnTexts:
    """A user's files."""

    texts: Path
    demonstrations: Path
    preferences: Path

    def run(self) -> list[str]:
        """`parlance run` on the texts alone, small; everything but `--out`."""
        steps = "--steps=pretrain=30,sft=20,reward=20,ppo=3"
        return ["run", str(self.texts), steps, *SMALL, "--set=pretraining.context_length=128"]

    def aligned_run(self) -> list[str]:
        """The same with demonstrations and preferences."""
        return [*self.run(), f"--demonstrations={self.demonstrations}", f"--preferences={self.preferences}"]


def two_cores() -> None:
    """Tiny matrices gain nothing from more, and equal bytes need equal numbers of threads."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def parlance(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [*PROGRAM, *map(str, words)]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=PATIENCE, preexec_fn=two_cores, check=False
    )


@contextlib.contextmanager
def started(words: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running command whose standard error goes to `log`; it is killed where the block leaves it running."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, words)], stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=two_cores
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def stop_at(
    moment: Callable[[], bool], words: Sequence[str | Path], log: Path, number: signal.Signals, delay: float = 0.0
) -> int:
    """Start a command and send it a signal `delay` seconds after `moment` has come; returns its exit status.

    Fails where the command ends before.
    """
    with started(words, log) as process:
        deadline = time.monotonic() + PATIENCE
        while not moment():
            assert process.poll() is None, f"ended too early:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"the moment never came:\n{log.read_text()[-2000:]}"
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait(PATIENCE)
