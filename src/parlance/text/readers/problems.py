"""What happens to bad input: one UserError sentence, or, with `skip_bad`, it is counted, listed and left out.

problems = Problems(Path("a.jsonl"), "a.jsonl", skip_bad=True, report=report)
problems.record("line", 3, "not valid JSON")
"""

from dataclasses import dataclass
from pathlib import Path

from parlance.core.errors import UserError
from parlance.text.documents import ReadingReport


class BadInput(Exception):  # noqa: N818  (it says what the input is)
    """A file, page or record cannot be read: `reason` is the heading it is counted under, the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


@dataclass(frozen=True)
class Problems:
    """The bad input of one file."""

    path: Path
    name: str
    """What documents of the file are called."""
    skip_bad: bool
    report: ReadingReport

    def record(self, place: str, number: int, what: str, reason: str = "broken record") -> None:
        """A record cannot be used. Raises UserError unless `skip_bad`."""
        if not self.skip_bad:
            raise UserError(
                f"{self.path}, {place} {number}: {what}; mend it, or pass --skip-bad to leave such records out"
            )
        self.report.skip(reason, f"{self.name}:{number}")

    def file(self, error: BadInput) -> None:
        """The file, or the rest of it, cannot be used. Raises UserError unless `skip_bad`."""
        if not self.skip_bad:
            raise UserError(f"{self.path}: {error}; mend it, or pass --skip-bad to leave such files out")
        self.report.skip(error.reason, self.name)
