"""The main job: a recipe becomes a run directory with every stage's result and a report.

    summary = run_pipeline(Recipe(), Path("runs/demo"), resume=False, command="parlance run --out runs/demo")

A finished stage is never repeated; an unfinished one is resumed. Kill it at any moment and call again with `resume`.
"""

import datetime
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

from parlance.core.artifacts import read_json, write_json
from parlance.core.devices import environment, release_free_memory, select_device, usable_cores
from parlance.core.errors import UserError
from parlance.core.metrics import MetricsLog
from parlance.core.progress import say
from parlance.models.ngram_smoothing import NGramTraining
from parlance.pipeline.base_model import make_base
from parlance.pipeline.evaluation import evaluate_run
from parlance.pipeline.recipe import Recipe
from parlance.pipeline.report import write_report
from parlance.pipeline.run_directory import FOLDERS, METRICS, RunDirectory
from parlance.pipeline.stages.corpus import make_corpus, make_ngram, make_tokenizer
from parlance.pipeline.stages.docstring_demonstrations import make_docstring_demonstrations
from parlance.pipeline.stages.instruction import make_instructed
from parlance.pipeline.stages.policy import make_policy
from parlance.pipeline.stages.rankings import make_rankings
from parlance.pipeline.stages.reward import make_reward
from parlance.pipeline.stages.user_data import (
    check_demonstrations,
    check_rankings,
    make_user_demonstrations,
    make_user_rankings,
)
from parlance.scaling.energy import EnergyMeter
from parlance.text.tokenizers import Tokenizer
from parlance.training.loop import Budget
from parlance.training.pretraining_config import check_start, check_text, divisible_sizes


class Stage(Protocol):
    """A step of a recipe: from the artifacts of earlier stages to one folder, whole or not at all."""

    def __call__(self, out: Path) -> dict[str, Any]:
        """Make the folder `out`; returns facts for the summary."""
        ...


def run_pipeline(recipe: Recipe | None, out: Path, *, resume: bool, command: str) -> dict[str, Any]:
    """Run every stage of `recipe` that is not done in `out`, then write summary and report; returns the summary.

    With `resume`, the stored recipe is used and `recipe` may be None. Raises UserError, Interrupted.
    """
    directory = RunDirectory(out)
    if resume:
        recipe = directory.resume(recipe)
    else:
        recipe = recipe or Recipe()
        recipe.check()
        budget = recipe.stage_budget("pretrain", recipe.budget_seconds or 0.0)
        check_start(recipe.pretraining, budget, select_device(recipe.device))
        divisible_sizes(recipe.pretraining, processes=1)
        directory.begin(recipe)
    torch.set_num_threads(usable_cores())
    with directory:
        runner = _Runner(recipe, directory)
        if not (out / "run.json").exists():
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_json(out / "environment.json", environment())
            write_json(out / "run.json", {"command": command, "started": started})
        try:
            for name in recipe.stages():
                runner.stage(name)
            return runner.conclude()
        except UserError as error:
            if isinstance(error.__cause__, OSError) and directory.path.is_dir():
                raise UserError(f"{error}; once that is mended, go on with --resume") from error.__cause__
            raise


class _Runner:
    """Carries out the stages of one run."""

    def __init__(self, recipe: Recipe, directory: RunDirectory) -> None:
        self.recipe, self.directory, self.path = recipe, directory, directory.path
        self.device = select_device(recipe.device)
        self.metrics = MetricsLog(self.path / METRICS)
        self.work: dict[str, Stage] = {
            "corpus": self._corpus,
            "tokenizer": self._tokenizer,
            "ngram": self._ngram,
            "pretrain": self._pretrain,
            "demonstrations": self._demonstrations,
            "sft": self._sft,
            "rankings": self._rankings,
            "reward": self._reward,
            "ppo": self._ppo,
            "evaluation": self._evaluation,
        }

    def stage(self, name: str) -> None:
        """Run a stage unless it is done, and mark it done with its time and energy."""
        folder = FOLDERS[name]
        if self.directory.done(folder) is None:
            say(f"== {name}")
            before = self.directory.seconds()
            with EnergyMeter() as meter:
                facts = self.work[name](self.path / folder)
            release_free_memory()
            earlier = self.path / folder / "training" / "clock.json"
            if earlier.exists():
                before = float(read_json(earlier)["started_at"])
            seconds = round(self.directory.seconds() - before, 2)
            self.directory.finish(folder, name, seconds, facts | {"energy": meter.result()})
        # Only now: a kill between the two must not cost the training.
        shutil.rmtree(self.path / folder / "training", ignore_errors=True)

    def _budget(self, stage: str) -> Budget:
        """The stage's share of the time that is left, decided once: a resumed stage keeps it."""
        file = self.path / FOLDERS[stage] / "training" / "clock.json"
        if file.exists():
            return Budget.model_validate(read_json(file)["budget"])
        budget = self._share(stage)
        write_json(file, {"budget": budget.model_dump(), "started_at": self.directory.seconds()})
        return budget

    def _share(self, stage: str) -> Budget:
        """The stage's share of what is left of the run's budget now."""
        left = (self.recipe.budget_seconds or 0.0) - self.directory.seconds()
        return self.recipe.stage_budget(stage, left)

    def _resumes(self, stage: str) -> bool:
        return (self.path / FOLDERS[stage] / "training").exists()

    def _corpus(self, out: Path) -> dict[str, Any]:
        recipe = self.recipe
        return make_corpus(recipe.sources, out, recipe.corpus, skip_bad=recipe.skip_bad, seed=recipe.seed)

    def _tokenizer(self, out: Path) -> dict[str, Any]:
        check_text(self.path / "corpus", self.recipe.pretraining.context_length)
        return make_tokenizer(self.path / "corpus", out, self.path / "tokens", self.recipe.tokenizer)

    def _ngram(self, out: Path) -> dict[str, Any]:
        tokenizer = Tokenizer.load(self.path / "tokenizer")
        return make_ngram(self.path / "tokens", tokenizer, out, NGramTraining(order=self.recipe.ngram_order))

    def _pretrain(self, out: Path) -> dict[str, Any]:
        resume = self._resumes("pretrain")
        return make_base(
            self.path / "tokens",
            Tokenizer.load(self.path / "tokenizer"),
            out,
            self.recipe.pretraining,
            self._budget("pretrain"),
            metrics=self.metrics,
            seed=self.recipe.seed,
            device=self.device,
            resume=resume,
            checkpoint_seconds=self.recipe.checkpoint_seconds,
        )

    def _user_files(self) -> tuple[Path | None, Path | None]:
        """(demonstrations, preferences) that the user gave."""
        demonstrations, preferences = self.recipe.demonstrations, self.recipe.preferences
        return Path(demonstrations) if demonstrations else None, Path(preferences) if preferences else None

    def _demonstrations(self, out: Path) -> dict[str, Any]:
        recipe = self.recipe
        if recipe.default_task:
            tokenizer = Tokenizer.load(self.path / "tokenizer")
            return make_docstring_demonstrations(self.path / "corpus", tokenizer, out, recipe.task)
        demonstrations, preferences = self._user_files()
        facts = make_user_demonstrations(demonstrations, preferences, out, skip_bad=recipe.skip_bad, seed=recipe.seed)
        check_demonstrations(
            out / "train.jsonl",
            Tokenizer.load(self.path / "tokenizer"),
            recipe.pretraining.context_length,
            answer_tokens=recipe.policy.ppo.max_tokens if recipe.aligns else None,
        )
        return facts

    def _sft(self, out: Path) -> dict[str, Any]:
        resume = self._resumes("sft")
        return make_instructed(
            self.path / "base",
            self.path / "demonstrations",
            out,
            self.recipe.finetuning,
            self._budget("sft"),
            metrics=self.metrics,
            seed=self.recipe.seed,
            device=self.device,
            resume=resume,
            checkpoint_seconds=self.recipe.checkpoint_seconds,
        )

    def _rankings(self, out: Path) -> dict[str, Any]:
        recipe = self.recipe
        demonstrations, preferences = self._user_files()
        if preferences is not None:
            facts = make_user_rankings(demonstrations, preferences, out, skip_bad=recipe.skip_bad, seed=recipe.seed)
            tokenizer = Tokenizer.load(self.path / "tokenizer")
            check_rankings(out / "train.jsonl", tokenizer, recipe.pretraining.context_length)
            return facts
        return make_rankings(
            self.path / "sft",
            self.path / "demonstrations",
            out,
            recipe.task,
            seed=recipe.seed,
            device=self.device,
            seconds=None if recipe.budget_seconds is None else self._share("rankings").seconds,
        )

    def _reward(self, out: Path) -> dict[str, Any]:
        resume = self._resumes("reward")
        return make_reward(
            self.path / "sft",
            self.path / "rankings",
            out,
            self.recipe.reward,
            self._budget("reward"),
            metrics=self.metrics,
            seed=self.recipe.seed,
            device=self.device,
            resume=resume,
            checkpoint_seconds=self.recipe.checkpoint_seconds,
        )

    def _ppo(self, out: Path) -> dict[str, Any]:
        resume = self._resumes("ppo")
        return make_policy(
            self.path / "sft",
            self.path / "demonstrations" / "train.jsonl",
            self.path / "reward",
            out,
            self.recipe.policy,
            self._budget("ppo"),
            metrics=self.metrics,
            seed=self.recipe.seed,
            device=self.device,
            resume=resume,
            checkpoint_seconds=self.recipe.checkpoint_seconds,
            score_labeller=self.recipe.default_task,
        )

    def _evaluation(self, out: Path) -> dict[str, Any]:
        return evaluate_run(self.path, out, self.recipe, self.device)

    def conclude(self) -> dict[str, Any]:
        """Write `summary.json` and `report.html`."""
        recipe, records = self.recipe, []
        for name in recipe.stages():
            record = self.directory.done(FOLDERS[name])
            assert record is not None
            records.append(record)
        base = next(record["facts"] for record in records if record["stage"] == "pretrain")
        choices = list(base["choices"])
        energies = [record["facts"]["energy"] for record in records]
        keys = ("parameters", "layers", "width", "heads", "context_length", "vocab_size", "precision", "architecture")
        summary = {
            **read_json(self.path / "run.json"),
            "recipe": recipe.name,
            "seconds": round(self.directory.seconds(), 1),
            "budget_seconds": recipe.budget_seconds,
            "seed": recipe.seed,
            "stages": [{"name": record["stage"], "seconds": record["seconds"], "status": "done"} for record in records],
            "peak_memory_bytes": max(record["peak_memory_bytes"] for record in records),
            "energy": {
                **{key: sum(energy[key] for energy in energies) for key in ("kilowatt_hours", "low", "high")},
                "method": energies[0]["method"],
            },
            "model": {key: base[key] for key in keys},
            "choices": choices,
            "results": records[-1]["facts"],
        }
        write_json(self.path / "summary.json", summary)
        write_report(self.path)
        return summary
