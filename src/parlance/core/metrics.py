"""The metrics log of a run: one JSON object a line, appended as training goes, exact after a resume.

Rows are `{"stage", "step", "seconds", ...}`. When a stage resumes from a checkpoint at step s, rows of that stage
beyond s (written by the process that was killed) are dropped, so the log never shows a step twice.
"""

from pathlib import Path

from parlance.core.artifacts import append_jsonl, read_jsonl, write_jsonl


class MetricsLog:
    """Appends rows to `path`; create it once per stage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, stage: str, step: int) -> None:
        """Forget the rows of `stage` beyond `step` (0: all), and a last line that was cut off by a kill."""
        if not self.path.exists():
            return
        rows = [row for _, row in read_jsonl(self.path, skip_bad=True)]
        write_jsonl(self.path, [row for row in rows if row and not (row["stage"] == stage and row["step"] > step)])

    def write(self, stage: str, step: int, **values: float | str | None) -> None:
        """Append one row. Raises UserError (full disk, ...)."""
        append_jsonl(self.path, {"stage": stage, "step": step, **values})
