"""Pre-training: from token shards and a budget to a base model, with the loss predicted before it starts.

1. Choose the model's size from the time budget and the measured speed of this machine.
2. Compile where that pays.
3. Train two short pilots of that very recipe to their end; fit L(x) = a x^-b; state the loss the run should reach.
4. Train; validate on the way; keep resume states.

  result = pretrain(tokens, Path("base"), PretrainingConfig(), Budget(seconds=200), ...)
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import torch

from parlance.core.artifacts import read_json, write_json
from parlance.core.config import changes
from parlance.core.devices import free_memory_bytes, matrix_rate
from parlance.core.errors import UserError
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
from parlance.training.architectures import ARCHITECTURES
from parlance.training.checkpointing import TrainingStates
from parlance.training.compilation import WORTH_SECONDS, compile_training
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, Loop, LoopResult
from parlance.training.loss_target import LossTarget
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import NextTokenObjective
from parlance.training.parallel import ALONE, ParallelConfig, World, arrange
from parlance.training.parallel.division import divide_batch
from parlance.training.parallel.mesh import Place
from parlance.training.pilots import announcement, run_pilots
from parlance.training.precision import training_dtype
from parlance.training.pretraining_config import PretrainingConfig, check, make_task, pretraining_config, shape
from parlance.training.rates import parameter_groups
from parlance.training.saving import States
from parlance.training.state_folders import states_in
from parlance.training.tasks import DenoisingTask, NextTokenTask
from parlance.training.throughput import Speed, model_flops_per_token
from parlance.training.trainer import Trainer

__all__ = [
    "PretrainingConfig",
    "PretrainingResult",
    "check",
    "choose_shape",
    "make_task",
    "pretrain",
    "pretraining_config",
    "seconds_per_token",
    "shape",
]

CHECKED_TOKENS = 1 << 24
"""Tokens that are looked at in one go."""


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
    steps: int
    skipped: int
    """Steps that were left out, see `anomalies.py`."""
    target: dict[str, Any] | None
    """With `Budget.until_loss`: target, whether it was reached, and the loss over the whole validation split."""


def _fresh(config: Any, seed: int, device: torch.device, dtype: torch.dtype) -> NeuralLanguageModel:
    model = build(config)
    model.initialise(torch.Generator().manual_seed(seed))
    model.to(device)
    model.compute_dtype = dtype
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
    dataset: TokenDataset,
    config: PretrainingConfig,
    vocab_size: int,
    seconds: float,
    device: torch.device,
    world: World = ALONE,
) -> tuple[Any, str]:
    """The largest rung that still sees `tokens_per_parameter` tokens a matrix parameter in `seconds`, and why.

    Speeds are measured rung by rung, smallest first, and stop at the first rung that is too slow. Processes measure the
    whole model on as many rows as the one with the most gets, all at the same time; the slowest counts.
    """
    ladder = ARCHITECTURES[config.architecture].ladder
    task = make_task(config, shape(*ladder[0], vocab_size, config), vocab_size)
    whole = next(task.batches(dataset, 0, None, device))[0]
    ways = config.parallel.rows(world.size).ways
    batch = divide_batch(whole, Place(ways - 1, ways))  # the last one has the most
    share = len(whole) / len(batch) / ways * world.size
    dtype = training_dtype(config.training.precision, device)
    chosen, reason = None, ""
    for layers, width in ladder:
        candidate = shape(layers, width, vocab_size, config)
        model = _fresh(candidate, 0, device, dtype)
        (slowest,) = world.largest([seconds_per_token(model, task.objective, batch)])
        tokens = seconds / slowest * share
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
    sample: Callable[[NeuralLanguageModel, int], str | None] | None = None,
    decode: Callable[[list[int]], str] | None = None,
    world: World = ALONE,
) -> PretrainingResult:
    """Train a base model; resume states and the plan live in `folder`/training. `initial` continues a checkpoint.

    All processes of `world` call it alike; the first one's result has the whole model.

    `sample` writes a text of so many tokens with the model, for samples.jsonl; `decode` makes the batches that are
    saved for their harm readable. Raises UserError where a split is smaller than one window, where tokens and
    vocabulary do not fit, or where a resumed run was begun with another configuration; Interrupted where the user
    stops it.
    """
    for dataset, name in ((train, "training"), (validation, "validation")):
        if len(dataset.tokens) < config.context_length + 1:
            raise UserError(
                f"the {name} split has {len(dataset.tokens)} tokens, less than one context of {config.context_length}; "
                "bring more text or set a smaller context_length"
            )
        _check_tokens(dataset, vocab_size, whole=not resume)
    dtype = training_dtype(config.training.precision, device)
    plan_file = folder / "training" / "plan.json"
    # Seconds may differ: a run of several stages gives each what the earlier ones have left.
    limits = budget.model_dump(exclude={"seconds"})
    # What is trained does not depend on how many processes divide it.
    asked = {"config": config.model_dump(mode="json", exclude={"parallel"}), "budget": limits, "seed": seed}
    started = time.monotonic()
    begun = world.share(_begun(plan_file) if world.first and resume else None)
    if begun is not None:
        plan = begun
        if changed := changes(plan["asked"], asked):
            raise UserError(f"{folder} was begun with another configuration: {'; '.join(changed)}; resume it as it was")
        shape_config = ARCHITECTURES[config.architecture].configuration.model_validate(plan["model"])
    else:
        shape_config, reason = _choose(train, config, vocab_size, budget, device, initial, world)
        if shape_config.vocab_size < vocab_size:
            raise UserError(
                f"{initial} has {shape_config.vocab_size} tokens and the tokenizer {vocab_size}: take the tokenizer "
                "that the checkpoint was made with"
            )
        plan = {"asked": asked, "model": shape_config.model_dump(), "choices": [reason]}
        plan |= {"prediction": None, "spent": 0.0}
        if config.pilot_share > 0:
            plan["pilots"] = []  # those that are finished; gone once the prediction is made
        if world.first:
            TrainingStates(folder / "training").discard()
            plan_file.unlink(missing_ok=True)
    say(plan["choices"][0])

    task = make_task(config, shape_config, vocab_size)

    def start() -> NeuralLanguageModel:
        model = _fresh(shape_config, seed, device, dtype)
        if initial is not None:
            model.load_state_dict(load_model(initial).state_dict())
        return model

    def batches(state: Any) -> Iterator[tuple[Any, Any]]:
        return task.batches(train, seed, state, device)

    model, objective = start(), task.objective
    checks = task.validation(validation, config.validation_tokens, device)
    fit = MemoryFit()
    _tell_size(model, config, fit, device)
    worth = budget.seconds is not None and budget.seconds >= WORTH_SECONDS
    wanted = worth if config.compile is None else config.compile
    compiled = False
    if wanted and _compiles(model, config.parallel) and config.parallel.pipeline > 1:
        # Before it is divided: a stage has no loss to compare.
        rows = divide_batch(next(batches(None))[0], config.parallel.rows(world.size))
        compiled = compile_training(model, objective, rows)
    here = arrange(model, config.parallel, world, fit)
    if wanted and not compiled and _compiles(here.model, config.parallel) and config.parallel.pipeline == 1:
        compiled = compile_training(here.model, objective, fit.divide([here.part(next(batches(None))[0])])[0])
    model = here.model
    # What an encoder-decoder reads is divided between two sequences of changing lengths: its share is not told.
    flops = None if isinstance(task, DenoisingTask) else model_flops_per_token(model, task.training_length)
    # Only a model that says every token of a text has a loss per byte of it.
    told = (("loss", train), ("validation_loss", validation)) if isinstance(task, NextTokenTask) else ()
    bits = {name: _bits_per_byte(dataset) for name, dataset in told}
    samples = world.log(folder / "samples.jsonl")
    if config.tensorboard:
        metrics = world.log(metrics.path, folder / "tensorboard")

    def trained() -> Trainer[Any, Any]:
        optimizer = here.optimizer(parameter_groups(model, config.rates), model.compute_dtype)
        store = BatchStore(folder / "anomalies", decode) if world.first else None
        return Trainer(model, objective, batches, optimizer, config.training, here.gradients, anomalies=store, fit=fit)

    def validate(trainer: Trainer[Any, Any]) -> dict[str, float]:
        with trainer.evaluated():
            loss, items = here.loss_sums(objective, checks)
            return {"validation_loss": loss / items}

    def written(trainer: Trainer[Any, Any], step: int) -> None:
        """What the model writes by now."""
        if sample is None or not config.sample_tokens:
            return
        with trainer.evaluated():
            whole = here.whole()
            text = None if whole is None else sample(whole, config.sample_tokens)
        if text is not None:
            samples.rewind("pretrain", step - 1)
            samples.write("pretrain", step, text=text)

    def target_of(trainer: Trainer[Any, Any], loss: float) -> LossTarget:
        # Of next-token prediction the last batch is empty in part: a head compiled for full ones must not see it.
        plain: Any = NextTokenObjective() if isinstance(task, NextTokenTask) else objective

        def measured(make: Callable[[], Any], full: bool) -> tuple[float, int]:
            # Code compiled for training runs in gradient mode, or it would be compiled again.
            with torch.set_grad_enabled(compiled):
                return here.loss_sums(objective if full else plain, [make()])

        whole = task.whole(validation, device)
        measurements = [partial(measured, make, number + 1 < len(whole)) for number, make in enumerate(whole)]
        return LossTarget(loss, measurements, trainer.evaluated)

    def run(
        stage: str, share: Budget, states: States, log: MetricsLog, *, resume: bool
    ) -> tuple[Trainer[Any, Any], LoopResult]:
        trainer, main = trained(), stage == "pretrain"
        loop = Loop(
            stage,
            share,
            states,
            log,
            partial(validate, trainer),
            config.validations,
            checkpoint_seconds=checkpoint_seconds,
            target=target_of(trainer, share.until_loss) if share.until_loss is not None else None,
            speed=Speed(flops, lambda: matrix_rate(device, dtype) * world.size, bits),
            observe=partial(written, trainer) if main else None,
            background=here.background,
            agree=world.largest,
        )
        return trainer, loop.run(trainer, resume=resume)

    def keep() -> None:
        if world.first:
            write_json(plan_file, plan)

    if begun is None:
        plan["spent"] = time.monotonic() - started
        keep()
    if "pilots" in plan:
        plan["prediction"] = run_pilots(
            run, validate, here, start, folder, config, budget, plan, keep, world, resume=begun is not None
        )
        say(announcement(plan["prediction"]))
        del plan["pilots"]
        plan = world.share(plan)
        keep()
    here.take(start())
    main = budget
    if budget.seconds is not None:
        # Choosing, compiling and the pilots are paid from the same budget.
        main = budget.model_copy(update={"seconds": max(1.0, budget.seconds - plan["spent"])})
    states = here.states(folder / "training", config.kept_states)
    trainer, result = run("pretrain", main, states, metrics, resume=resume)
    if plan["prediction"] is not None:
        plan["prediction"]["reached_loss"] = validate(trainer)["validation_loss"]
        plan["prediction"]["reached_x"] = trainer.items
    trainer.finish()
    target = None
    if budget.until_loss is not None:
        target = {"loss": budget.until_loss, "reached": result.reached, "whole_validation_loss": result.whole_loss}
        say(_outcome(target, result))
    return PretrainingResult(
        here.whole() or model,
        plan["choices"],
        plan["prediction"],
        trainer.items,
        result.seconds,
        compiled,
        result.steps,
        trainer.skipped,
        target,
    )


def _begun(plan_file: Path) -> dict[str, Any] | None:
    """The plan of the run that is resumed; None where none was made. Raises UserError where it is damaged or gone."""
    again = f"remove {plan_file.parent} to begin anew"
    if not plan_file.exists():
        if states_in(plan_file.parent):
            raise UserError(f"{plan_file} is missing beside its resume states: {again}")
        return None
    plan: dict[str, Any] = read_json(plan_file)
    if missing := {"asked", "model", "choices", "prediction", "spent"} - plan.keys():
        raise UserError(f"{plan_file} is damaged, it lacks {', '.join(sorted(missing))}: {again}")
    return plan


def _check_tokens(dataset: TokenDataset, vocab_size: int, *, whole: bool) -> None:
    """Raises UserError where a split was not made with a tokenizer of this size; `whole`: looks at every token."""
    made_with = dataset.info["vocab_size"]
    if made_with != vocab_size:
        raise UserError(
            f"the tokens in {dataset.folder} were made with a vocabulary of {made_with}, and the tokenizer has "
            f"{vocab_size}: encode the corpus with this tokenizer"
        )
    for first in range(0, len(dataset.tokens) if whole else 0, CHECKED_TOKENS):
        largest = int(dataset.tokens[first : first + CHECKED_TOKENS].max())
        if largest >= vocab_size:
            raise UserError(
                f"the {dataset.split} tokens in {dataset.folder} hold the token {largest}, outside the vocabulary of "
                f"{vocab_size}: the files are damaged; encode the corpus again"
            )


def _tell_size(model: NeuralLanguageModel, config: PretrainingConfig, fit: MemoryFit, device: torch.device) -> None:
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


def _bits_per_byte(dataset: TokenDataset) -> float:
    """What a mean loss in nats per token is multiplied by: bits per byte of the split's text."""
    return len(dataset.tokens) / max(1, dataset.text_bytes) / math.log(2)


def _outcome(target: dict[str, Any], result: LoopResult) -> str:
    """Whether the loss that was asked for was reached."""
    verb = "reached" if target["reached"] else "did not reach"
    return (
        f"training {verb} the loss {target['loss']:g}: {target['whole_validation_loss']:.4f} nats per token over the "
        f"whole validation split after {result.steps} steps and {result.seconds:.1f} s"
    )


def _compiles(model: NeuralLanguageModel, parallel: ParallelConfig) -> TypeGuard[Transformer]:
    """Whether compiling pays: blocks of one shape, no routing that depends on the data.

    What exchanges within its blocks is compiled as it is divided, which stages of a pipeline are not.
    """
    changed = parallel.pipeline > 1 and parallel.tensor * parallel.context > 1
    return isinstance(model, Transformer) and model.config.experts is None and not changed


def _choose(
    train: TokenDataset,
    config: PretrainingConfig,
    vocab_size: int,
    budget: Budget,
    device: torch.device,
    initial: Path | None,
    world: World,
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
        raise UserError("with a budget in steps or tokens, set the model's layers and width")
    return choose_shape(train, config, vocab_size, budget.seconds, device, world)
