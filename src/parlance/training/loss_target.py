"""Training until a loss over the whole validation split is reached, without measuring it all the time.

A measurement reads the split in batches spread over it and stops as soon as the mean of what it has read is above the
target by more than its own uncertainty; only a measurement that has read everything can say that the target is reached.
When to measure first follows from the training loss, and after two measurements from how fast the loss fell between
them. Nothing depends on the clock, so a run in steps ends at the same step every time.

    target = LossTarget(1.8857, [lambda batch=batch: objective_sums(batch) for batch in batches])
    if target.due(step, figures): loss, whole = target.measure(step)
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from parlance.core.errors import UserError

NEAR = 1.1
"""The first measurement is made once the loss of a step is below this many times the target."""
LEAST_BATCHES = 4
"""Batches after which a measurement may stop."""
DEVIATIONS = 3.0
"""Standard errors by which the mean so far must be above the target to stop."""


class LossTarget:
    """`measurements` give (summed loss, count) of one batch each; together they are the whole validation split."""

    def __init__(
        self,
        loss: float,
        measurements: Sequence[Callable[[], tuple[float, int]]],
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`within` makes the block in which measurements are made."""
        if not measurements:
            raise UserError("there is no validation text to measure the loss on")
        self.loss = loss
        self._measurements = _spread(measurements)
        self._within = within
        self._next = 0
        self._last: tuple[int, float] | None = None

    def due(self, step: int, figures: dict[str, float], *, last: bool = False) -> bool:
        """Whether to measure after this step, from its training loss; `last`: in any case."""
        near = self._last is not None or figures.get("loss", math.inf) <= NEAR * self.loss
        return last or (near and step >= self._next)

    def measure(self, step: int, *, whole: bool = False) -> tuple[float, bool]:
        """Mean loss over what was read, and whether that is the whole split; `whole`: read it in any case."""
        total, count, read, means = 0.0, 0, 0, _Spread()
        with self._within():
            for batch in self._measurements:
                loss, items = batch()
                total, count, read = total + loss, count + items, read + 1
                if items:  # of a short last window nothing may be asked
                    means.add(loss / items)
                if not whole and self._hopeless(means):
                    break
        self._plan(step, total / count)
        return total / count, read == len(self._measurements)

    def _hopeless(self, means: "_Spread") -> bool:
        """Whether what is left to read cannot be expected to bring the mean down to the target."""
        read, all_of_it = means.count, len(self._measurements)
        if read < LEAST_BATCHES or read == all_of_it:
            return False
        # Without replacement: nothing is uncertain about what has been read.
        error = math.sqrt(means.variance / read * (1 - read / all_of_it))
        return means.mean - DEVIATIONS * error > self.loss

    def _plan(self, step: int, loss: float) -> None:
        """When to look again: most of the way to where the last two measurements say the target is."""
        wait = max(1, step // 20)
        if self._last is not None and step > self._last[0]:
            fall = (self._last[1] - loss) / (step - self._last[0])
            left = loss - self.loss
            wait = max(1, step // 100)
            if left > 0:
                wait = max(wait, min(round(0.7 * left / fall), step // 4) if fall > 0 else step // 20)
        self._next = step + wait
        self._last = (step, loss)

    def capture(self) -> dict[str, Any]:
        """What the next decision depends on."""
        return {"next": self._next, "last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `capture` gave."""
        self._next = state["next"]
        self._last = None if state["last"] is None else (state["last"][0], state["last"][1])


@dataclass
class _Spread:
    """Mean and variance of numbers that come one by one (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    @property
    def variance(self) -> float:
        return self.squares / (self.count - 1)


def _spread(measurements: Sequence[Callable[[], tuple[float, int]]]) -> list[Callable[[], tuple[float, int]]]:
    """The same in an order in which any first part is spread over the whole: by the fractions of golden multiples."""
    golden = (math.sqrt(5) - 1) / 2
    return [measurements[place] for place in sorted(range(len(measurements)), key=lambda place: place * golden % 1.0)]
