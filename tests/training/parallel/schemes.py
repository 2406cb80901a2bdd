"""What the tests of whole schemes train: small models, the data of every step, and both ways to run them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.packing import IGNORE
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import NextTokenObjective, TokenBatch, mean_loss
from parlance.training.optimizers import Optimizer
from parlance.training.parallel.distributed import Distributed
from parlance.training.parallel.mesh import ParallelConfig
from parlance.training.parallel.processes import World
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

ROWS, LENGTH = 8, 16
PLAIN = {"vocab_size": 64, "context_length": LENGTH, "width": 32, "layers": 2, "heads": 4, "head_width": 8}
NGRAMS = {**PLAIN, "ngram_tables": ((2, 257),)}
EXPERTS = {**PLAIN, "experts": 4, "experts_per_token": 2}
CONSTANT = TrainingConfig(warmup=0.0, decay=0.0, accumulation=2)
AVERAGED = CONSTANT.model_copy(update={"average": 0.9})
# Small rates: in the first steps AdamW divides by almost nothing, and multiplies what fp32 rounds.
_SMALL = {
    "matrices": 0.01,
    "matrices_adamw": 0.0005,
    "embedding": 0.01,
    "head": 0.001,
    "vectors": 0.002,
    "ngrams": 0.01,
}
MUON = LearningRates(optimizer="muon", **_SMALL)
ADAMW = LearningRates(optimizer="adamw", **_SMALL)


def small_model(sizes: dict[str, Any]) -> Transformer:
    """Every weight random, those that training starts at 0 or 1 too."""
    model = Transformer(TransformerConfig(**sizes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            mean, spread = (1.0, 0.3) if parameter.ndim == 1 else (0.0, parameter.shape[-1] ** -0.5)
            parameter.normal_(mean, spread, generator=generator)
    return model


def batches(state: int | None, rows: int = ROWS) -> Iterator[tuple[TokenBatch, int]]:
    """Endless random rows with a seed for dropout; they count unequal numbers of targets, so the ranks do too."""
    number = state or 0
    while True:
        generator = torch.Generator().manual_seed(number)
        inputs, targets = torch.randint(0, 64, (2, rows, LENGTH), generator=generator)
        for row in range(rows):
            targets[row, : (5 * row + number) % LENGTH] = IGNORE
        number += 1
        yield TokenBatch(inputs, targets, noise=1000 * number), number


def world_here() -> World:
    """This process of the default process group."""
    return World(dist.get_rank(), dist.get_world_size())


def trainer_alone(model: Any, rates: LearningRates, config: TrainingConfig = CONSTANT) -> Trainer:
    """One process."""
    return Trainer(model, NextTokenObjective(), batches, Optimizer(parameter_groups(model, rates)), config)


def trainer_of(parts: Distributed, rates: LearningRates, config: TrainingConfig = CONSTANT) -> Trainer:
    """This process of several."""
    optimizer = parts.optimizer(parameter_groups(parts.model, rates))
    return Trainer(parts.model, NextTokenObjective(), batches, optimizer, config, gradients=parts)


def steps(trainer: Trainer, count: int) -> list[dict[str, float]]:
    """Figures of each step."""
    return [trainer.step(0.5) for _ in range(count)]


def validation() -> list[TokenBatch]:
    """Batches that training does not see so soon."""
    return [next(batches(1000 + number))[0] for number in range(2)]


Outcome = tuple[list[dict[str, float]], dict[str, Tensor], float]
"""Figures of each step, weights, and validation loss after them."""


def train_alone(sizes: dict[str, Any], rates: LearningRates, count: int) -> Outcome:
    """One process."""
    model = small_model(sizes)
    figures = steps(trainer_alone(model, rates), count)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return figures, weights, mean_loss(model, validation())


def train_together(sizes: dict[str, Any], parallel: ParallelConfig, rates: LearningRates, count: int) -> Outcome:
    """This process of several; weights on the first only."""
    parts = Distributed(small_model(sizes), parallel, world_here(), MemoryFit())
    figures = steps(trainer_of(parts, rates), count)
    loss, count = parts.loss_sums(NextTokenObjective(), validation())
    parts.check()
    return figures, weights_of(parts), loss / count


def weights_of(parts: Distributed) -> dict[str, Tensor]:
    """The whole weights, on the first process."""
    whole = parts.whole()
    return {} if whole is None else {name: weight.detach().clone() for name, weight in whole.named_parameters()}


def train_and_save(
    sizes: dict[str, Any], parallel: ParallelConfig, rates: LearningRates, folder: Path, count: int
) -> dict[str, Tensor]:
    """Train, and leave a resume state; the weights, on the first process."""
    parts = Distributed(small_model(sizes), parallel, world_here(), MemoryFit())
    trainer = trainer_of(parts, rates, AVERAGED)
    steps(trainer, count)
    parts.states(folder, 2).save(count, *trainer.capture())
    return weights_of(parts)


def resume_and_train(
    sizes: dict[str, Any], parallel: ParallelConfig, rates: LearningRates, folder: Path, count: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Go on from the newest state; the weights that were found there, those after `count` more steps, their average."""
    model = small_model(sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    parts = Distributed(model, parallel, world_here(), MemoryFit())
    trainer = trainer_of(parts, rates, AVERAGED)
    found = parts.states(folder, 2).latest()
    assert found is not None
    _, tensors, info = found
    trainer.restore(tensors, info)
    resumed = weights_of(parts)
    steps(trainer, count)
    trained = weights_of(parts)
    with trainer.evaluated():
        return resumed, trained, weights_of(parts)
