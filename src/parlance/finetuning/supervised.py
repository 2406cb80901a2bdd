"""Supervised fine-tuning: next-token prediction on the assistant's turns of demonstrations, nothing else in the loss.

A conversation is rendered with the chat template and tokenised once; the mask marks what the assistant wrote, its
terminator included, so the model learns to stop. Conversations that do not fit the context are left out and counted,
never trained on with their answer cut off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.finetuning.demonstrations import Demonstration
from parlance.models.padding import pad_right
from parlance.models.transformer import Transformer
from parlance.text.chat_template import encode_chat
from parlance.text.packing import IGNORE
from parlance.text.tokenizers import Tokenizer
from parlance.training.anomalies import BatchStore
from parlance.training.batching import LengthGroupedBatches
from parlance.training.checkpointing import TrainingStates
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import NextTokenObjective, TokenBatch, mean_loss
from parlance.training.optimizers import Optimizer
from parlance.training.precision import set_precision
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig


@dataclass(frozen=True)
class Example:
    """A tokenised conversation."""

    tokens: list[int]
    assistant: list[bool]
    """For each token: did the assistant write it (terminator included)?"""


def encode_demonstrations(
    tokenizer: Tokenizer, demonstrations: Sequence[Demonstration], context_length: int
) -> tuple[list[Example], int]:
    """Examples that fit `context_length`, and how many did not."""
    examples, too_long = [], 0
    for demonstration in demonstrations:
        tokens, assistant = encode_chat(tokenizer, demonstration.messages)
        # The tokens after the last assistant token teach nothing.
        end = max((place for place, flag in enumerate(assistant) if flag), default=-1) + 1
        tokens, assistant = tokens[:end], assistant[:end]
        if len(tokens) > context_length + 1:
            too_long += 1
        elif end > 0:
            examples.append(Example(tokens, assistant))
    return examples, too_long


def example_batch(examples: Sequence[Example], pad: int) -> TokenBatch:
    """Pad examples into one batch; targets outside the assistant's text are `IGNORE`."""
    inputs = pad_right([example.tokens[:-1] for example in examples], pad)
    targets = pad_right(
        [
            [token if flag else IGNORE for token, flag in zip(example.tokens[1:], example.assistant[1:], strict=True)]
            for example in examples
        ],
        IGNORE,
    )
    return TokenBatch(inputs, targets)


class ExampleBatches:
    """Endless batches of examples with exact state; see `LengthGroupedBatches`."""

    def __init__(self, examples: Sequence[Example], tokens_per_batch: int, pad: int, seed: int) -> None:
        self.examples, self.pad = examples, pad
        self.order = LengthGroupedBatches([len(example.tokens) for example in examples], tokens_per_batch, seed)

    def __call__(self, state: int | None) -> Iterator[tuple[TokenBatch, int]]:
        """(batch, state after it), from `state` on."""
        for indices, after in self.order(state):
            yield example_batch([self.examples[index] for index in indices], self.pad), after

    def once(self) -> list[TokenBatch]:
        """All examples once, in batches, for validation."""
        return [example_batch([self.examples[i] for i in batch], self.pad) for batch in self.order.epoch(0)]


class FinetuningConfig(Config):
    """How a base model is instruction-tuned."""

    rate_scale: float = Field(default=0.3, gt=0)
    """Learning rates, as a share of the pre-training ones."""
    tokens_per_batch: int = Field(default=2048, ge=1)
    """Most padded tokens a step."""
    rates: LearningRates = LearningRates()
    """Peak learning rates of pre-training."""
    training: TrainingConfig = TrainingConfig(warmup=0.05, decay=0.95)
    """Schedule and clipping."""
    validation_examples: int = Field(default=200, ge=1)
    """Conversations of the validation split measured on the way."""


@dataclass(frozen=True)
class FinetuningResult:
    """What fine-tuning did."""

    steps: int
    seconds: float
    examples: int
    too_long: int
    """Training conversations left out because they exceed the context."""
    validation_loss: float | None
    """Nats per response token on held-out conversations at the end."""


def finetune(
    model: Transformer,
    tokenizer: Tokenizer,
    train: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    folder: Path,
    config: FinetuningConfig,
    budget: Budget,
    *,
    metrics: MetricsLog,
    seed: int,
    resume: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> FinetuningResult:
    """Instruction-tune `model` in place; resume states live in `folder`/training. Raises UserError, Interrupted."""
    assert model.context_length is not None
    set_precision(model, config.training.precision)
    examples, too_long = encode_demonstrations(tokenizer, train, model.context_length)
    if not examples:
        raise UserError(
            f"none of the {len(train)} demonstrations fits the model's context of {model.context_length} tokens"
        )
    held_out, _ = encode_demonstrations(tokenizer, validation[: config.validation_examples], model.context_length)
    checks = ExampleBatches(held_out, config.tokens_per_batch, tokenizer.pad, seed).once() if held_out else []

    fit = MemoryFit()

    def validate() -> dict[str, float]:
        with trainer.evaluated():
            return {"validation_loss": fit.run(lambda parts: mean_loss(model, parts), checks)}

    batches = ExampleBatches(examples, config.tokens_per_batch, tokenizer.pad, seed)
    optimizer = Optimizer(parameter_groups(model, config.rates, config.rate_scale), model.compute_dtype)
    store = BatchStore(folder / "anomalies", tokenizer.decode)
    trainer = Trainer(model, NextTokenObjective(), batches, optimizer, config.training, anomalies=store, fit=fit)
    states = TrainingStates(folder / "training")
    loop = Loop(
        "sft",
        budget,
        states,
        metrics,
        validate if checks else None,
        checkpoint_seconds=checkpoint_seconds,
        background=True,
    )
    result = loop.run(trainer, resume=resume)
    loss = validate()["validation_loss"] if checks else None
    trainer.finish()
    return FinetuningResult(result.steps, result.seconds, len(examples), too_long, loss)
