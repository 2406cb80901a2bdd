"""Progress of long work on standard error: a live bar on a terminal, a plain line every few seconds elsewhere.

with Progress("pretrain", total=1000, unit="steps") as progress:
    progress.update(1, loss=2.31)
"""

import sys
import time
from types import TracebackType
from typing import Self

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines where standard error is not a terminal."""


class Progress:
    """A counter with rate, time left and a few named figures. `total` None: unknown length.

    `done` is what an earlier process did: it counts as progress, not towards the rate.
    """

    def __init__(self, label: str, total: float | None = None, unit: str = "items", done: float = 0.0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self._before = done
        self._fields: dict[str, str] = {}
        self._start = time.monotonic()
        self._shown = self._start
        self._live = sys.stderr.isatty()
        self._interval = 0.1 if self._live else PLAIN_INTERVAL

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._show(final=True)

    def update(self, amount: float = 1.0, **fields: float | str) -> None:
        """Count `amount` more and remember figures to show."""
        self.done += amount
        for name, value in fields.items():
            self._fields[name] = value if isinstance(value, str) else f"{value:.4g}"
        if time.monotonic() - self._shown >= self._interval:
            self._show()

    def _show(self, final: bool = False) -> None:
        now = time.monotonic()
        self._shown = now
        elapsed = now - self._start
        rate = (self.done - self._before) / elapsed if elapsed > 0 else 0.0
        parts = [f"{self.label:<12}"]
        if self.total:
            fraction = min(1.0, self.done / self.total)
            if self._live:
                filled = round(20 * fraction)
                parts.append("━" * filled + "─" * (20 - filled))
            parts.append(f"{_count(self.done)}/{_count(self.total)} {self.unit}")
        else:
            parts.append(f"{_count(self.done)} {self.unit}")
        if self.unit != "s":
            parts.append(f"{_count(rate)}/s")
        if final:
            parts.append(f"in {elapsed:.1f} s")
        elif self.total and rate > 0:
            parts.append(f"{max(0.0, (self.total - self.done) / rate):.0f} s left")
        parts += [f"{name} {value}" for name, value in self._fields.items()]
        line = "  ".join(parts)
        if self._live:
            sys.stderr.write("\r\x1b[2K" + line + ("\n" if final else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def say(text: str) -> None:
    """One line of narration on standard error."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _count(value: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.1f}{suffix}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
