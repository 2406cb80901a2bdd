"""The output folder of one training stage that is run by itself: begun once, resumed with the same options, done once.

`command.json` says what was begun, `stage.json` (as in a run directory) what came out. While a process is at work,
`stage.lock` keeps others out; one that was killed keeps nobody out.

    with StageFolder(Path("base"), "pretrain", {"steps": 100}, resume=False) as folder:
        record = folder.finished or folder.finish({"loss": 2.0})
"""

import contextlib
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parlance.core.artifacts import PARTIAL, ensure_directory, os_errors, read_json, write_json
from parlance.core.config import changes, differences
from parlance.core.errors import UserError
from parlance.core.locks import FileLock

BEGUN = "command.json"
DONE = "stage.json"
LOCK = "stage.lock"
STATES = "training"


class StageFolder:
    """An output folder and the options (JSON values) that decide what goes into it.

    Entering it raises UserError where the folder holds something else, was begun with other options, or where another
    process is at work in it; nothing is destroyed. Of several processes that train together, the first enters. Leaving
    it with a mistake in the input (a `UserError` that no operating system is to blame for) before any training takes
    away again what this process put there, so that the corrected command can be given at once.
    """

    def __init__(self, path: Path, stage: str, options: dict[str, Any], *, resume: bool) -> None:
        self.path, self.resume = path, resume
        self.finished: dict[str, Any] | None = None
        """What the stage recorded when it was finished earlier."""
        self._stage, self._options = stage, options
        self._start = time.monotonic()
        self._existed = path.exists()
        self._lock = FileLock(path / LOCK)

    def __enter__(self) -> Self:
        if self.resume:
            self._resume()
        else:
            self._begin()
        return self

    def _begin(self) -> None:
        self._refuse_unless_empty()
        ensure_directory(self.path)
        self._take_lock()
        try:
            self._refuse_unless_empty()  # another process may have been faster
            write_json(self.path / BEGUN, {"stage": self._stage, "options": self._options})
        except BaseException:
            self._lock.free()
            raise

    def _refuse_unless_empty(self) -> None:
        """A process that was killed as it began leaves its lock and half a file at most."""
        if self.path.is_dir():
            with os_errors("read", self.path):
                names = {path.name for path in self.path.iterdir()}
            if names <= {LOCK, BEGUN + PARTIAL}:
                return
            if BEGUN in names and DONE not in names:
                raise UserError(
                    f"{self.path} holds an unfinished stage; pass --resume to finish it, or choose another --out folder"
                )
        new_folder(self.path)

    def _resume(self) -> None:
        begun, done = self.path / BEGUN, self.path / DONE
        if not begun.exists():
            raise UserError(f"{self.path} holds nothing to resume; leave out --resume to begin")
        old = _record(begun, {"stage": str, "options": dict})
        if old["stage"] != self._stage:
            raise UserError(f"{self.path} holds a stage {old['stage']}; choose another --out folder")
        if fields := differences(old["options"], self._options):
            changed = "; ".join(changes(old["options"], self._options))
            raise UserError(
                f"{self.path} was begun with another {', '.join(fields)} ({changed}); resume it with the same options"
            )
        if not done.exists():
            self._take_lock()
        if done.exists():
            self._lock.free()
            self.finished = _record(done, {"stage": str, "seconds": (int, float), "facts": dict})

    def _take_lock(self) -> None:
        if not self._lock.take():
            raise UserError(f"another process is at work in {self.path}; wait for it, or stop it")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A full disk is nobody's wrong input: what was made stays, and can be resumed.
        bad_input = isinstance(error, UserError) and not isinstance(error.__cause__, OSError)
        if bad_input and not self.resume and not (self.path / STATES).exists():
            self._withdraw()
        else:
            self._lock.free()

    def _withdraw(self) -> None:
        """Take away all that is here: this process put it there."""
        for item in self.path.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item.name != LOCK:
                item.unlink()
        self._lock.free()
        if not self._existed:
            with contextlib.suppress(OSError):  # another process may have begun here meanwhile
                self.path.rmdir()

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Record what came out; resume states that are left are no longer needed."""
        record = {
            "stage": self._stage,
            "out": str(self.path),
            "seconds": round(time.monotonic() - self._start, 2),
            "facts": facts,
        }
        write_json(self.path / DONE, record)
        # Only now: a kill between the two must not cost the training.
        shutil.rmtree(self.path / STATES, ignore_errors=True)
        return record


def new_folder(path: Path) -> Path:
    """`path`, which must be absent or empty. Raises UserError."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists and is not an empty folder; choose another --out folder")
    return path


def _record(path: Path, kinds: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """A JSON object with these fields. Raises UserError where the file holds another thing."""
    record = read_json(path)
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise UserError(f"{path} is damaged: it does not say what was begun or done here; choose another --out folder")
    return record
