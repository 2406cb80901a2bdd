"""Where a model is trained: by this process alone, or by many together (`parallel/distributed.py`).

What a training stage needs to know of it: the model as this process holds it, gradients, an optimizer, resume states,
losses over whole batches, and the whole weights in the end.

    here = OneProcess(model, MemoryFit())
    trainer = Trainer(here.model, objective, batches, here.optimizer(groups), config, here.gradients)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from parlance.models.neural import NeuralLanguageModel
from parlance.training.checkpointing import TrainingStates
from parlance.training.gradients import Gradients, SingleProcess
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import Objective, loss_sums
from parlance.training.optimizers import Optimizer, ParameterGroup
from parlance.training.saving import States


class Arrangement(Protocol):
    """See the module."""

    background: bool
    """Whether resume states may be written in a thread."""

    @property
    def model(self) -> NeuralLanguageModel:
        """What this process trains of the model."""
        ...

    @property
    def gradients(self) -> Gradients:
        """How a step's gradient is computed."""
        ...

    def optimizer(self, groups: list[ParameterGroup], compute_dtype: torch.dtype) -> Optimizer:
        """An optimizer of the parameters of `model` in `groups`."""
        ...

    def states(self, folder: Path, kept: int) -> States:
        """Resume states in a folder, of which the newest `kept` stay."""
        ...

    def part(self, batch: Any) -> Any:
        """What this process computes of a batch."""
        ...

    def loss_sums(self, objective: Objective[Any, Any], batches: Sequence[Any]) -> tuple[float, int]:
        """Summed loss and count over whole batches."""
        ...

    def take(self, whole: NeuralLanguageModel) -> None:
        """Take over the weights of a whole model."""
        ...

    def whole(self) -> NeuralLanguageModel | None:
        """The whole model, of which `model` may be a part; None where another process has it."""
        ...


class OneProcess:
    """This process alone."""

    background = True

    def __init__(self, model: NeuralLanguageModel, fit: MemoryFit) -> None:
        self.model = model
        self.gradients = SingleProcess(fit)
        self._fit = fit

    def optimizer(self, groups: list[ParameterGroup], compute_dtype: torch.dtype) -> Optimizer:
        """See `Arrangement`."""
        return Optimizer(groups, compute_dtype)

    def states(self, folder: Path, kept: int) -> TrainingStates:
        """See `Arrangement`."""
        return TrainingStates(folder, kept)

    def part(self, batch: Any) -> Any:
        """See `Arrangement`."""
        return batch

    def loss_sums(self, objective: Objective[Any, Any], batches: Sequence[Any]) -> tuple[float, int]:
        """See `Arrangement`."""
        return self._fit.run(lambda parts: loss_sums(self.model, parts, objective), batches)

    @torch.no_grad()
    def take(self, whole: NeuralLanguageModel) -> None:
        """See `Arrangement`."""
        for new, old in zip(whole.parameters(), self.model.parameters(), strict=True):
            old.copy_(new)

    def whole(self) -> NeuralLanguageModel:
        """See `Arrangement`."""
        return self.model
