"""Pre-training at one size: a model, compiled or not, arranged over the processes, and the loops that train it.

`pretraining.py` makes one of these for every size that it tries and for the one that it chooses.

    sized = SizedRun(setting, shape, compiling=True)
    trainer, result = sized.run("pretrain", Budget(steps=100), states, metrics, resume=False)
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

import torch

from parlance.core.devices import free_memory_bytes, matrix_rate
from parlance.core.formatting import count, size
from parlance.core.metrics import MetricsLog
from parlance.core.progress import say
from parlance.models.building import build
from parlance.models.checkpoints import load_model
from parlance.models.memory import training_bytes
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.text.token_dataset import TokenDataset
from parlance.training.anomalies import BatchStore
from parlance.training.compilation import compile_training
from parlance.training.loop import Budget, Loop, LoopResult
from parlance.training.loss_target import LossTarget
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import NextTokenObjective
from parlance.training.parallel import ParallelConfig, World, arrange
from parlance.training.parallel.division import divide_batch
from parlance.training.pretraining_config import PretrainingConfig, make_task
from parlance.training.rates import parameter_groups
from parlance.training.saving import States
from parlance.training.tasks import DenoisingTask, NextTokenTask
from parlance.training.throughput import Speed, model_flops_per_token
from parlance.training.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """What a pre-training run is given, whatever size it takes."""

    train: TokenDataset
    validation: TokenDataset
    folder: Path
    config: PretrainingConfig
    vocab_size: int
    """Of the tokenizer."""
    seed: int
    device: torch.device
    dtype: torch.dtype
    """Of activations and products."""
    initial: Path | None
    """Checkpoint to go on from."""
    world: World
    checkpoint_seconds: float
    sample: Callable[[NeuralLanguageModel, int], str | None] | None
    """Writes a text of so many tokens."""
    decode: Callable[[list[int]], str] | None
    """Makes saved batches readable."""

    @cached_property
    def bits_per_byte(self) -> dict[str, float]:
        """What mean losses in nats per token are multiplied by: bits per byte of each split's text."""
        splits = (("loss", self.train), ("validation_loss", self.validation))
        return {name: len(split.tokens) / max(1, split.text_bytes) / math.log(2) for name, split in splits}

    def fresh(self, shape: Any) -> NeuralLanguageModel:
        """A model as it is before its first step."""
        model: NeuralLanguageModel = build(shape)
        if self.initial is None:
            model.initialise(torch.Generator().manual_seed(self.seed))
        else:
            model.load_state_dict(load_model(self.initial).state_dict())
        model.to(self.device)
        model.compute_dtype = self.dtype
        return model


class SizedRun:
    """A model of one size and its training. All processes make one alike."""

    def __init__(self, setting: Setting, shape: Any, *, compiling: bool) -> None:
        """`compiling`: where that is possible and right, see `compilation.py`."""
        self.setting, self.shape = setting, shape
        config, world, device = setting.config, setting.world, setting.device
        self.task = make_task(config, shape, setting.vocab_size)
        self._checks = self.task.validation(setting.validation, config.validation_tokens, device)
        self._fit = MemoryFit()
        model = setting.fresh(shape)
        self.parameters = model.parameter_count()
        self.matrix_parameters = model.matrix_parameters()
        _divide_for_memory(model, config, self._fit, device)
        # What an encoder-decoder reads is divided between two sequences of changing lengths: its share is not told.
        length = self.task.training_length
        self._flops = None if isinstance(self.task, DenoisingTask) else model_flops_per_token(model, length)
        self.compiled = False
        staged = config.parallel.pipeline > 1
        if compiling and staged and _compiles(model, config.parallel):
            # Before it is divided: a stage has no loss to compare.
            rows = divide_batch(self.first_batch(), config.parallel.rows(world.size))
            self._compile(model, rows)
        self.here = arrange(model, config.parallel, world, self._fit)
        if compiling and not staged and _compiles(self.here.model, config.parallel):
            self._compile(self.here.model, self._fit.divide([self.here.part(self.first_batch())])[0])

    def _compile(self, model: Transformer, batch: Any) -> None:
        """Compile on all processes, or on none."""
        self.compiled = compile_training(model, self.task.objective, batch, self.setting.world.objection)

    def _batches(self, state: Any) -> Iterator[tuple[Any, Any]]:
        return self.task.batches(self.setting.train, self.setting.seed, state, self.setting.device)

    def first_batch(self) -> Any:
        """The first batch of training."""
        return next(self._batches(None))[0]

    def begin_anew(self) -> None:
        """Give the model the weights that it has before its first step."""
        self.here.take(self.setting.fresh(self.shape))

    def states(self, folder: Path, kept: int) -> States:
        """Resume states in a folder."""
        return self.here.states(folder, kept)

    def validate(self, trainer: Trainer[Any, Any]) -> dict[str, float]:
        """The loss over the part of the validation split that is measured on the way."""
        with trainer.evaluated():
            loss, items = self.here.loss_sums(self.task.objective, self._checks)
            return {"validation_loss": loss / items}

    def run(
        self, stage: str, budget: Budget, states: States, log: MetricsLog, *, resume: bool, pilot: bool = False
    ) -> tuple[Trainer[Any, Any], LoopResult]:
        """Train until the budget is spent; a `pilot` neither validates nor writes on the way."""
        setting, trainer = self.setting, self._trainer()
        # Only a model that says every token of a text has a loss per byte of it.
        bits = setting.bits_per_byte if isinstance(self.task, NextTokenTask) else {}
        peak = partial(matrix_rate, setting.device, setting.dtype)
        loop = Loop(
            stage,
            budget,
            states,
            log,
            partial(self.validate, trainer),
            0 if pilot else setting.config.validations,
            checkpoint_seconds=setting.checkpoint_seconds,
            target=self._target(trainer, budget.until_loss) if budget.until_loss is not None else None,
            speed=Speed(self._flops, lambda: peak() * setting.world.size, bits),
            observe=None if pilot else partial(self._write_sample, trainer),
            background=self.here.background,
            agree=setting.world.largest,
        )
        return trainer, loop.run(trainer, resume=resume)

    def _trainer(self) -> Trainer[Any, Any]:
        setting, model = self.setting, self.here.model
        config = setting.config
        return Trainer(
            model,
            self.task.objective,
            self._batches,
            self.here.optimizer(parameter_groups(model, config.rates), model.compute_dtype),
            config.training,
            self.here.gradients,
            anomalies=BatchStore(setting.folder / "anomalies", setting.decode) if setting.world.first else None,
            fit=self._fit,
        )

    def _write_sample(self, trainer: Trainer[Any, Any], step: int) -> None:
        """What the model writes by now, into samples.jsonl."""
        setting, tokens = self.setting, self.setting.config.sample_tokens
        if setting.sample is None or not tokens:
            return
        with trainer.evaluated():
            whole = self.here.whole()
            text = None if whole is None else setting.sample(whole, tokens)
        if text is not None:
            samples = setting.world.log(setting.folder / "samples.jsonl")
            samples.rewind("pretrain", step - 1)
            samples.write("pretrain", step, text=text)

    def _target(self, trainer: Trainer[Any, Any], loss: float) -> LossTarget:
        """The measurements of a loss over the whole validation split."""
        objective = self.task.objective
        # Of next-token prediction the last batch is empty in part: a head compiled for full ones must not see it.
        plain: Any = NextTokenObjective() if isinstance(self.task, NextTokenTask) else objective

        def measured(make: Callable[[], Any], full: bool) -> tuple[float, int]:
            # Code compiled for training runs in gradient mode, or it would be compiled again.
            with torch.set_grad_enabled(self.compiled):
                return self.here.loss_sums(objective if full else plain, [make()])

        whole = self.task.whole(self.setting.validation, self.setting.device)
        measurements = [partial(measured, make, number + 1 < len(whole)) for number, make in enumerate(whole)]
        return LossTarget(loss, measurements, trainer.evaluated)


def _compiles(model: NeuralLanguageModel, parallel: ParallelConfig) -> TypeGuard[Transformer]:
    """Whether compiling pays: blocks of one shape, no routing that depends on the data.

    What exchanges within its blocks is compiled as it is divided, which stages of a pipeline are not.
    """
    changed = parallel.pipeline > 1 and parallel.tensor * parallel.context > 1
    return isinstance(model, Transformer) and model.config.experts is None and not changed


def _divide_for_memory(
    model: NeuralLanguageModel, config: PretrainingConfig, fit: MemoryFit, device: torch.device
) -> None:
    """Say how large the model is, and divide the batches where the memory of training is known not to suffice."""
    told = ""
    if (
        isinstance(model, Transformer)
        and model.config.experts is None
        and model.config.causal
        and _may_be_large(model, config)
    ):

        def needed(rows: int) -> int:
            return training_bytes(model, rows, config.context_length)

        told = f"; training takes about {size(needed(config.batch_size))} of memory beyond the program's own"
        fit.expect(needed, free_memory_bytes(device), config.batch_size)
    say(f"{count(model.parameter_count())} parameters{told}")


def _may_be_large(model: Transformer, config: PretrainingConfig) -> bool:
    """Whether training may take a gigabyte. Counting exactly takes a second, which a short run need not wait for."""
    sizes, length = model.config, config.context_length
    block = 20 * sizes.width + 4 * sizes.feed_forward_width + 4 * sizes.heads * length
    numbers = config.batch_size * length * (sizes.layers * block + 4 * sizes.vocab_size)
    return 4 * (5 * model.parameter_count() + numbers) >= 2**30
