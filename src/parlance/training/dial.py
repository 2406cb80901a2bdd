"""The one dial: from a budget to a model's size and a predicted loss, by short runs of several sizes.

1. Measure how fast this machine trains the sizes of a ladder, smallest first.
2. Candidates: the largest size that still sees enough tokens in the budget, and its neighbours.
3. Pilots, at most a tenth of the budget: each a whole run of the very recipe, to the end of its schedule.
4. Fit how the loss falls with size and tokens (`scaling/pilot_law.py`), beside what counting n-grams tells of the text.
5. Choose the candidate of lowest predicted loss for what is left of the budget; predict its loss, with an interval.

A finished pilot is kept in the plan of the run, an unfinished one has resume states like the run itself: whoever goes
on with a run that was stopped or killed does not begin its pilots anew.

    sized = chosen_run(setting, Budget(seconds=480), plan)       # plan.choices and plan.prediction say the rest
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from parlance.core.errors import UserError
from parlance.core.formatting import count
from parlance.core.progress import say
from parlance.models.building import build
from parlance.models.checkpoints import load_model
from parlance.models.neural import NeuralLanguageModel
from parlance.scaling.frontier import Run
from parlance.scaling.pilot_law import NOTHING, PilotLaw, effective_tokens
from parlance.scaling.power_law import Prediction
from parlance.training.architectures import ARCHITECTURES
from parlance.training.compilation import WORTH_SECONDS
from parlance.training.loop import Budget
from parlance.training.parallel.division import divide_batch
from parlance.training.parallel.mesh import Place
from parlance.training.pretraining_config import check_start, divisible_sizes, make_task, shape
from parlance.training.run_plan import RunPlan, Stopwatch
from parlance.training.sized_run import Setting, SizedRun

if TYPE_CHECKING:
    from parlance.training.counted_loss import CountedLoss

NEIGHBOURS = ((-1, 1), (0, 2), (0, 4))
"""Pilots of several sizes, in order: (place beside the middle candidate, parts of the pilots' budget)."""
CURVE_POINTS = 6
"""Points of the predicted curve before its end."""
LENGTHS = (1, 2, 4)
"""Parts of the pilots' budget where all are of one size."""


@dataclass(frozen=True)
class Candidate:
    """A size that may be chosen."""

    model: dict[str, Any]
    """Its configuration."""
    name: str
    parameters: int
    """Weights of the hidden matrices."""
    seconds_per_token: float | None = None
    """Forward and backward, measured before anything is compiled; None where nothing is to be chosen."""

    def shape(self, setting: Setting) -> Any:
        """Its configuration as the object that a model is built from."""
        return ARCHITECTURES[setting.config.architecture].configuration.model_validate(self.model)


@dataclass(frozen=True)
class Pilot:
    """A short run that is planned."""

    candidate: int
    budget: Budget


# --- 1, 2: speeds and candidates --------------------------------------------------------------------------------------


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


def candidates(setting: Setting, budget: Budget) -> tuple[list[Candidate], int, str]:
    """The sizes to choose from, which of them the measured speeds alone suggest, and why.

    One where the size is given. Raises UserError as `check_start` does.
    """
    config = setting.config
    if setting.initial is not None:
        model = load_model(setting.initial)
        if model.vocab_size < setting.vocab_size:
            raise UserError(
                f"{setting.initial} has {model.vocab_size} tokens and the tokenizer {setting.vocab_size}: take "
                "the tokenizer that the checkpoint was made with"
            )
        only = Candidate(model.config.model_dump(), f"the size of {setting.initial}", model.matrix_parameters())
        return [only], 0, f"the size of {setting.initial}, which this run continues"
    check_start(config, budget, setting.device)
    if config.layers is not None and config.width is not None:
        given = shape(config.layers, config.width, setting.vocab_size, config)
        only = Candidate(given.model_dump(), _name(config.layers, config.width), build(given).matrix_parameters())
        return [only], 0, f"{only.name}: as asked"
    assert budget.seconds is not None  # `check_start` asks for one where no size is given
    return measured_candidates(setting, budget.seconds)


def measured_candidates(setting: Setting, seconds: float) -> tuple[list[Candidate], int, str]:
    """The largest rung that still sees `tokens_per_parameter` tokens a matrix parameter in `seconds`, its neighbours,
    its place among them, and why.

    Speeds are measured rung by rung, smallest first, up to the first rung that is too slow. Processes measure the whole
    model on as many rows as the one with the most gets, all at the same time; the slowest counts.
    """
    config, world = setting.config, setting.world
    ladder = divisible_sizes(config, world.size)
    task = make_task(config, shape(*ladder[0], setting.vocab_size, config), setting.vocab_size)
    whole = next(task.batches(setting.train, 0, None, setting.device))[0]
    ways = config.parallel.rows(world.size).ways
    batch = divide_batch(whole, Place(ways - 1, ways))  # the last one has the most
    share = len(whole) / len(batch) / ways * world.size
    found: list[Candidate] = []
    middle, reason = 0, ""
    for layers, width in ladder:
        rung = shape(layers, width, setting.vocab_size, config)
        model = setting.fresh(rung)
        (slowest,) = world.largest([seconds_per_token(model, task.objective, batch)])
        rate, parameters = share / slowest, model.matrix_parameters()
        found.append(Candidate(rung.model_dump(), _name(layers, width), parameters, 1 / rate))
        ratio = seconds * rate / parameters
        if len(found) > 1 and ratio < config.tokens_per_parameter:
            break
        middle = len(found) - 1
        reason = (
            f"{layers} layers of width {width}: this machine trains it at {rate:,.0f} tokens/s (measured), "
            f"so {seconds:.0f} s give about {ratio:.1f} tokens per matrix parameter; the next size would fall below "
            f"{config.tokens_per_parameter:g}"
        )
    first = max(0, middle - 1)
    return found[first : middle + 2], middle - first, reason


def _name(layers: int, width: int) -> str:
    return f"{layers} layers of width {width}"


# --- 3: pilots --------------------------------------------------------------------------------------------------------


def planned_pilots(middle: int, budget: Budget, share: float, spent: float = 0.0) -> list[Pilot]:
    """The pilots around the candidate `middle`, with at most `share` of the budget, of which `spent` seconds are gone.

    None where that is less than a step.
    """
    if not share:
        return []
    ways = [(middle, parts) for parts in LENGTHS]
    if middle > 0:
        ways = [(middle + place, parts) for place, parts in NEIGHBOURS]
    whole = sum(parts for _, parts in ways)
    if budget.seconds is not None:
        seconds = budget.seconds * share - spent
        return [Pilot(place, Budget(seconds=seconds * parts / whole)) for place, parts in ways] if seconds > 0 else []
    name, amount = ("steps", budget.steps) if budget.steps is not None else ("tokens", budget.tokens)
    assert amount is not None
    # Rounded down: not more than the share.
    lengths = [(place, int(amount * share * parts / whole)) for place, parts in ways]
    return [Pilot(place, Budget.model_validate({name: length})) for place, length in lengths if length]


def _run_pilots(setting: Setting, plan: RunPlan, sized: Callable[[int], SizedRun], most: float | None) -> None:
    """Train those pilots of the plan that are not finished, each to the end of its schedule; none once they took
    `most` seconds."""
    resume = plan.resumed
    for row in plan.planned[len(plan.pilots) :]:
        if most is not None and sum(pilot["seconds"] for pilot in plan.pilots) > most:
            say("pilots take longer than planned: the rest of them is left out")
            break
        watch = Stopwatch(plan)
        here = sized(row["candidate"])
        here.begin_anew()
        states = here.here.states(setting.folder / "training" / "pilot", 1)
        log = setting.world.log(setting.folder / "training" / "pilot.jsonl")
        watch.stop()
        trainer, result = here.run("pilot", Budget(**row["budget"]), states, log, resume=resume, pilot=True)
        watch = Stopwatch(plan)
        loss = here.validate(trainer)["validation_loss"]
        # Before the point is kept: the next pilot must not take these states for its own.
        states.clear()
        watch.stop()
        plan.spent += result.seconds
        point = {"candidate": row["candidate"], "parameters": here.matrix_parameters, "x": trainer.items, "loss": loss}
        plan.pilots.append(point | {"seconds": result.seconds, "tokens": trainer.tokens, "steps": result.steps})
        plan.keep()
        resume = False


# --- 4, 5: what they say ----------------------------------------------------------------------------------------------


def chosen_run(setting: Setting, budget: Budget, plan: RunPlan) -> SizedRun:
    """Choose and predict what the plan does not have yet; the model, compiled where that pays, before its first step.

    What that takes is added to what the plan has spent.
    """
    config = setting.config
    worth = budget.seconds is not None and budget.seconds >= WORTH_SECONDS
    compiling = worth if config.compile is None else config.compile
    watch = Stopwatch(plan)
    if not plan.candidates:
        found, middle, reason = candidates(setting, budget)
        if not config.pilot_share:
            found, middle = [found[middle]], 0
        plan.candidates, plan.chosen, plan.choices = [asdict(candidate) for candidate in found], middle, [reason]
    known = [Candidate(**values) for values in plan.candidates]
    say(plan.choices[-1])
    at_hand: dict[tuple[int, bool], SizedRun] = {}

    def sized(index: int) -> SizedRun:
        """A candidate; compiled is the one alone that will be trained, as far as is known by then."""
        key = (index, compiling and index == plan.chosen)
        if key not in at_hand:
            at_hand.clear()  # first, so that there is memory for the next
            at_hand[key] = SizedRun(setting, known[index].shape(setting), compiling=key[1])
        return at_hand[key]

    if plan.ready:
        return sized(plan.chosen)
    if not plan.pilots and not plan.planned:
        watch.stop()
        pilots = planned_pilots(plan.chosen, budget, config.pilot_share, plan.spent)
        plan.planned = [asdict(pilot) | {"budget": pilot.budget.model_dump()} for pilot in pilots]
        plan.keep()
    _run_pilots(setting, plan, sized, None if budget.seconds is None else config.pilot_share * budget.seconds)
    watch = Stopwatch(plan)
    forecast = _Forecast.of(setting, known, plan, budget)
    if forecast is not None and len(known) > 1:
        plan.chosen, reason = forecast.choice()
        plan.choices.append(reason)
        say(reason)
    run = sized(plan.chosen)
    run.begin_anew()
    watch.stop()
    if forecast is not None:
        plan.prediction = forecast.prediction(plan.chosen)
    if config.pilot_share:
        say(announcement(plan.prediction))
    plan.ready = True
    plan.keep()
    return run


@dataclass
class _Forecast:
    """What finished pilots say of the run."""

    known: list[Candidate]
    plan: RunPlan
    budget: Budget
    law: PilotLaw
    unique: int
    """Tokens of the training split."""
    counted: "CountedLoss | None"
    """None for models that do not say the next token of a text."""

    @classmethod
    def of(cls, setting: Setting, known: list[Candidate], plan: RunPlan, budget: Budget) -> "_Forecast | None":
        """None without pilots."""
        if not plan.pilots:
            return None
        counted = None
        config = setting.config
        if ARCHITECTURES[config.architecture].task == "next-token":
            # Numba takes half a second to load, which a run without pilots need not wait for.
            from parlance.training.counted_loss import CountedLoss

            counted = CountedLoss(
                setting.train,
                setting.validation,
                tokens=config.validation_tokens,
                window=config.context_length,
                seed=setting.seed,
            )
        runs = [Run(pilot["parameters"], pilot["x"], pilot["loss"]) for pilot in plan.pilots]
        others = None if counted is None else [counted(run.tokens) for run in runs]
        return cls(
            known,
            plan,
            budget,
            PilotLaw.fit(runs, others, 0.0 if counted is None else counted.copying()),
            len(setting.train.tokens),
            counted,
        )

    def loss(self, index: int, tokens: float) -> Prediction:
        """The loss of a candidate after so many tokens."""
        worth = effective_tokens(tokens, self.unique)
        counted = NOTHING if self.counted is None else self.counted(worth)
        return self.law.interval(self.known[index].parameters, worth, counted)

    def planned_tokens(self, index: int) -> float:
        """The tokens that a candidate sees in what is left of the budget."""
        last = self.plan.pilots[-1]  # of the size that the speeds suggest, compiled where the run is
        if self.budget.tokens is not None:
            return float(last["x"] * self.budget.tokens / last["tokens"])
        if self.budget.steps is not None:
            return float(last["x"] * self.budget.steps / last["steps"])
        assert self.budget.seconds is not None
        tokens = last["x"] * max(1.0, self.budget.seconds - self.plan.spent) / last["seconds"]
        # Another size: as much slower as it was when the speeds were measured.
        tried, other = self.known[last["candidate"]].seconds_per_token, self.known[index].seconds_per_token
        return float(tokens * tried / other if tried and other else tokens)

    def choice(self) -> tuple[int, str]:
        """The candidate of lowest predicted loss, and the sentence that says so."""
        losses = [self.loss(index, self.planned_tokens(index)).value for index in range(len(self.known))]
        best = min(range(len(losses)), key=losses.__getitem__)
        others = ", ".join(f"{self.known[i].name} {loss:.3f}" for i, loss in enumerate(losses) if i != best)
        return best, f"{self.known[best].name}: pilots predict {losses[best]:.3f} nats per token for it ({others})"

    def prediction(self, index: int) -> dict[str, Any]:
        """What is predicted for the chosen candidate."""
        planned = self.planned_tokens(index)
        predicted = self.loss(index, planned)
        pilots = self.plan.pilots
        shortest = min(pilot["x"] for pilot in pilots)
        way = [shortest * (planned / shortest) ** (step / CURVE_POINTS) for step in range(CURVE_POINTS)]
        return {
            "x": "tokens",
            "pilot": [pilot for pilot in pilots if pilot["candidate"] == index],
            "others": [pilot for pilot in pilots if pilot["candidate"] != index],
            "planned_x": planned,
            "predicted_loss": predicted.value,
            "low": predicted.low,
            "high": predicted.high,
            "curve": [*([x, self.loss(index, x).value] for x in way), [planned, predicted.value]],
        }


def announcement(prediction: dict[str, Any] | None) -> str:
    """The prediction in one sentence."""
    if prediction is None:
        return "no prediction: the budget is too small for pilots"
    value, low, high = (prediction[name] for name in ("predicted_loss", "low", "high"))
    return (
        f"predicted validation loss {value:.3f} (95 % interval {low:.3f} to {high:.3f}) nats per token after "
        f"{count(round(prediction['planned_x']))} tokens"
    )
