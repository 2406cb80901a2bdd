"""Pilots: two short runs of the very recipe that is to be trained, from which its loss is predicted.

A finished pilot is kept in the plan of the run, an unfinished one has resume states like the run itself: whoever goes
on with a run that was stopped or killed does not begin its pilots anew.

prediction = run_pilots(run, validate, here, start, folder, config, budget, plan, keep, world, resume=False)
say(announcement(prediction))
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parlance.models.neural import NeuralLanguageModel
from parlance.scaling.power_law import fit_power_law
from parlance.training.arrangement import Arrangement
from parlance.training.loop import Budget, LoopResult
from parlance.training.parallel import World
from parlance.training.pretraining_config import PretrainingConfig
from parlance.training.trainer import Trainer


def run_pilots(
    run: Callable[..., tuple[Trainer[Any, Any], LoopResult]],
    validate: Callable[[Trainer[Any, Any]], dict[str, float]],
    here: Arrangement,
    start: Callable[[], NeuralLanguageModel],
    folder: Path,
    config: PretrainingConfig,
    budget: Budget,
    plan: dict[str, Any],
    keep: Callable[[], None],
    world: World,
    *,
    resume: bool,
) -> dict[str, Any] | None:
    """Train two short runs to the end of their schedule and extrapolate their validation loss to the whole budget.

    `plan` holds the points of the pilots that are finished (`pilots`) and how many seconds of the budget are gone
    (`spent`); both grow here, and `keep` stores them. None where the budget is too small for two runs of different
    length.
    """
    share, longer = config.pilot_share, 0.0
    if budget.seconds is not None:
        parts = [Budget(seconds=budget.seconds * share / 4), Budget(seconds=budget.seconds * share)]
    else:
        name, whole = ("steps", budget.steps) if budget.steps is not None else ("tokens", budget.tokens)
        assert whole is not None
        short, long = max(1, round(whole * share / 4)), max(2, round(whole * share))
        if long >= whole:
            return None
        parts, longer = [Budget.model_validate({name: short}), Budget.model_validate({name: long})], whole / long
    points = plan["pilots"]
    for part in parts[len(points) :]:
        here.take(start())
        states = here.states(folder / "training" / "pilot", 1)
        log = world.log(folder / "training" / "pilot.jsonl")
        trainer, result = run("pilot", part, states, log, resume=resume)
        began = time.monotonic()
        point = {"x": trainer.items, "loss": validate(trainer)["validation_loss"]}
        # Before the point is kept: the next pilot must not take these states for its own.
        states.clear()
        points.append(point)
        plan["spent"] += result.seconds + time.monotonic() - began
        keep()
        resume = False
    if points[0]["x"] == points[1]["x"]:
        return None
    # The main run's tokens: what the longer pilot did, as often as what is left of the budget is longer.
    if budget.seconds is not None:
        left = max(1.0, budget.seconds - plan["spent"])
        planned = points[-1]["x"] * left / (budget.seconds * share)
    else:
        planned = points[-1]["x"] * longer
    law = fit_power_law([float(point["x"]) for point in points], [point["loss"] for point in points])
    predicted = law.predict_with_interval(planned)
    return {
        "x": "tokens",
        "pilot": points,
        "planned_x": planned,
        "predicted_loss": predicted.value,
        "low": predicted.low,
        "high": predicted.high,
        "law": {"a": law.a, "b": law.b, "e": law.e, "status": law.status},
    }


def announcement(prediction: dict[str, Any] | None) -> str:
    """The prediction in one sentence."""
    if prediction is None:
        return "no prediction: the budget is too small for two pilots of different length"
    value, low, high = (prediction[name] for name in ("predicted_loss", "low", "high"))
    return f"predicted validation loss {value:.3f} (95 % interval {low:.3f} to {high:.3f}) nats per token"
