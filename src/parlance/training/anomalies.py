"""Steps that would do harm: which to leave out, when to warn, when to give up, and the batch that was there.

A step is left out where its loss or gradient norm is no number, or lies more than `sigma` standard deviations above the
mean of the last 128 steps (the rule of OLMo-core's skip-step optimizer: Groeneveld et al. 2024). Values left out enter
that window too, so that a lasting change of level is soon accepted.

A warning is given where three steps in a row were left out, or where the loss has been rising: the mean of the last 32
steps is above that of the 96 before by more than 6 of its standard errors. A batch is saved: that of the first of the
steps left out; for a rise, the one with the highest loss of those 32 steps. After 20 steps in a row without an update,
training ends.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parlance.core.artifacts import write_json
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.training.objectives import Batch

WINDOW = 128
"""Steps that a new one is compared with."""
LEAST = WINDOW // 2
"""Steps before the first comparison."""
RECENT = WINDOW // 4
"""Newest steps of the window whose mean must not be above that of the others."""
RISE_ERRORS = 6.0
"""Standard errors above which a difference of means is a rise."""
WARNING_SKIPS = 3
"""Steps left out in a row that call for a warning."""
FATAL_SKIPS = 20
"""Steps left out in a row that end the run: more than fp16 takes to find its loss scale."""
MOST_BATCHES = 10
"""Batches saved in a run."""


class AnomalyWindow:
    """The losses and gradient norms of the last steps."""

    def __init__(self, sigma: float) -> None:
        self._sigma = sigma
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def judge(self, loss: float, norm: float) -> str | None:
        """Why a step with these figures is to be left out, None where it is not; remembers them if finite."""
        if not math.isfinite(loss):
            return "its loss is not a finite number"
        if not math.isfinite(norm):
            return "its gradient is not finite"
        reason = self._outlier("loss", loss, self.losses) or self._outlier("gradient norm", norm, self.norms)
        self.losses.append(loss)
        self.norms.append(norm)
        return reason

    def _outlier(self, name: str, value: float, window: deque[float]) -> str | None:
        """How far a value lies above the last ones, None where not too far."""
        if not self._sigma or len(window) < LEAST:
            return None
        mean, deviation = _mean_and_deviation(window)
        # Where the values hardly differ at all, rounding alone makes many deviations.
        if value - mean <= max(self._sigma * deviation, 1e-3 * abs(mean)):
            return None
        return (
            f"its {name} of {value:.4g} is {(value - mean) / max(deviation, 1e-30):.1f} standard deviations above the "
            f"mean of {mean:.4g} of the last {len(window)} steps"
        )

    def rising(self) -> str | None:
        """What says that the loss rises, None where it does not."""
        if len(self.losses) < WINDOW:
            return None
        losses = list(self.losses)
        (before, spread), (recent, recent_spread) = map(_mean_and_deviation, (losses[:-RECENT], losses[-RECENT:]))
        error = math.sqrt(spread**2 / (WINDOW - RECENT) + recent_spread**2 / RECENT)
        if recent - before <= max(RISE_ERRORS * error, 1e-3 * abs(before)):
            return None
        return (
            f"the mean loss of the last {RECENT} steps, {recent:.4g}, is above that of the {WINDOW - RECENT} before, "
            f"{before:.4g}"
        )

    def capture(self) -> dict[str, list[float]]:
        """What must be stored to go on exactly."""
        return {"losses": list(self.losses), "norms": list(self.norms)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Take back what `capture` gave."""
        self.losses, self.norms = deque(state["losses"], WINDOW), deque(state["norms"], WINDOW)


def _mean_and_deviation(values: Collection[float]) -> tuple[float, float]:
    """The mean and the sample's standard deviation."""
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


@dataclass
class BatchStore:
    """Where batches that did harm are saved: `FOLDER/step-00000120.json`."""

    folder: Path
    decode: Callable[[list[int]], str] | None = None
    """From tokens to text."""

    def save(self, step: int, reason: str, figures: dict[str, float], batches: Sequence[Batch]) -> Path | None:
        """The tokens of a step's batches, row by row, and what they say; None once there are `MOST_BATCHES`."""
        file = self.folder / f"step-{step:08d}.json"
        if not file.exists() and len(list(self.folder.glob("step-*.json"))) >= MOST_BATCHES:
            return None
        tokens: list[list[int]] = [row for batch in batches for text in batch.texts() for row in text.tolist()]
        shown = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
        content: dict[str, Any] = {"step": step, "reason": reason, "figures": shown, "tokens": tokens}
        if self.decode is not None:
            content["text"] = [self.decode(row) for row in tokens]
        write_json(file, content)
        return file


class Guard:
    """Judges every step of a run and remembers what it said."""

    def __init__(self, sigma: float, store: BatchStore | None = None) -> None:
        self._window = AnomalyWindow(sigma)
        self._store = store
        self.steps = 0
        """Steps judged."""
        self.skipped = 0
        """Of these, how many were left out."""
        self.in_a_row = 0
        """How many of the newest were left out."""
        self._warned = -WINDOW
        self._worst: tuple[float, int, Sequence[Batch]] | None = None
        self._first: tuple[int, dict[str, float], Sequence[Batch]] | None = None

    def passes(self, loss: float, norm: float, batches: Sequence[Batch], weights: Sequence[Tensor]) -> bool:
        """Whether a step with this loss and gradient norm may be made. Raises UserError where training cannot go on."""
        self.steps += 1
        reason = self._window.judge(loss, norm)
        figures = {"loss": loss, "gradient_norm": norm}
        if self._worst is None or self.steps - self._worst[1] >= RECENT or loss >= self._worst[0]:
            self._worst = (loss, self.steps, batches)
        if reason is None:
            self.in_a_row = 0
            self._watch()
            return True
        self.skipped += 1
        self.in_a_row += 1
        say(f"step {self.steps} was skipped: {reason}")
        if not math.isfinite(loss) and not all(bool(torch.isfinite(weight).all()) for weight in weights):
            raise UserError(
                f"step {self.steps}: the model's weights are no numbers any more, so training cannot go on; its older "
                "resume states stay; begin again with lower learning rates"
            )
        if self.in_a_row == 1 or self._first is None:
            self._first = (self.steps, figures, batches)
        if self.in_a_row == WARNING_SKIPS:
            step, figures, batches = self._first
            self._warn(step, f"{WARNING_SKIPS} steps in a row were skipped", figures, batches)
        if self.in_a_row >= FATAL_SKIPS:
            raise UserError(
                f"{FATAL_SKIPS} steps in a row were skipped, the last (step {self.steps}) because {reason}; training "
                "has diverged: begin again with lower learning rates, or look for what is wrong with the text"
            )
        return False

    def _watch(self) -> None:
        """Warn of a rising loss, once a window."""
        if self.steps - self._warned < WINDOW or self.steps % 8:
            return
        rise = self._window.rising()
        if rise is not None and self._worst is not None:
            self._warn(self._worst[1], rise, {"loss": self._worst[0]}, self._worst[2])

    def _warn(self, step: int, reason: str, figures: dict[str, float], batches: Sequence[Batch]) -> None:
        self._warned = self.steps
        try:
            file = None if self._store is None else self._store.save(step, reason, figures, batches)
        except UserError as error:  # a full disk must not end the run that it warns of
            file = None
            say(str(error))
        where = "" if file is None else f"; the batch of step {step} is in {file}"
        say(f"training may be diverging: {reason}{where}")

    def capture(self) -> dict[str, Any]:
        """What must be stored to go on exactly (the worst batch is not: it only serves a warning)."""
        return {
            "window": self._window.capture(),
            "steps": self.steps,
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "warned": self._warned,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `capture` gave."""
        self._window.restore(state["window"])
        self.steps, self.skipped, self.in_a_row = state["steps"], state["skipped"], state["in_a_row"]
        self._warned, self._worst = state["warned"], None
