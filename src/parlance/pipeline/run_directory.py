"""The run directory: which stages are done, how much time is spent, and that only one process works in it.

A stage is done when its folder holds `stage.json`, written last. Time is counted over all processes that ever worked
on the run, in `clock.json`.

    directory = RunDirectory(Path("runs/demo"))
    directory.begin(recipe)            # or: recipe = directory.resume()
    with directory: ...
"""

import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parlance.core.artifacts import PARTIAL, ensure_directory, read_json, write_json, write_text
from parlance.core.config import changes, differences
from parlance.core.devices import peak_memory_bytes
from parlance.core.errors import UserError
from parlance.core.locks import FileLock
from parlance.pipeline.recipe import Recipe, read_recipe, write_recipe

RECIPE = "recipe.yaml"
CLOCK = "clock.json"
LOCK = "run.lock"
METRICS = "metrics.jsonl"
MARK = "stage.json"
HEARTBEAT = 2.0
"""Seconds between two updates of the clock."""
FOLDERS = {
    "corpus": "corpus",
    "tokenizer": "tokenizer",
    "ngram": "ngram",
    "pretrain": "base",
    "demonstrations": "demonstrations",
    "sft": "sft",
    "rankings": "rankings",
    "reward": "reward",
    "ppo": "policy",
    "evaluation": "evaluation",
}
"""Folder of each stage's result."""
BEFORE_TRAINING = (*FOLDERS.values(), "tokens", RECIPE, CLOCK, LOCK, "run.json", "environment.json")
"""All that can be in a run directory before the first training step."""


class RunDirectory:
    """A run on disk. `begin` or `resume` takes the lock; as a context manager it keeps the clock and frees the lock.

    A new run that ends with a mistake in its input (a `UserError` that no operating system is to blame for) before any
    training leaves nothing behind, so that the corrected command can be given at once. All other endings leave a run
    that can be resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / LOCK)
        self._begun_here = self._created = False
        self._spent_before = 0.0
        self._started = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, recipe: Recipe) -> None:
        """Start a new run here. Raises UserError where the folder holds anything already; nothing is destroyed."""
        try:
            str(self.path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the name of --out {self.path!r} is not valid UTF-8; choose another") from error
        names = self._names()
        # A process that was killed as it began leaves its lock and half a recipe at most.
        if names is not None and not names <= {LOCK, RECIPE + PARTIAL}:
            self._refuse(names)
        ensure_directory(self.path)
        self._created = names is None
        self._take_lock()
        try:
            names = self._names() or set()
            if RECIPE in names:  # another process was faster
                self._refuse(names)
            write_text(self.path / RECIPE, write_recipe(recipe))
        except UserError:
            self._lock.free()
            raise
        self._begun_here = True

    def resume(self, recipe: Recipe | None) -> Recipe:
        """The stored recipe; a `recipe` that was given again must agree with it. Raises UserError."""
        if RECIPE not in (self._names() or ()):
            raise UserError(f"{self.path} holds no run to resume; leave out --resume to begin one")
        stored = read_recipe(self.path / RECIPE)
        if recipe is not None and recipe != stored:
            old, new = stored.model_dump(), recipe.model_dump()
            raise UserError(
                f"{self.path} was started with another {', '.join(differences(old, new))} "
                f"({'; '.join(changes(old, new))}); resume it with the same options, or with --out alone"
            )
        self._take_lock()
        return stored

    def _names(self) -> set[str] | None:
        """What the folder holds; None where there is no such folder."""
        try:
            return {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{self.path} cannot be a run directory: {reason}; choose another --out folder") from error

    def _refuse(self, names: set[str]) -> None:
        if RECIPE in names:
            raise UserError(
                f"{self.path} already holds a run; pass --resume to finish it, or choose another --out folder"
            )
        raise UserError(f"{self.path} already exists and is not an empty folder; choose another --out folder")

    def _take_lock(self) -> None:
        if not self._lock.take():
            raise UserError(f"{self.path}: another process is working on this run")

    def __enter__(self) -> Self:
        clock = self.path / CLOCK
        self._spent_before = float(read_json(clock)["seconds"]) if clock.exists() else 0.0
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        bad_input = isinstance(error, UserError) and not isinstance(error.__cause__, OSError)
        if self._begun_here and bad_input and not (self.path / METRICS).exists():
            self._withdraw()
        else:
            self._save_clock()
        self._lock.free()

    def _withdraw(self) -> None:
        """Take away what this process put here, and nothing else."""
        for name in BEFORE_TRAINING:
            for item in (self.path / name, self.path / (name + PARTIAL)):
                if item.is_dir():
                    shutil.rmtree(item, ignore_errors=True)
                else:
                    item.unlink(missing_ok=True)
        if self._created and not self._names():
            self.path.rmdir()

    def seconds(self) -> float:
        """Time spent on this run so far, over all processes."""
        return self._spent_before + time.monotonic() - self._started

    def _tick(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self._save_clock()

    def _save_clock(self) -> None:
        try:
            write_json(self.path / CLOCK, {"seconds": round(self.seconds(), 2)})
        except UserError:
            # A full disk is reported by the stage that meets it; the clock must not bring the run down.
            return

    def done(self, folder: str) -> dict[str, Any] | None:
        """What a finished stage recorded, or None."""
        mark = self.path / folder / MARK
        return dict(read_json(mark)) if mark.exists() else None

    def finish(self, folder: str, stage: str, seconds: float, facts: dict[str, Any]) -> None:
        """Mark a stage as done."""
        record = {"stage": stage, "seconds": seconds, "peak_memory_bytes": peak_memory_bytes(), "facts": facts}
        write_json(self.path / folder / MARK, record)
