"""What a pre-training run has decided so far, in its file training/plan.json: whoever resumes it decides nothing anew.

plan = RunPlan.open(folder / "training", asked, world, resume=True)
plan.choices.append("4 layers of width 256: as asked")
plan.keep()
"""

import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from parlance.core.artifacts import read_json, write_json
from parlance.core.config import changes
from parlance.core.errors import UserError
from parlance.training.checkpointing import TrainingStates
from parlance.training.parallel import World
from parlance.training.state_folders import states_in

FILE = "plan.json"


@dataclass
class RunPlan:
    """See the module. All processes hold the same; the first one writes."""

    folder: Path
    """Where it is kept."""
    world: World
    resumed: bool
    """Whether it was begun before."""
    asked: dict[str, Any]
    """Configuration, budget and seed that the run was begun with."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """Sizes to choose from, smallest first."""
    chosen: int = 0
    """Which of them it is; before the pilots, which of them the speeds alone suggest."""
    choices: list[str] = field(default_factory=list)
    """One sentence for each derived setting."""
    planned: list[dict[str, Any]] = field(default_factory=list)
    """Pilots to train."""
    pilots: list[dict[str, Any]] = field(default_factory=list)
    """Pilots that are finished."""
    ready: bool = False
    """Whether all is done that comes before the run itself."""
    prediction: dict[str, Any] | None = None
    spent: float = 0.0
    """Seconds of the budget that are gone before the run itself."""

    @classmethod
    def open(cls, folder: Path, asked: dict[str, Any], world: World, *, resume: bool) -> Self:
        """The plan in `folder` to go on with, or a new one and nothing left there of older runs.

        Raises UserError where it was begun with something else, or is damaged or gone.
        """
        found = world.share(_read(folder / FILE) if world.first and resume else None)
        if found is None:
            if world.first:
                TrainingStates(folder).discard()
                (folder / FILE).unlink(missing_ok=True)
            return cls(folder, world, False, asked)
        if changed := changes(found["asked"], asked):
            raise UserError(
                f"{folder.parent} was begun with another configuration: {'; '.join(changed)}; resume it as it was"
            )
        return cls(folder, world, True, **found)

    def keep(self) -> None:
        """Agree with the other processes on the time that is spent, and write the plan down."""
        self.spent = self.world.share(self.spent)
        if self.world.first:
            write_json(self.folder / FILE, {name: getattr(self, name) for name in _stored()})


class Stopwatch:
    """Adds the seconds between its making and each `stop` to what a plan has spent."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan, self._since = plan, time.monotonic()

    def stop(self) -> None:
        """What has passed since the last time is spent."""
        now = time.monotonic()
        self._plan.spent += now - self._since
        self._since = now


def _read(file: Path) -> dict[str, Any] | None:
    """What a plan's file holds; None where no run was begun. Raises UserError where it is damaged or gone."""
    again = f"remove {file.parent} to begin anew"
    if not file.exists():
        if states_in(file.parent):
            raise UserError(f"{file} is missing beside its resume states: {again}")
        return None
    plan: dict[str, Any] = read_json(file)
    needed = set(_stored())
    if missing := needed - plan.keys():
        raise UserError(f"{file} is damaged, it lacks {', '.join(sorted(missing))}: {again}")
    if unknown := plan.keys() - needed:
        raise UserError(f"{file} is of another version of Parlance, it holds {', '.join(sorted(unknown))}: {again}")
    return plan


def _stored() -> list[str]:
    """The fields that are in the file."""
    return [entry.name for entry in fields(RunPlan) if entry.name not in ("folder", "world", "resumed")]
