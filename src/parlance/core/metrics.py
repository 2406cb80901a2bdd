"""The metrics log of a run: one JSON object a line, appended as training goes, exact after a resume.

Rows are `{"stage", "step", "seconds", ...}`; a figure that is no finite number is null. When a stage resumes from a
checkpoint at step s, rows of that stage beyond s (written by the process that was killed) are dropped, so the log never
shows a step twice. A full disk stops nothing: rows wait in memory until they can be written. With a second folder the
figures are written there as events for TensorBoard too (`core/tensorboard.py`).
"""

import errno
import math
import os
from pathlib import Path
from typing import Any

from parlance.core.artifacts import append_jsonl, read_jsonl, write_jsonl
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.core.tensorboard import EventWriter


class MetricsLog:
    """Appends rows to `path`, and events to the folder `events`; create it once per stage."""

    def __init__(self, path: Path, events: Path | None = None) -> None:
        self.path = path
        self._events = None if events is None else EventWriter(events)
        self._waiting: list[dict[str, Any]] = []

    def rewind(self, stage: str, step: int) -> None:
        """Forget the rows of `stage` beyond `step` (0: all), and lines that are none (cut off by a kill)."""
        if self._events is not None:
            self._events.restart(step)
        if not self.path.exists():
            return
        rows = [row for _, row in read_jsonl(self.path, skip_bad=True) if _is_row(row)]
        write_jsonl(self.path, [row for row in rows if row["stage"] != stage or row["step"] <= step])

    def write(self, stage: str, step: int, **values: float | str | None) -> None:
        """Append one row; where the disk is full, say so once and keep it for the next time."""
        finite = {name: _finite(value) for name, value in values.items()}
        self._waiting.append({"stage": stage, "step": step, **finite})
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            if self._events is not None:
                numbers = {name: value for name, value in finite.items() if isinstance(value, int | float)}
                self._events.write(step, {f"{stage}/{name}": value for name, value in numbers.items()})
            while self._waiting:
                append_jsonl(self.path, self._waiting[0])
                size = self.path.stat().st_size
                del self._waiting[0]
        except UserError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            if self.path.exists():
                os.truncate(self.path, size)  # part of a row would spoil the next
            if len(self._waiting) == 1:
                say(f"{error}; training goes on, and the rows of the log wait in memory")


def _is_row(row: dict[str, Any]) -> bool:
    return isinstance(row.get("stage"), str) and isinstance(row.get("step"), int | float)


def _finite(value: float | str | None) -> float | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
