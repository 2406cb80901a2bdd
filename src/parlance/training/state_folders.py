"""The folders of resume states, `step-00000120`, newest last, and what a kill or damage left beside them.

A folder that replaces one of the same step takes two renames; a kill between them leaves only `step-N.old.partial`,
which `put_back` finds again. A damaged state is not deleted: `set_aside` names it `step-N.damaged`, and it goes with
the whole folder when the stage is done.
"""

import contextlib
import errno
import itertools
import re
import shutil
from pathlib import Path

from parlance.core.artifacts import PARTIAL, os_errors
from parlance.core.progress import say

OLD = f".old{PARTIAL}"
DAMAGED = ".damaged"
MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""Errors of the system that say that a file of a state is not there, or no file: damage, as wrong bytes are."""


def state_folder(folder: Path, step: int) -> Path:
    """Where the state of a step lies."""
    return folder / f"step-{step:08d}"


def states_in(folder: Path) -> list[Path]:
    """The states, oldest first. Raises UserError where the folder is there and cannot be read."""
    return sorted((folder / name for name in _names(folder) if re.fullmatch(r"step-\d+", name)), key=_step)


def put_back(folder: Path) -> None:
    """Give states that were being replaced when a process was killed their names again. Raises UserError."""
    for name in _names(folder):
        final = folder / name.removesuffix(OLD)
        if name.startswith("step-") and name.endswith(OLD) and not final.exists():
            with os_errors("rename", folder / name):
                (folder / name).replace(final)


def begin(folder: Path) -> None:
    """Make room for the next state: what earlier ones left half-written goes. Raises UserError."""
    put_back(folder)
    for leftover in folder.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def replace(new: Path, final: Path) -> None:
    """Give a finished state its name, also where there is one of that name. Raises UserError."""
    old = final.with_name(final.name + OLD)
    with os_errors("write", final):
        if final.exists():
            final.replace(old)
        new.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def keep_newest(folder: Path, kept: int) -> None:
    """Delete all but the newest `kept` states."""
    for old in states_in(folder)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def set_aside(state: Path, damage: str) -> None:
    """Say that a state is damaged, and take it out of the way of others."""
    names = (state.with_name(state.name + DAMAGED + (f"-{number}" if number else "")) for number in itertools.count())
    aside = next(path for path in names if not path.exists())
    where = ""
    with contextlib.suppress(OSError):  # a folder that cannot be written to: the state is passed over where it is
        state.replace(aside)
        where = f"; it is now {aside.name}"
    say(f"passing over a damaged training state: {damage}{where}")


def discard(folder: Path) -> None:
    """Delete the states but the damaged ones, and nothing else in the folder."""
    for path in folder.glob("step-*"):
        if DAMAGED not in path.name:
            shutil.rmtree(path, ignore_errors=True)


def unreadable(code: int | None) -> bool:
    """Whether this error of the system, if any, kept a file from being read, so that nothing is known of the state."""
    return code is not None and code not in MISSING


def errno_of(error: BaseException) -> int | None:
    """The system's error behind a `UserError` (EIO where it has no number), or None."""
    cause = error.__cause__
    return (cause.errno or errno.EIO) if isinstance(cause, OSError) else None


def _names(folder: Path) -> list[str]:
    with os_errors("read", folder):
        try:
            return sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            return []


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))
