"""The outer loop every training stage shares: a budget, resume states, validation, the metrics log, an orderly stop.

A stage supplies a body with three methods: make one step, give its state, take its state back. With a budget in steps
or tokens, the result after any number of kills and resumes equals that of one uninterrupted run bit for bit (same
machine, same threads), because a body's state holds everything its next step depends on. With a budget in seconds, the
time spent before a kill counts, and schedules follow the clock. The clock is the monotonic one: setting the time of day
changes nothing.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from parlance.core.config import Config
from parlance.core.devices import release_free_memory
from parlance.core.errors import Interrupted, UserError
from parlance.core.interrupts import StopRequest, stop_requests
from parlance.core.metrics import MetricsLog
from parlance.core.progress import Progress, say
from parlance.training.loss_target import LossTarget
from parlance.training.saving import Saver, States
from parlance.training.throughput import Speed

RELEASE_SECONDS = 4.0
"""Seconds between two times that freed memory is given back to the system."""
CHECKPOINT_SECONDS = 30.0
"""Usual time between two resume states."""
WORTH_SAVING = 5.0
"""Seconds of work that are saved before an evaluation; with less than that since the newest state it goes without."""


class Budget(Config):
    """How long a stage trains: steps, seconds, tokens, or several of them (whichever is spent first ends it)."""

    steps: int | None = None
    """Budget in optimizer steps (for PPO: updates)."""
    seconds: float | None = None
    """Budget in seconds of this stage's loop, validation and resume states included."""
    tokens: int | None = None
    """Budget in tokens read; the step that crosses it is finished."""
    until_loss: float | None = None
    """Mean nats per token over the whole validation split at which training ends early."""

    def check(self, stage: str) -> None:
        """Raise UserError unless there is a budget, above zero."""
        given = [value for value in (self.steps, self.seconds, self.tokens) if value is not None]
        if not given or min(given) <= 0:
            raise UserError(f"{stage}: give a budget above zero, in steps, in seconds or in tokens")

    def progress(self, steps: int, seconds: float, tokens: float = 0) -> float:
        """Share that is spent, 0..1."""
        by_steps = steps / self.steps if self.steps is not None else 0.0
        by_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        by_tokens = tokens / self.tokens if self.tokens is not None else 0.0
        return min(1.0, max(by_steps, by_seconds, by_tokens))


class LoopBody(Protocol):
    """One kind of training step, and its whole state."""

    def step(self, progress: float) -> dict[str, float]:
        """Make one step at `progress` in [0, 1); returns figures for the metrics log.

        Of these the loop itself reads `tokens`, read so far; `skipped`, steps without an update so far; and `unsound`,
        above 0 while the newest steps had none.
        """
        ...

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values that the next step depends on."""
        ...

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Take back what `capture` gave."""
        ...


@dataclass
class LoopResult:
    """What a finished loop did."""

    steps: int
    seconds: float
    last: dict[str, float]
    """Figures of the last step."""
    reached: bool | None = None
    """Whether the loss of `Budget.until_loss` was reached; None without one."""
    whole_loss: float | None = None
    """Mean loss over the whole validation split at the end, where there is a target."""
    saving_seconds: float = 0.0
    """Seconds that training stood still for resume states, in this process."""


@dataclass
class _Place:
    """How far a loop is; stored with its states."""

    step: int = 0
    elapsed: float = 0.0
    validated: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    whole_loss: float | None = None
    """Over the whole validation split, when it was last measured."""
    reached: bool = False
    evaluated: bool = True
    """Whether the evaluations that are due after this step are done; False only in a state saved before them."""
    saved: float = 0.0
    """Seconds at the newest state that was begun to be written. This and what follows is not stored."""
    logged: float = 0.0
    """Seconds at the newest row of the log."""
    told: float = 0.0
    """Steps left out that have a row of the log."""
    start: float = 0.0
    """When it would have begun without any break, by the monotonic clock."""
    released: float = 0.0
    """Seconds at which freed memory was given back."""
    stored: int | None = None
    """Step of the newest state that has nothing left to do at its step, begun to be written or resumed from."""
    resumed: int | None = None
    """Step of the state that was resumed from."""

    @property
    def tokens(self) -> float:
        return self.figures.get("tokens", 0)

    @property
    def skipped(self) -> float:
        return self.figures.get("skipped", 0)

    @property
    def sound(self) -> bool:
        """Whether the newest step was made: the weights of one that was left out may be no numbers."""
        return not self.figures.get("unsound")


@dataclass
class Loop:
    """Runs a body until its budget is spent."""

    stage: str
    budget: Budget
    states: States
    metrics: MetricsLog
    validate: Callable[[], dict[str, float]] | None = None
    validations: int = 4
    """How many times to validate on the way (evenly in progress)."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between two resume states; infinity: none but at a stop."""
    log_seconds: float = 1.0
    """Least time between two rows of the metrics log; 0 logs every step."""
    target: LossTarget | None = None
    """Measures the loss of `Budget.until_loss`."""
    speed: Speed = field(default_factory=Speed)
    """Turns tokens and seconds into what the log shows."""
    observe: Callable[[int], None] | None = None
    """Called with the step after each validation: looks at the model, and changes nothing."""
    background: bool = False
    """Write resume states in a thread (not for states that several processes write together)."""
    agree: Callable[[Sequence[float]], list[float]] = list
    """The elementwise maximum over all processes that train together, so that they decide alike."""

    def run(self, body: LoopBody, *, resume: bool = False) -> LoopResult:
        """Step until the budget is spent. With `resume`, go on from the newest intact state, if any.

        Raises Interrupted, with the state saved, when the user asks to stop.
        """
        self.budget.check(self.stage)
        here = self._start(body, resume)
        self.metrics.rewind(self.stage, here.step if here.evaluated else here.step - 1)
        here.start = time.monotonic() - here.elapsed
        here.released = here.logged = here.elapsed
        with (
            stop_requests() as stop,
            Saver(self.states, self.background) as saver,
            self._progress_bar(here) as bar,
        ):
            if not here.evaluated:
                self._evaluate(body, here, saver)
            while self._progress(here) < 1.0 and not here.reached:
                before = self._done(here)
                stopping = self._step(body, here, stop)
                self._evaluate(body, here, saver)
                bar.update(self._done(here) - before, **_shown(here.figures))
                _release_memory(here)
                if stopping:
                    self._stop(body, here, saver)
                if here.sound and here.elapsed - here.saved >= self.checkpoint_seconds:
                    self._save(body, here, saver)
            # What follows a stage's training is an evaluation too.
            self._save_before_evaluation(body, here, saver)
        if self.target is None:
            return LoopResult(here.step, here.elapsed, here.figures, saving_seconds=saver.seconds)
        return LoopResult(here.step, here.elapsed, here.figures, here.reached, here.whole_loss, saver.seconds)

    def _step(self, body: LoopBody, here: _Place, stop: StopRequest) -> bool:
        """Make a step; returns whether any process was asked to stop."""
        tokens, elapsed = here.tokens, here.elapsed
        here.figures = body.step(self._progress(here))
        here.step += 1
        here.elapsed, stopping = self.agree([time.monotonic() - here.start, float(stop.requested)])
        self.speed.count(here.tokens - tokens, here.elapsed - elapsed)
        return bool(stopping)

    def _evaluate(self, body: LoopBody, here: _Place, saver: Saver) -> None:
        """Validate and measure the loss of the target where they are due after a step, and write a row of the log."""
        done = self._progress(here)
        validating = here.validated < self.validations and done * (self.validations + 1) >= here.validated + 1
        if self.validate is not None and validating:
            here.evaluated = False  # whoever resumes from the state has the evaluation before him
            self._save_before_evaluation(body, here, saver)
            here.evaluated = True
            here.figures |= self.validate()
            here.validated += 1
            if self.observe is not None:
                self.observe(here.step)
        (here.elapsed,) = self.agree([time.monotonic() - here.start])
        if self.target is not None:
            self._measure(self.target, here)
        news = here.figures.keys() & {"validation_loss", "whole_validation_loss"} or here.skipped > here.told
        ending = here.reached or self._progress(here) >= 1.0
        if news or ending or here.elapsed - here.logged >= self.log_seconds:
            here.logged, here.told = here.elapsed, here.skipped
            here.figures |= self.speed.figures() | self.speed.bits_per_byte(here.figures)
            self.metrics.write(self.stage, here.step, seconds=round(here.elapsed, 3), **here.figures)

    def _measure(self, target: LossTarget, here: _Place) -> None:
        """Measure the loss of the target where that is due; at the end of the budget over the whole split."""
        ending = self._progress(here) >= 1.0
        if not target.due(here.step, here.figures, last=ending):
            return
        loss, complete = target.measure(here.step, whole=ending)
        (loss, here.elapsed) = self.agree([loss, time.monotonic() - here.start])
        if not complete and self._progress(here) >= 1.0:  # the time ran out meanwhile
            loss, complete = target.measure(here.step, whole=True)
            (loss, here.elapsed) = self.agree([loss, time.monotonic() - here.start])
        if complete:
            here.figures["whole_validation_loss"] = here.whole_loss = loss
            here.reached = loss <= target.loss

    def _progress(self, here: _Place) -> float:
        return self.budget.progress(here.step, here.elapsed, here.tokens)

    @property
    def _unit(self) -> int:
        """Which budget the progress line shows: 0 steps, 1 tokens, 2 seconds."""
        return 0 if self.budget.steps is not None else 1 if self.budget.tokens is not None else 2

    def _progress_bar(self, here: _Place) -> Progress:
        total = (self.budget.steps, self.budget.tokens, self.budget.seconds)[self._unit]
        return Progress(self.stage, total, ("steps", "tokens", "s")[self._unit], done=self._done(here))

    def _done(self, here: _Place) -> float:
        """What the progress line shows."""
        return (here.step, here.tokens, here.elapsed)[self._unit]

    def _save(self, body: LoopBody, here: _Place, saver: Saver) -> None:
        """Store a state, unless that of this step is there."""
        if here.stored != here.step and saver.save(here.step, *self._state(body, here)):
            here.saved = here.elapsed
            here.stored = here.step if here.evaluated else None

    def _save_before_evaluation(self, body: LoopBody, here: _Place, saver: Saver) -> None:
        """An evaluation that fails must not cost what was learnt (as long as it is worth anything)."""
        worth = min(WORTH_SAVING, self.checkpoint_seconds)
        if here.sound and math.isfinite(self.checkpoint_seconds) and here.elapsed - here.saved >= worth:
            self._save(body, here, saver)

    def _state(self, body: LoopBody, here: _Place) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resume state holds."""
        tensors, info = body.capture()
        done: dict[str, Any] = {"elapsed": here.elapsed, "validated": here.validated, "evaluated": here.evaluated}
        done |= {"last": dict(here.figures), "body": info}
        if self.target is not None:
            done |= {"target": self.target.capture(), "whole_loss": here.whole_loss, "reached": here.reached}
        return tensors, done

    def _stop(self, body: LoopBody, here: _Place, saver: Saver) -> None:
        """Save the state and raise Interrupted. Weights that may be broken are not saved: the older states are not."""
        kept = here.sound and saver.save(here.step, *self._state(body, here), wait=True)
        if kept:
            told = "its state is saved"
        elif (older := saver.newest() or here.resumed) is not None:
            told = f"its state could not be saved, and the one before it stays: that of step {older}"
        else:
            told = "its state could not be saved, and there is none before it"
        raise Interrupted(f"{self.stage} stopped at step {here.step}; {told}")

    def _start(self, body: LoopBody, resume: bool) -> _Place:
        """The beginning, or where the newest state is."""
        found = self.states.latest() if resume else None
        if found is None:
            if resume:
                say(f"{self.stage} begins anew, at step 0: there is no intact training state")
            self.states.discard()
            return _Place()
        step, tensors, info = found
        body.restore(tensors, info["body"])
        here = _Place(step, info["elapsed"], info["validated"], info["last"], saved=info["elapsed"])
        here.evaluated, here.told, here.resumed = info["evaluated"], here.skipped, step
        here.stored = step if here.evaluated else None
        if self.target is not None:
            self.target.restore(info["target"])
            here.whole_loss, here.reached = info["whole_loss"], info["reached"]
        say(f"{self.stage} resumes at step {step}")
        return here


SHOWN = (
    "loss",
    "validation_loss",
    "bits_per_byte",
    "accuracy",
    "reward",
    "kl",
    "labeller_score",
    "ended_share",
    "skipped",
)
"""Figures the progress line shows when a step reports them."""


def _release_memory(here: _Place) -> None:
    """Give freed memory back to the system every few seconds."""
    if here.elapsed - here.released >= RELEASE_SECONDS:
        release_free_memory()
        here.released = here.elapsed


def _shown(figures: dict[str, float]) -> dict[str, float | str]:
    """What the progress line shows of a step's figures."""
    shown: dict[str, float | str] = {name: figures[name] for name in SHOWN if name in figures}
    if "tokens_per_second" in figures:
        shown["tokens/s"] = f"{figures['tokens_per_second']:,.0f}"
    if "mfu" in figures:
        shown["mfu"] = f"{figures['mfu']:.0%}"
    return shown
