"""`parlance reward`: a reward model from an instructed model and ranked answers."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options


def reward(
    model: options.ModelFolder,
    preferences: Annotated[
        Path,
        typer.Argument(
            metavar="PREFERENCES",
            help="JSONL of rankings (prompt, responses and ranking; or prompt, chosen and rejected), or a folder with "
            "train.jsonl and test.jsonl.",
        ),
    ],
    out: options.Out,
    budget: options.Budget = None,
    steps: options.Steps = None,
    skip_bad: options.SkipBad = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    assignments: options.Set = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train a reward model: it learns to score answers as the rankings order them.

    A single file is divided by prompt into 95 % training and 5 % test, kept in OUT/rankings.

    Example: parlance reward my-assistant rankings.jsonl --steps 100 --out my-reward
    """
    from parlance.alignment.reward_model import RewardModelConfig
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.config import override
    from parlance.core.metrics import MetricsLog
    from parlance.inference.model import resolve_model_folder
    from parlance.pipeline.stages.reward import make_reward

    config = override(RewardModelConfig(), assignments or [])
    limit, start, place = inputs.stage_budget(budget, steps), resolve_model_folder(model), inputs.torch_device(device)
    decided = {"model": str(start), "preferences": str(preferences), "skip_bad": skip_bad, "seed": seed}
    decided |= {"budget": limit.model_dump(), "config": config.model_dump(mode="json")}
    with invocation.resumable(), StageFolder(out, "reward", decided, resume=resume) as folder:
        if folder.finished is None:
            rows = inputs.rankings_folder(preferences, out / "rankings", skip_bad=skip_bad, seed=seed)
            log = MetricsLog(out / "metrics.jsonl")
            facts = make_reward(start, rows, out, config, limit, metrics=log, seed=seed, device=place, resume=resume)
            folder.finish(facts)
    output.print_stage(out, json=json)
