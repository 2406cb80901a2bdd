"""Pre-training: from token shards and a budget to a base model, with the loss predicted before it starts.

1. Choose the model's size and predict its loss by short runs (`dial.py`); compile where that pays.
2. Train; validate on the way; keep resume states (`sized_run.py`).

  result = pretrain(tokens, Path("base"), PretrainingConfig(), Budget(seconds=200), ...)
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.progress import say
from parlance.models.neural import NeuralLanguageModel
from parlance.text.token_dataset import TokenDataset
from parlance.training.dial import chosen_run
from parlance.training.loop import CHECKPOINT_SECONDS, Budget, LoopResult
from parlance.training.parallel import ALONE, World
from parlance.training.precision import training_dtype
from parlance.training.pretraining_config import PretrainingConfig
from parlance.training.run_plan import RunPlan
from parlance.training.sized_run import Setting

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
    setting = Setting(
        train=train,
        validation=validation,
        folder=folder,
        config=config,
        vocab_size=vocab_size,
        seed=seed,
        device=device,
        dtype=training_dtype(config.training.precision, device),
        initial=initial,
        world=world,
        checkpoint_seconds=checkpoint_seconds,
        sample=sample,
        decode=decode,
    )
    # Seconds may differ: a run of several stages gives each what the earlier ones have left.
    limits = budget.model_dump(exclude={"seconds"})
    # What is trained does not depend on how many processes divide it.
    asked = {"config": config.model_dump(mode="json", exclude={"parallel"}), "budget": limits, "seed": seed}
    plan = RunPlan.open(folder / "training", asked, world, resume=resume)
    sized = chosen_run(setting, budget, plan)
    main = budget
    if budget.seconds is not None:
        # Choosing, compiling and the pilots are paid from the same budget.
        main = budget.model_copy(update={"seconds": max(1.0, budget.seconds - plan.spent)})
    if config.tensorboard:
        metrics = world.log(metrics.path, folder / "tensorboard")
    states = sized.here.states(folder / "training", config.kept_states)
    trainer, result = sized.run("pretrain", main, states, metrics, resume=resume)
    if plan.prediction is not None:
        plan.prediction["reached_loss"] = sized.validate(trainer)["validation_loss"]
        plan.prediction["reached_x"] = trainer.items
    trainer.finish()
    target = None
    if budget.until_loss is not None:
        target = {"loss": budget.until_loss, "reached": result.reached, "whole_validation_loss": result.whole_loss}
        say(_outcome(target, result))
    return PretrainingResult(
        model=sized.here.whole() or sized.here.model,
        choices=plan.choices,
        prediction=plan.prediction,
        tokens=trainer.items,
        seconds=result.seconds,
        compiled=sized.compiled,
        steps=result.steps,
        skipped=trainer.skipped,
        target=target,
    )


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


def _outcome(target: dict[str, Any], result: LoopResult) -> str:
    """Whether the loss that was asked for was reached."""
    verb = "reached" if target["reached"] else "did not reach"
    return (
        f"training {verb} the loss {target['loss']:g}: {target['whole_validation_loss']:.4f} nats per token over the "
        f"whole validation split after {result.steps} steps and {result.seconds:.1f} s"
    )
