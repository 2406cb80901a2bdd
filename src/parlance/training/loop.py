"""The outer loop every training stage shares: a budget, resume states, validation, the metrics log, an orderly stop.

A stage supplies a body with three methods: make one step, give its state, take its state back. With a budget in steps,
the result after any number of kills and resumes equals that of one uninterrupted run bit for bit (same machine, same
threads), because a body's state holds everything its next step depends on. With a budget in seconds, the time spent
before a kill counts, and schedules follow the clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from parlance.core.config import Config
from parlance.core.devices import release_free_memory
from parlance.core.errors import Interrupted, UserError
from parlance.core.interrupts import stop_requests
from parlance.core.metrics import MetricsLog
from parlance.core.progress import Progress, say
from parlance.training.checkpointing import TrainingStates

RELEASE_SECONDS = 4.0
"""Seconds between two times that freed memory is given back to the system."""
CHECKPOINT_SECONDS = 30.0
"""Usual time between two resume states."""


class Budget(Config):
    """How long a stage trains: steps, seconds, or both (then whichever is spent first ends it)."""

    steps: int | None = None
    """Budget in optimizer steps (for PPO: updates)."""
    seconds: float | None = None
    """Budget in seconds of this stage's loop, validation and resume states included."""

    def check(self, stage: str) -> None:
        """Raise UserError unless there is a budget, above zero."""
        given = [value for value in (self.steps, self.seconds) if value is not None]
        if not given or min(given) <= 0:
            raise UserError(f"{stage}: give a budget above zero, in steps or in seconds")

    def progress(self, steps: int, seconds: float) -> float:
        """Share that is spent, 0..1."""
        by_steps = steps / self.steps if self.steps is not None else 0.0
        by_seconds = seconds / self.seconds if self.seconds is not None else 0.0
        return min(1.0, max(by_steps, by_seconds))


class LoopBody(Protocol):
    """One kind of training step, and its whole state."""

    def step(self, progress: float) -> dict[str, float]:
        """Make one step at `progress` in [0, 1); returns figures for the metrics log."""
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


@dataclass
class Loop:
    """Runs a body until its budget is spent."""

    stage: str
    budget: Budget
    states: TrainingStates
    metrics: MetricsLog
    validate: Callable[[], dict[str, float]] | None = None
    validations: int = 4
    """How many times to validate on the way (evenly in progress)."""
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    """Seconds between two resume states."""
    log_seconds: float = 1.0
    """Least time between two rows of the metrics log; 0 logs every step."""

    def run(self, body: LoopBody, *, resume: bool = False) -> LoopResult:
        """Step until the budget is spent. With `resume`, go on from the newest intact state, if any.

        Raises Interrupted, with the state saved, when the user asks to stop.
        """
        self.budget.check(self.stage)
        step, elapsed, validated, figures = self._start(body, resume)
        self.metrics.rewind(self.stage, step)
        start = time.monotonic() - elapsed
        saved = logged = released = time.monotonic()
        by_steps = self.budget.steps is not None
        with (
            stop_requests() as stop,
            Progress(
                self.stage,
                self.budget.steps or self.budget.seconds,
                "steps" if by_steps else "s",
                done=step if by_steps else elapsed,
            ) as bar,
        ):
            while (progress := self.budget.progress(step, elapsed)) < 1.0:
                before = elapsed
                figures = body.step(progress)
                step += 1
                elapsed = time.monotonic() - start
                due = self.budget.progress(step, elapsed) * (self.validations + 1) >= validated + 1
                validating = self.validate is not None and due and validated < self.validations
                if self.validate is not None and validating:
                    figures |= self.validate()
                    validated += 1
                    elapsed = time.monotonic() - start
                now = time.monotonic()
                if validating or now - logged >= self.log_seconds or self.budget.progress(step, elapsed) >= 1.0:
                    logged = now
                    self.metrics.write(self.stage, step, seconds=round(elapsed, 3), **figures)
                shown = {name: figures[name] for name in SHOWN if name in figures}
                bar.update(1 if by_steps else elapsed - before, **shown)
                if now - released >= RELEASE_SECONDS:
                    release_free_memory()
                    released = now
                if stop.requested or now - saved >= self.checkpoint_seconds:
                    tensors, info = body.capture()
                    done = {"elapsed": elapsed, "validated": validated, "last": figures, "body": info}
                    self.states.save(step, tensors, done)
                    saved = time.monotonic()
                    if stop.requested:
                        raise Interrupted(f"{self.stage} stopped at step {step}; its state is saved")
        return LoopResult(step, elapsed, figures)

    def _start(self, body: LoopBody, resume: bool) -> tuple[int, float, int, dict[str, float]]:
        """Step, elapsed seconds, validations done, figures of the last step: none, or those of the newest state."""
        found = self.states.latest() if resume else None
        if found is None:
            self.states.discard()
            return 0, 0.0, 0, {}
        step, tensors, info = found
        body.restore(tensors, info["body"])
        say(f"{self.stage} resumes at step {step}")
        return step, info["elapsed"], info["validated"], info["last"]


SHOWN = ("loss", "validation_loss", "accuracy", "reward", "kl", "labeller_score", "ended_share")
"""Figures the progress line shows when a step reports them."""
