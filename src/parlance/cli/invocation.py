"""How this program was called, and what Ctrl-C means while a stage runs that can be resumed."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parlance.core.errors import Interrupted, UserError


def program() -> str:
    """How this program was started, as a user can type it again."""
    called = sys.argv[0]
    processes = os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" in os.environ and processes == os.environ.get("WORLD_SIZE"):
        return f"torchrun --nproc-per-node {processes} -m parlance"
    if Path(called).name == "__main__.py":
        return "python -m parlance"
    on_path = shutil.which("parlance")
    return "parlance" if on_path is not None and Path(on_path).resolve() == Path(called).resolve() else called


def command_line() -> str:
    """This process's command, as it is recorded for reproduction."""
    return shlex.join(["parlance", *(word for word in sys.argv[1:] if word not in ("--debug", "--resume"))])


def told_elsewhere() -> bool:
    """Whether another process on this machine, started with the same words, says what is wrong with them."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("LOCAL_RANK", "0") != "0"


@contextmanager
def first_tells() -> Iterator[None]:
    """A mistake in the words of the command line, found in the block by all processes of a machine, is told by one."""
    try:
        yield
    except UserError:
        if told_elsewhere():
            raise SystemExit(2) from None
        raise


@contextmanager
def resumable(again: Sequence[str] | None = None) -> Iterator[None]:
    """A stop within the block (Ctrl-C, or `Interrupted` by a stage) leaves as `Interrupted` that says how to go on:
    with the words `again` (None: those of this process) and --resume."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        words = [word for word in (sys.argv[1:] if again is None else again) if word != "--resume"]
        raise Interrupted(f"{str(error) or 'stopped'}; go on with: {program()} {shlex.join(words)} --resume") from error
