"""Pre-training: from token shards and a budget to a base model, with the loss predicted before it starts.

1. Choose the model's size from the time budget and the measured speed of this machine.
2. Compile where that pays.
3. Train two short pilots of that very recipe to their end; fit L(x) = a x^-b; state the loss the run should reach.
4. Train; validate on the way; keep resume states.

  result = pretrain(tokens, Path("base"), PretrainingConfig(), Budget(seconds=200), ...)
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeGuard

import torch
from pydantic import Field, model_validator

from parlance.core.artifacts import read_json, write_json
from parlance.core.config import Config
from parlance.core.devices import fast_bfloat16
from parlance.core.errors import UserError
from parlance.core.formatting import count, size
from parlance.core.metrics import MetricsLog
from parlance.core.progress import say
from parlance.models.building import build
from parlance.models.checkpoints import load_model
from parlance.models.memory import training_bytes
from parlance.models.neural import NeuralLanguageModel
from parlance.models.transformer import Transformer
from parlance.scaling.power_law import fit_power_law
from parlance.text.packing import Packing
from parlance.text.token_dataset import TokenDataset
from parlance.training.architectures import ARCHITECTURES, Kind, configure
from parlance.training.checkpointing import TrainingStates
from parlance.training.compilation import WORTH_SECONDS, compile_training
from parlance.training.denoising import DenoisingTokens
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop
from parlance.training.objectives import mean_loss
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.tasks import DenoisingTask, MaskedTokenTask, NextTokenTask, Task
from parlance.training.trainer import Trainer, TrainingConfig


class PretrainingConfig(Config):
    """How a base model is made."""

    architecture: Kind = "transformer"
    """What is trained: see `architectures.py`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of the model's own configuration, such as `cell` of a recurrent model or `positions` of a Transformer."""
    context_length: int = Field(default=256, ge=2)
    """Tokens a training window, and the longest text the model reads."""
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
    pilot_share: float = Field(default=0.08, ge=0, le=0.5)
    """Share of the budget for the longer pilot; the shorter takes a quarter of that. 0: no pilots, no prediction."""
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

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        plain = self.architecture == "transformer" and not {"heads", "head_width"} & self.model.keys()
        if plain and self.width is not None and self.width % 64:
            raise ValueError(f"width {self.width} is not a multiple of 64, the width of one head")
        return self


@dataclass
class PretrainingResult:
    """A trained base model and what is known about it."""

    model: NeuralLanguageModel
    choices: list[str]
    """One sentence for each derived setting."""
    prediction: dict[str, Any] | None
    """Pilots, predicted loss with interval, and reached loss (nats per token); None without pilots."""
    tokens: int
    seconds: float
    compiled: bool


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
    shape(config.layers or first[0], config.width or first[1], 1000, config)
    if config.packing == "best-fit" and (config.architecture != "transformer" or config.model.get("dilated_segments")):
        raise UserError("only a Transformer without dilated attention reads packed documents: choose packing=stream")


def make_task(config: PretrainingConfig, model: Any, vocab_size: int) -> Task:
    """What a model of the configuration `model` is trained on; `vocab_size` is the tokenizer's.

    Raises UserError where the two do not fit, or the packing does not.
    """
    task = ARCHITECTURES[config.architecture].task
    if task == "next-token":
        return NextTokenTask(config.batch_size, config.context_length, config.packing)
    if config.packing != "stream":
        raise UserError(f"a model of the kind {config.architecture} reads windows of a stream: set packing=stream")
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


def _fresh(config: Any, seed: int, device: torch.device) -> NeuralLanguageModel:
    model = build(config)
    model.initialise(torch.Generator().manual_seed(seed))
    model.to(device)
    model.compute_dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return model


def seconds_per_token(model: NeuralLanguageModel, objective: Any, batch: Any) -> float:
    """Measured time of one forward and backward pass per counted token (the faster of two after a first)."""
    times, count = [], 1
    for _ in range(3):
        start = time.perf_counter()
        terms = objective(model, batch)
        terms.loss_sum.backward()
        times.append(time.perf_counter() - start)
        count = max(1, terms.count)
        for parameter in model.parameters():
            parameter.grad = None
    return min(times[1:]) / count


def choose_shape(
    dataset: TokenDataset, config: PretrainingConfig, vocab_size: int, seconds: float, device: torch.device
) -> tuple[Any, str]:
    """The largest rung that still sees `tokens_per_parameter` tokens a matrix parameter in `seconds`, and why.

    Speeds are measured rung by rung, smallest first, and stop at the first rung that is too slow.
    """
    ladder = ARCHITECTURES[config.architecture].ladder
    task = make_task(config, shape(*ladder[0], vocab_size, config), vocab_size)
    batch, _ = next(task.batches(dataset, 0, None, device))
    chosen, reason = None, ""
    for layers, width in ladder:
        candidate = shape(layers, width, vocab_size, config)
        model = _fresh(candidate, 0, device)
        tokens = seconds / seconds_per_token(model, task.objective, batch)
        ratio = tokens / model.matrix_parameters()
        if chosen is not None and ratio < config.tokens_per_parameter:
            break
        chosen = candidate
        reason = (
            f"{layers} layers of width {width}: this machine trains it at {tokens / seconds:,.0f} tokens/s (measured), "
            f"so {seconds:.0f} s give about {ratio:.1f} tokens per matrix parameter; the next size would fall below "
            f"{config.tokens_per_parameter:g}"
        )
    assert chosen is not None
    return chosen, reason


def pretrain(
    train: TokenDataset,
    validation: TokenDataset,
    folder: Path,
    config: PretrainingConfig,
    budget: Budget,
    *,
    vocab_size: int,
    metrics: MetricsLog,
    seed: int,
    device: torch.device,
    resume: bool = False,
    initial: Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> PretrainingResult:
    """Train a base model; resume states and the plan live in `folder`/training. `initial` continues a checkpoint.
    Raises UserError where a split is smaller than one window, Interrupted where the user stops it.
    """
    for dataset, name in ((train, "training"), (validation, "validation")):
        if len(dataset.tokens) < config.context_length + 1:
            raise UserError(
                f"the {name} split has {len(dataset.tokens)} tokens, less than one context of {config.context_length}; "
                "bring more text or set a smaller context_length"
            )
    plan_file = folder / "training" / "plan.json"
    started = time.monotonic()
    if resume and plan_file.exists():
        plan = read_json(plan_file)
        shape_config = ARCHITECTURES[config.architecture].configuration.model_validate(plan["model"])
    else:
        shape_config, reason = _choose(train, config, vocab_size, budget, device, initial)
        plan = {"model": shape_config.model_dump(), "choices": [reason], "prediction": None, "spent": 0.0}
        TrainingStates(folder / "training").discard()
        plan_file.unlink(missing_ok=True)
    say(plan["choices"][0])

    task = make_task(config, shape_config, vocab_size)

    def start() -> NeuralLanguageModel:
        model = _fresh(shape_config, seed, device)
        if initial is not None:
            model.load_state_dict(load_model(initial).state_dict())
        return model

    def tell_size() -> None:
        """Parameters, and the memory of training where it can be known beforehand."""
        needed = ""
        if isinstance(model, Transformer) and model.config.experts is None and model.config.causal:
            bytes_needed = training_bytes(model, config.batch_size, config.context_length)
            needed = f"; training takes about {size(bytes_needed)} of memory beyond the program's own"
        say(f"{count(model.parameter_count())} parameters{needed}")

    def batches(state: Any) -> Iterator[tuple[Any, Any]]:
        return task.batches(train, seed, state, device)

    model, objective = start(), task.objective
    checks = task.validation(validation, config.validation_tokens, device)
    worth = budget.seconds is not None and budget.seconds >= WORTH_SECONDS
    tell_size()
    wanted = worth if config.compile is None else config.compile
    compiled = wanted and _compiles(model) and compile_training(model, objective, next(batches(None))[0])

    def optimizer() -> Optimizer:
        return Optimizer(parameter_groups(model, config.rates), model.compute_dtype)

    def validate() -> dict[str, float]:
        return {"validation_loss": mean_loss(model, checks, objective)}

    def run(
        stage: str, share: Budget, states: TrainingStates, log: MetricsLog, *, resume: bool
    ) -> tuple[Trainer[Any, Any], float]:
        trainer = Trainer(model, objective, batches, optimizer(), config.training)
        loop = Loop(stage, share, states, log, validate, config.validations, checkpoint_seconds)
        result = loop.run(trainer, resume=resume)
        return trainer, result.seconds

    if not plan_file.exists() or not resume:
        if config.pilot_share > 0:
            plan["prediction"] = _pilots(run, validate, model, start, folder, config, budget, started)
            say(_announcement(plan["prediction"]))
        plan["spent"] = time.monotonic() - started
        write_json(plan_file, plan)
    _copy(start(), model)
    main = budget
    if budget.seconds is not None:
        # Choosing, compiling and the pilots are paid from the same budget.
        main = Budget(steps=budget.steps, seconds=max(1.0, budget.seconds - plan["spent"]))
    trainer, seconds = run("pretrain", main, TrainingStates(folder / "training"), metrics, resume=resume)
    if plan["prediction"] is not None:
        plan["prediction"]["reached_loss"] = validate()["validation_loss"]
        plan["prediction"]["reached_x"] = trainer.items
    return PretrainingResult(model, plan["choices"], plan["prediction"], trainer.items, seconds, compiled)


def _compiles(model: NeuralLanguageModel) -> TypeGuard[Transformer]:
    """Whether compiling pays: blocks of one shape, and no routing that depends on the data."""
    return isinstance(model, Transformer) and model.config.experts is None


def _choose(
    train: TokenDataset,
    config: PretrainingConfig,
    vocab_size: int,
    budget: Budget,
    device: torch.device,
    initial: Path | None,
) -> tuple[Any, str]:
    if initial is not None:
        model = load_model(initial)
        return model.config, f"the size of {initial}, which this run continues"
    if (config.layers is None) != (config.width is None):
        raise UserError("set both layers and width, or neither")
    if config.layers is not None and config.width is not None:
        chosen = shape(config.layers, config.width, vocab_size, config)
        return chosen, f"{config.layers} layers of width {config.width}: as asked"
    if budget.seconds is None:
        raise UserError("with a budget in steps, set the model's layers and width")
    return choose_shape(train, config, vocab_size, budget.seconds, device)


def _pilots(
    run: Callable[..., tuple[Trainer[Any, Any], float]],
    validate: Callable[[], dict[str, float]],
    model: NeuralLanguageModel,
    start: Callable[[], NeuralLanguageModel],
    folder: Path,
    config: PretrainingConfig,
    budget: Budget,
    started: float,
) -> dict[str, Any] | None:
    """Train two short runs to the end of their schedule and extrapolate their validation loss to the whole budget.

    None where the budget is too small for two runs of different length.
    """
    share = config.pilot_share
    if budget.seconds is not None:
        parts = [Budget(seconds=budget.seconds * share / 4), Budget(seconds=budget.seconds * share)]
    else:
        assert budget.steps is not None
        short, long = max(1, round(budget.steps * share / 4)), max(2, round(budget.steps * share))
        if long >= budget.steps:
            return None
        parts = [Budget(steps=short), Budget(steps=long)]
    points = []
    for part in parts:
        _copy(start(), model)
        states = TrainingStates(folder / "training" / "pilot")
        trainer, _ = run("pilot", part, states, MetricsLog(folder / "training" / "pilot.jsonl"), resume=False)
        points.append({"x": trainer.items, "loss": validate()["validation_loss"]})
        states.clear()
    if points[0]["x"] == points[1]["x"]:
        return None
    # The main run's tokens: what the longer pilot did, as often as what is left of the budget is longer.
    if budget.seconds is not None:
        left = max(1.0, budget.seconds - (time.monotonic() - started))
        whole = points[-1]["x"] * left / (budget.seconds * share)
    else:
        whole = points[-1]["x"] * (budget.steps or 0) / (parts[-1].steps or 1)
    law = fit_power_law([float(point["x"]) for point in points], [point["loss"] for point in points])
    predicted = law.predict_with_interval(whole)
    return {
        "x": "tokens",
        "pilot": points,
        "planned_x": whole,
        "predicted_loss": predicted.value,
        "low": predicted.low,
        "high": predicted.high,
        "law": {"a": law.a, "b": law.b, "e": law.e, "status": law.status},
    }


def _copy(source: NeuralLanguageModel, target: NeuralLanguageModel) -> None:
    with torch.no_grad():
        for new, old in zip(source.parameters(), target.parameters(), strict=True):
            old.copy_(new)


def _announcement(prediction: dict[str, Any] | None) -> str:
    if prediction is None:
        return "no prediction: the budget is too small for two pilots of different length"
    value, low, high = (prediction[name] for name in ("predicted_loss", "low", "high"))
    return f"predicted validation loss {value:.3f} (95 % interval {low:.3f} to {high:.3f}) nats per token"
