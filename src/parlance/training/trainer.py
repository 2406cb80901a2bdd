"""The one trainer: any objective, any model, any batches.

A step draws `accumulation` micro-batches, sums their losses, divides the gradient by the count of the whole step,
clips, and updates, unless the step would do harm (`anomalies.py`). Batches come from iterators that yield (batch,
state); the state stored is that after the last batch used, so a resumed run sees exactly the batches it would have
seen.

    trainer = Trainer(model, objective, batches, optimizer, TrainingConfig())
    Loop("pretrain", Budget(steps=100), states, metrics).run(trainer)
    trainer.finish()
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.training.anomalies import BatchStore, Guard
from parlance.training.averaging import WeightAverage
from parlance.training.gradients import Gradients, SingleProcess
from parlance.training.loss_scaling import LossScaler, ScaledObjective
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import Batch, Objective
from parlance.training.optimizers import Optimizer
from parlance.training.precision import Precision
from parlance.training.schedules import Schedule, rate_share

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT", bound=Batch)

FIRST_PROGRESS = 1e-3
"""Share of the budget from which the first step takes its rate..."""
FIRST_SHARE = 0.05
"""... or this share of the warm-up, where that is earlier."""


class TrainingConfig(Config):
    """The update rule of a stage, apart from the optimizer's own rates."""

    precision: Precision = "auto"
    """Of activations and matrix products; auto: bf16 where the machine is fast at it, else fp32. Weights are fp32."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches a step."""
    schedule: Schedule = "trapezoid"
    """Shape of the learning rate over the budget; cosine and linear fall from the end of the warm-up on."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the budget over which the learning rate rises from zero."""
    decay: float = Field(default=0.6, ge=0, le=1)
    """Share of the budget over which a trapezoid falls linearly to `final`."""
    final: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak learning rate at the end."""
    clip: float = Field(default=1.0, gt=0)
    """Largest joint gradient norm."""
    skip_sigma: float = Field(default=6.0, ge=0)
    """A step whose loss or gradient norm is this many standard deviations above the last 128 is left out; 0: none."""
    average: float = Field(default=0.0, ge=0, lt=1)
    """Decay of a moving average of the weights, which is then what is evaluated and saved; 0: no average."""

    @model_validator(mode="after")
    def _rise_and_fall_fit(self) -> Self:
        if self.schedule == "trapezoid" and self.warmup + self.decay > 1 + 1e-9:  # 0.05 + 0.95 may round up
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
        *,
        anomalies: BatchStore | None = None,
        fit: MemoryFit | None = None,
    ) -> None:
        """`fit`: how `gradients` divides batches, where it does; it becomes part of the state."""
        self.model, self.objective, self.optimizer, self.config = model, objective, optimizer, config
        self._fit = fit or MemoryFit()
        self.gradients = gradients or SingleProcess(self._fit)
        self._batches = batches
        self._source: Iterator[tuple[BatchT, Any]] | None = None
        self._data_state: Any = None
        self._scaler = LossScaler() if config.precision == "fp16" else None
        self._guard = Guard(config.skip_sigma, anomalies)
        self._average = WeightAverage(model, config.average) if config.average else None
        self.items = 0
        """What the objective counted so far (tokens, prompts)."""
        self.tokens = 0
        """Tokens read so far, padding included."""

    @property
    def skipped(self) -> int:
        """Steps that were left out so far."""
        return self._guard.skipped

    def step(self, progress: float) -> dict[str, float]:
        """One optimizer step; returns mean loss, gradient norm, share of the peak rate, counts, and mean metrics."""
        batches = self._draw()
        objective = self.objective if self._scaler is None else ScaledObjective(self.objective, self._scaler)
        factor = 1.0 if self._scaler is None else self._scaler.factor
        sums = self.gradients.backward(self.model, objective, batches)
        if sums.count == 0:
            raise UserError("a batch has nothing to learn from: every target is masked")
        self.optimizer.divide_gradients(sums.count * factor)
        norm = self.gradients.clip(self.optimizer, self.config.clip)
        loss = sums.loss / factor / sums.count
        config = self.config
        if self.optimizer.steps == 0:  # the first step must move too: progress is still 0 there
            progress = max(progress, min(FIRST_PROGRESS, FIRST_SHARE * config.warmup))
        scale = rate_share(config.schedule, progress, config.warmup, config.decay, config.final)
        # Gradients that are too large for fp16 only say that the factor is: no anomaly.
        overflow = self._scaler is not None and math.isfinite(loss) and self._scaler.overflows(norm)
        if not overflow and self._guard.passes(loss, norm, batches, self.optimizer.parameters()):
            self.optimizer.step(scale)
            if self._average is not None:
                self._average.update()
        self.optimizer.zero_gradients()
        self.items += sums.count
        self.tokens += sum(text.numel() for batch in batches for text in batch.texts())
        means = {name: value / sums.count for name, value in sums.metrics.items()}
        if self._guard.skipped:
            means |= {"skipped": self._guard.skipped, "unsound": self._guard.in_a_row}
        counts = {"items": self.items, "tokens": self.tokens}
        return counts | {"loss": loss, "gradient_norm": norm, "rate_share": scale} | means

    def _draw(self) -> list[BatchT]:
        """The micro-batches of a step."""
        if self._source is None:
            self._source = self._batches(self._data_state)
        batches = []
        for _ in range(self.config.accumulation):
            batch, self._data_state = next(self._source)
            batches.append(batch)
        return batches

    def evaluated(self) -> AbstractContextManager[None]:
        """Within the block the model has the weights that are to be evaluated: the averaged ones where there are."""
        return nullcontext() if self._average is None else self._average.in_place()

    def finish(self) -> None:
        """Give the model the weights that are to be saved: the averaged ones where there are."""
        if self._average is not None:
            self._average.adopt()

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """See `LoopBody`."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.model.named_parameters()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()}
        info = {
            "items": self.items,
            "tokens": self.tokens,
            "data": self._data_state,
            "optimizer_steps": self.optimizer.steps,
            "guard": self._guard.capture(),
            "parts": self._fit.parts,
        }
        if self._scaler is not None:
            info["scaler"] = self._scaler.capture()
        if self._average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self._average.tensors().items()}
            info["average_updates"] = self._average.updates
        return tensors, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """See `LoopBody`."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.optimizer.load_state(tensors, info["optimizer_steps"])
        self._guard.restore(info["guard"])
        # The same division gives the same bits; where less memory is free now than then, it stays finer.
        self._fit.parts = max(self._fit.parts, info.get("parts", 1))
        if self._scaler is not None:
            self._scaler.restore(info["scaler"])
        if self._average is not None:
            prefix = "average."
            shadow = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self._average.restore(shadow, info["average_updates"])
        self.items, self.tokens = info["items"], info["tokens"]
        self._data_state, self._source = info["data"], None
