"""The run directory: which stages are done, how much time is spent, and that only one process works in it.

A stage is done when its folder holds `stage.json`, written last. Time is counted over all processes that ever worked
on the run, in `clock.json`.
"""

import fcntl
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from parlance.core.artifacts import ensure_directory, read_json, write_json, write_text
from parlance.core.devices import peak_memory_bytes
from parlance.core.errors import UserError
from parlance.pipeline.recipe import Recipe, read_recipe, write_recipe

RECIPE = "recipe.yaml"
MARK = "stage.json"
HEARTBEAT = 2.0
"""Seconds between two updates of the clock."""


class RunDirectory:
    """A run on disk; use as a context manager, which holds the lock and keeps the clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None
        self._spent_before = 0.0
        self._started = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, recipe: Recipe) -> None:
        """Start a new run here. Raises UserError where the folder holds anything already; nothing is destroyed."""
        if (self.path / RECIPE).exists():
            raise UserError(
                f"{self.path} already holds a run; pass --resume to finish it, or choose another --out folder"
            )
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path} already exists and is not an empty folder; choose another --out folder")
        ensure_directory(self.path)
        write_text(self.path / RECIPE, write_recipe(recipe))

    def resume(self, recipe: Recipe | None) -> Recipe:
        """The stored recipe; a `recipe` that was given again must agree with it. Raises UserError."""
        if not (self.path / RECIPE).exists():
            raise UserError(f"{self.path} holds no run to resume")
        stored = read_recipe(self.path / RECIPE)
        if recipe is not None and recipe != stored:
            old, new = stored.model_dump(), recipe.model_dump()
            field = next(name for name in old if old[name] != new[name])
            raise UserError(
                f"{self.path} was started with another {field}; resume it with the same options, or with --out alone"
            )
        return stored

    def __enter__(self) -> Self:
        self._lock = (self.path / "run.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UserError(f"{self.path}: another process is working on this run") from error
        clock = self.path / "clock.json"
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
        self._save_clock()
        if self._lock is not None:
            self._lock.close()

    def seconds(self) -> float:
        """Time spent on this run so far, over all processes."""
        return self._spent_before + time.monotonic() - self._started

    def _tick(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            self._save_clock()

    def _save_clock(self) -> None:
        try:
            write_json(self.path / "clock.json", {"seconds": round(self.seconds(), 2)})
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
