"""How a base model is made: the settings of pre-training, and what follows from them for model and data.

config = pretraining_config("transformer")
check(config); task = make_task(config, shape(4, 256, 4096, config), 4096)
"""

from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field, model_validator

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.text.packing import Packing
from parlance.training.architectures import ARCHITECTURES, Kind, configure
from parlance.training.denoising import DenoisingTokens
from parlance.training.loop import Budget
from parlance.training.parallel import ParallelConfig
from parlance.training.precision import check_precision
from parlance.training.rates import LearningRates
from parlance.training.tasks import DenoisingTask, MaskedTokenTask, NextTokenTask, Task
from parlance.training.trainer import TrainingConfig


class PretrainingConfig(Config):
    """How a base model is made."""

    architecture: Kind = "transformer"
    """What is trained: see `architectures.py`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's own configuration, such as `cell` of a recurrent model or `positions` of a Transformer."""
    context_length: int = Field(default=256, ge=2)
    """Tokens a training window, and the longest text the model reads."""
    training_length: int | None = Field(default=None, ge=2)
    """Tokens a training window where that is less, for a model whose attention reaches no further; None: the same."""
    layers: int | None = Field(default=None, ge=1)
    """Blocks; None: chosen from the budget."""
    width: int | None = Field(default=None, ge=1)
    """Size of the hidden activations (a Transformer's: a multiple of its head's); None: chosen from the budget."""
    batch_size: int = Field(default=8, ge=1)
    """Windows a step."""
    packing: Packing = "stream"
    """Windows cut from one stream of all documents, or whole documents packed into rows (best-fit), each seeing itself
    only. Packing tears fewer documents, pads some of every row, and computes more slowly."""
    tokens_per_parameter: float = Field(default=0.2, gt=0)
    """The largest size is chosen whose training sees at least this many tokens per matrix parameter in the budget."""
    pilot_share: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the budget for measuring speeds and for pilots: short runs of several sizes, from which the size is
    chosen and the loss predicted. 0: no pilots; speeds alone choose the size."""
    compile: bool | None = None
    """Use torch.compile; None: where the budget is a minute or more and a C++ compiler is there."""
    rates: LearningRates = LearningRates()
    """Peak learning rates."""
    training: TrainingConfig = TrainingConfig()
    """Schedule and clipping."""
    validation_tokens: int = Field(default=16_384, ge=1)
    """Tokens of the validation split measured on the way."""
    validations: int = Field(default=4, ge=0)
    """How many times to validate on the way, evenly."""
    sample_tokens: int = Field(default=48, ge=0)
    """Length of the text that the model writes at each validation, into samples.jsonl; 0: none."""
    kept_states: int = Field(default=2, ge=1)
    """How many of the newest resume states stay on disk."""
    tensorboard: bool = False
    """Write the figures of the log as TensorBoard events too, into the folder tensorboard."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes that torchrun starts divide the work."""

    @model_validator(mode="after")
    def _training_windows_fit(self) -> Self:
        if self.training_length is not None and self.training_length > self.context_length:
            raise ValueError(
                f"training_length {self.training_length} is more than context_length {self.context_length}"
            )
        return self

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        plain = self.architecture == "transformer" and not {"heads", "head_width"} & self.model.keys()
        if plain and self.width is not None and self.width % 64:
            raise ValueError(f"width {self.width} is not a multiple of 64, the width of one head")
        return self


def pretraining_config(architecture: Kind) -> PretrainingConfig:
    """The settings that suit an architecture."""
    return PretrainingConfig(architecture=architecture, rates=ARCHITECTURES[architecture].rates)


def shape(layers: int, width: int, vocab_size: int, config: PretrainingConfig) -> Any:
    """The model's configuration at a rung of the ladder."""
    return configure(
        config.architecture,
        layers=layers,
        width=width,
        vocab_size=vocab_size,
        context_length=config.context_length,
        fields=config.model,
    )


def check(config: PretrainingConfig) -> None:
    """Raises UserError for a model that cannot be, before any work is done for it."""
    architecture = ARCHITECTURES[config.architecture]
    first = architecture.ladder[0]
    if (config.layers is None) != (config.width is None):
        raise UserError("set both layers and width, or neither")
    model = shape(config.layers or first[0], config.width or first[1], 1000, config)
    if config.packing == "best-fit" and (config.architecture != "transformer" or config.model.get("dilated_segments")):
        raise UserError("only a Transformer without dilated attention reads packed documents: choose packing=stream")
    make_task(config, model, 1000)


def check_start(config: PretrainingConfig, budget: Budget, device: torch.device) -> None:
    """Raises UserError where a new model cannot be trained on a device within a budget, before the text is read."""
    check(config)
    budget.check("pretrain")
    check_precision(config.training.precision, device)
    if config.layers is None and budget.seconds is None:
        raise UserError("with a budget in steps or tokens, set the model's layers and width")


def divisible_sizes(config: PretrainingConfig, processes: int) -> tuple[tuple[int, int], ...]:
    """(layers, width) of the models among which a run chooses: what is given, or what of the ladder can be divided so.

    Raises UserError where there is none, or where batches cannot be divided over so many processes.
    """
    ladder = ARCHITECTURES[config.architecture].ladder
    if config.layers is not None and config.width is not None:
        ladder = ((config.layers, config.width),)
    sizes = config.parallel.sizes(processes)
    if processes == 1:
        return ladder
    from parlance.training.parallel import refusals  # it takes half a second, which one process need not wait for

    refusals.check_lengths({config.context_length, config.training_length or config.context_length}, sizes)
    found, why = list[tuple[int, int]](), UserError()
    for layers, width in ladder:
        try:
            with torch.device("meta"):
                model = build(shape(layers, width, 1000, config))
            refusals.check_division(model, sizes, config.parallel.pieces)
            refusals.check_rows(config.batch_size, refusals.rows_needed(model, sizes))
            found.append((layers, width))
        except UserError as error:
            why = error
    if not found:
        raise why
    return tuple(found)


def check_text(corpus: Path, context_length: int) -> None:
    """Raises UserError where a split of a prepared corpus is surely too short, before it is encoded.

    No tokenizer makes more tokens of a text than its file has bytes.
    """
    for split, name in (("train", "training"), ("validation", "validation")):
        file = corpus / f"{split}.jsonl"
        if file.is_file() and file.stat().st_size <= context_length:
            raise UserError(
                f"the {name} split of {corpus} has {file.stat().st_size} bytes, less than one context of "
                f"{context_length} tokens; bring more text or set a smaller context_length"
            )


def make_task(config: PretrainingConfig, model: Any, vocab_size: int) -> Task:
    """What a model of the configuration `model` is trained on; `vocab_size` is the tokenizer's.

    Raises UserError where the two do not fit, or the packing does not.
    """
    task = ARCHITECTURES[config.architecture].task
    if task == "next-token":
        return NextTokenTask(config.batch_size, config.context_length, config.packing, config.training_length)
    if config.packing != "stream":
        raise UserError(f"a model of the kind {config.architecture} reads windows of a stream: set packing=stream")
    if config.training_length is not None:
        raise UserError(
            f"a model of the kind {config.architecture} trains on whole contexts: leave out training_length"
        )
    if task == "masked":
        if model.vocab_size <= vocab_size:
            raise UserError(
                f"the encoder has {model.vocab_size} tokens and the tokenizer {vocab_size}: there is none for the mask"
            )
        return MaskedTokenTask(config.batch_size, config.context_length, mask_token=vocab_size, vocab_size=vocab_size)
    # Rows beyond the vocabulary that begin a target or a source are not those of spans.
    others = [token for token in (model.start_token, *model.empty_source) if token >= model.first_sentinel]
    sentinels = min([model.vocab_size + model.sentinels, *others]) - model.first_sentinel
    tokens = DenoisingTokens(model.first_sentinel, sentinels, model.start_token, model.empty_source)
    return DenoisingTask(config.batch_size, config.context_length, tokens)
