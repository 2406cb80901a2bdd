"""An exponential moving average of the weights: what is evaluated and saved, while training goes on with the others.

The average follows w_avg <- d w_avg + (1 - d) w after every step, with d = min(decay, (1 + n) / (10 + n)) in step n, so
that the first weights, which are random, are soon forgotten (Polyak and Juditsky 1992; the rising decay is that of
TensorFlow's ExponentialMovingAverage).

    average = WeightAverage(model, 0.99)
    optimizer.step(); average.update()
    with average.in_place(): evaluate(model)
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of the weights of `model`."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._weights = dict(model.named_parameters())
        self._decay = decay
        self._shadow: dict[str, Tensor] | None = None
        self.updates = 0
        """How many steps are in the average."""

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step in."""
        if self._shadow is None:
            # Only now: what the weights begin with may be set after this object is made.
            self._shadow = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self._shadow.values()), [w.detach() for w in self._weights.values()], 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, shadow in (self._shadow or {}).items():
            weight = self._weights[name]
            kept = weight.detach().clone()
            weight.copy_(shadow)
            shadow.copy_(kept)

    def adopt(self) -> None:
        """Make the averaged weights those of the model, for good."""
        self._swap()

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored to go on exactly, besides `updates`."""
        return dict(self._shadow or {})

    def restore(self, tensors: dict[str, Tensor], updates: int) -> None:
        """Take back what `tensors` gave."""
        # In the order of the weights, whatever that of the state is: `update` goes through both together.
        there = {name: weight for name, weight in self._weights.items() if name in tensors}
        self._shadow = {name: tensors[name].to(weight.device) for name, weight in there.items()} or None
        self.updates = updates
