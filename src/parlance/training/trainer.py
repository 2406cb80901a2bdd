"""The one trainer: any objective, any model, any batches.

A step draws `accumulation` micro-batches, sums their losses, divides the gradient by the count of the whole step,
clips, and updates. Batches come from iterators that yield (batch, state); the state stored is that after the last
batch used, so a resumed run sees exactly the batches it would have seen.

    trainer = Trainer(model, objective, batches, optimizer, TrainingConfig())
    Loop("pretrain", Budget(steps=100), states, metrics).run(trainer)
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.training.gradients import Gradients, SingleProcess
from parlance.training.objectives import Objective
from parlance.training.optimizers import Optimizer
from parlance.training.schedules import trapezoid

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT")


class TrainingConfig(Config):
    """The update rule of a stage, apart from the optimizer's own rates."""

    accumulation: int = Field(default=1, ge=1)
    """Micro-batches a step."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the budget over which the learning rate rises from zero."""
    decay: float = Field(default=0.6, ge=0, le=1)
    """Share of the budget over which it falls linearly to `final`."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak learning rate at the end."""
    clip: float = Field(default=1.0, gt=0)
    """Largest joint gradient norm."""

    @model_validator(mode="after")
    def _rise_and_fall_fit(self) -> Self:
        if self.warmup + self.decay > 1 + 1e-9:  # 0.05 + 0.95 may round up
            raise ValueError(
                f"warmup ({self.warmup:g}) and decay ({self.decay:g}) are shares of one budget; "
                "make their sum at most 1"
            )
        return self


class Trainer(Generic[ModelT, BatchT]):
    """A `LoopBody` that minimises an objective. Trains `model` in place."""

    def __init__(
        self,
        model: ModelT,
        objective: Objective[ModelT, BatchT],
        batches: Callable[[Any], Iterator[tuple[BatchT, Any]]],
        optimizer: Optimizer,
        config: TrainingConfig,
        gradients: Gradients | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer, self.config = model, objective, optimizer, config
        self.gradients = gradients or SingleProcess()
        self._batches = batches
        self._source: Iterator[tuple[BatchT, Any]] | None = None
        self._data_state: Any = None
        self.items = 0
        """What the objective counted so far (tokens, prompts)."""

    def step(self, progress: float) -> dict[str, float]:
        """One optimizer step; returns mean loss, gradient norm, share of the peak rate, and mean metrics."""
        if self._source is None:
            self._source = self._batches(self._data_state)
        batches = []
        for _ in range(self.config.accumulation):
            batch, self._data_state = next(self._source)
            batches.append(batch)
        sums = self.gradients.backward(self.model, self.objective, batches)
        if sums.count == 0:
            raise UserError("a batch has nothing to learn from: every target is masked")
        self.optimizer.divide_gradients(sums.count)
        norm = self.gradients.clip(self.optimizer, self.config.clip)
        # The first step must move too: progress is still 0 there.
        scale = trapezoid(max(progress, 1e-3), self.config.warmup, self.config.decay, self.config.final)
        if math.isfinite(norm):
            self.optimizer.step(scale)
        else:
            say("a step was skipped: its gradient is not finite")
        self.optimizer.zero_gradients()
        self.items += sums.count
        means = {name: value / sums.count for name, value in sums.metrics.items()}
        mean = sums.loss / sums.count
        return {"items": self.items, "loss": mean, "gradient_norm": norm, "rate_share": scale, **means}

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `LoopBody`."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.model.named_parameters()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        return tensors, {"items": self.items, "data": self._data_state, "optimizer_steps": self.optimizer.steps}

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """See `LoopBody`."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizer.load_state(tensors, info["optimizer_steps"])
        self.items, self._data_state, self._source = info["items"], info["data"], None
