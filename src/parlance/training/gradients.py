"""Where the gradient of a step comes from: the micro-batches of one process here, of many in `parallel/`.

The trainer asks for the gradient of the *sum* of the losses of a whole step and divides it by the count of that whole
step, so any division of a batch over micro-batches and ranks gives the same update.

    sums = SingleProcess().backward(model, objective, batches)       # parameter.grad holds the gradient of the sum
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import Objective
from parlance.training.optimizers import Optimizer, clip_gradients


@dataclass
class StepSums:
    """What one step sums up, over its micro-batches and all ranks."""

    loss: float = 0.0
    count: int = 0
    """Items in the loss: tokens, pairs, ..."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further sums over the same items."""


class Gradients(Protocol):
    """How a step's gradient is computed and measured."""

    def backward(self, model: nn.Module, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
        """Add the gradient of the summed loss of `batches`, which are the whole step's, to the parameters' `.grad`."""
        ...

    def clip(self, optimizer: Optimizer, limit: float) -> float:
        """Scale all gradients so that their joint L2 norm is at most `limit`; returns the norm before."""
        ...


class SingleProcess:
    """One process that computes everything, in micro-batches as small as memory asks for."""

    def __init__(self, fit: MemoryFit | None = None) -> None:
        self.fit = fit or MemoryFit()

    def backward(self, model: nn.Module, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
        """See `Gradients`. Gradients must not be there yet."""

        def forget() -> None:
            for parameter in model.parameters():
                parameter.grad = None

        return self.fit.run(lambda parts: _backward(model, objective, parts), batches, forget)

    def clip(self, optimizer: Optimizer, limit: float) -> float:
        """See `Gradients`."""
        return clip_gradients(optimizer.parameters(), limit)


def _backward(model: nn.Module, objective: Objective[Any, Any], batches: Sequence[Any]) -> StepSums:
    sums = StepSums()
    for batch in batches:
        terms = objective(model, batch)
        minimised = terms.loss_sum if terms.regulariser is None else terms.loss_sum + terms.regulariser
        minimised.backward()  # type: ignore[no-untyped-call]
        sums.loss += float(terms.loss_sum.detach())
        sums.count += terms.count
        for name, value in terms.metrics.items():
            sums.metrics[name] = sums.metrics.get(name, 0.0) + value
    return sums
