"""The output folder of one training stage that is run by itself: begun once, resumed with the same options, done once.

`command.json` says what was begun, `stage.json` (as in a run directory) what came out.

    with StageFolder(Path("base"), "pretrain", {"steps": 100}, resume=False) as folder:
        record = folder.finished or folder.finish({"loss": 2.0})
"""

import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parlance.core.artifacts import ensure_directory, read_json, write_json
from parlance.core.config import differences
from parlance.core.errors import UserError

BEGUN = "command.json"
DONE = "stage.json"
STATES = "training"


class StageFolder:
    """An output folder and the options (JSON values) that decide what goes into it.

    Entering it raises UserError where the folder holds something else, or was begun with other options; nothing is
    destroyed. Leaving it with a mistake in the input (a `UserError` that no operating system is to blame for) before
    any training takes away again what this process put there, so that the corrected command can be given at once.
    """

    def __init__(self, path: Path, stage: str, options: dict[str, Any], *, resume: bool) -> None:
        self.path, self.resume = path, resume
        self.finished: dict[str, Any] | None = None
        """What the stage recorded when it was finished earlier."""
        self._stage, self._options = stage, options
        self._start = time.monotonic()
        self._existed = path.exists()

    def __enter__(self) -> Self:
        begun, done = self.path / BEGUN, self.path / DONE
        if not self.resume:
            if begun.exists() and not done.exists():
                raise UserError(
                    f"{self.path} holds an unfinished stage; pass --resume to finish it, or choose another --out folder"
                )
            ensure_directory(new_folder(self.path))
            write_json(begun, {"stage": self._stage, "options": self._options})
            return self
        if not begun.exists():
            raise UserError(f"{self.path} holds nothing to resume; leave out --resume to begin")
        old = read_json(begun)
        if old["stage"] != self._stage:
            raise UserError(f"{self.path} holds a stage {old['stage']}; choose another --out folder")
        if fields := differences(old["options"], self._options):
            raise UserError(f"{self.path} was begun with another {', '.join(fields)}; resume it with the same options")
        if done.exists():
            self.finished = dict(read_json(done))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A full disk is nobody's wrong input: what was made stays, and can be resumed.
        bad_input = isinstance(error, UserError) and not isinstance(error.__cause__, OSError)
        if self.resume or not bad_input or (self.path / STATES).exists():
            return
        for item in self.path.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            else:
                item.unlink()
        if not self._existed:
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
