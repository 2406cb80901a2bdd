"""Work on batches that may not fit in memory: where an allocation fails, the batches are halved and it begins again.

The loss of a step is a sum that is divided by the count of the whole step, so smaller micro-batches change neither the
batch nor the update (but for the order in which floating-point numbers are added). What was found is kept for all later
work. On Linux memory is often promised and then not there, and the system kills the process instead of refusing: so
`expect` looks beforehand at what is free.

    fit = MemoryFit()
    loss = fit.run(lambda parts: [work(part) for part in parts], batches, undo=forget_gradients)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from parlance.core.errors import UserError
from parlance.core.formatting import size
from parlance.core.progress import say
from parlance.training.objectives import Batch

ResultT = TypeVar("ResultT")

USABLE = 0.9
"""Share of the free memory that training may plan with."""
SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "could not allocate")
"""How allocators word that there is no memory: those of torch, oneDNN and the C library."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


class MemoryFit:
    """Into how many parts every batch has to be divided."""

    def __init__(self) -> None:
        self.parts = 1
        """A power of two."""

    def expect(self, needed: Callable[[int], float], free: int | None, rows: int) -> None:
        """Divide batches of `rows` rows beforehand where `needed(rows)` bytes are more than what is free."""
        if free is None or rows == 1 or needed(rows) <= USABLE * free:
            return
        while self.parts < rows and needed(-(-rows // self.parts)) > USABLE * free:
            self.parts *= 2
        self._tell(f"training would take about {size(needed(rows))} and {size(free)} are free", rows)

    def run(
        self, work: Callable[[list[Any]], ResultT], batches: Sequence[Batch], undo: Callable[[], None] = lambda: None
    ) -> ResultT:
        """`work` on the batches, divided as far as memory asks for; `undo` takes back what a failed attempt left.

        Raises UserError where a single row does not fit.
        """
        while True:
            try:
                return work(self.divide(batches))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                told = str(error).strip().partition("\n")[0][:200]
            # Out here the error's frames are gone, and with them the activations that they held.
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            rows = max(len(batch) for batch in batches)
            if self.parts >= rows:
                raise UserError(
                    f"a single row of a batch does not fit in memory ({told}): choose a smaller model or a shorter "
                    "context_length"
                )
            self.parts *= 2
            self._tell("a batch does not fit in memory", rows)

    def divide(self, batches: Sequence[Batch]) -> list[Any]:
        """The parts of all batches."""
        if self.parts == 1:
            return list(batches)
        divided = []
        for batch in batches:
            step = max(1, -(-len(batch) // self.parts))
            divided += [batch.part(first, min(first + step, len(batch))) for first in range(0, len(batch), step)]
        return divided

    def _tell(self, why: str, rows: int) -> None:
        say(f"{why}: each micro-batch of {rows} rows is divided into {self.parts} (the batch of a step stays as it is)")
