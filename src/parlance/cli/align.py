"""`parlance align`: an instructed model optimised against a reward."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options


def align(
    model: options.ModelFolder,
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS", help="JSONL of demonstrations, whose prompts are used, or a folder with train.jsonl."
        ),
    ],
    out: options.Out,
    reward: Annotated[
        str,
        typer.Option(
            "--reward",
            metavar="DIR|MODULE:FUNCTION",
            help="A reward model's folder, or a Python function of (prompts, responses) that returns their scores.",
        ),
    ],
    method: Annotated[Literal["ppo"], typer.Option("--method", help="Proximal policy optimisation.")] = "ppo",
    budget: options.Budget = None,
    steps: options.Steps = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    assignments: options.Set = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Optimise a model against a reward, held near where it started by a price on the divergence.

    Example: parlance align my-assistant answers.jsonl --reward my-reward --steps 50 --out my-policy

    Example: parlance align my-assistant answers.jsonl --reward my_rewards:short --budget 5m --out my-policy
    """
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.config import override
    from parlance.core.metrics import MetricsLog
    from parlance.inference.model import resolve_model_folder
    from parlance.pipeline.recipe import PolicyConfig
    from parlance.pipeline.stages.policy import make_policy

    config = override(PolicyConfig(), assignments or [])
    limit, start, place = inputs.stage_budget(budget, steps), resolve_model_folder(model), inputs.torch_device(device)
    judge, rows = inputs.reward_of(reward), inputs.prompts_file(prompts)
    decided = {"model": str(start), "prompts": str(prompts), "reward": reward, "method": method, "seed": seed}
    decided |= {"budget": limit.model_dump(), "config": config.model_dump(mode="json")}
    with invocation.resumable(), StageFolder(out, "ppo", decided, resume=resume) as folder:
        if folder.finished is None:
            log = MetricsLog(out / "metrics.jsonl")
            facts = make_policy(
                start, rows, judge, out, config, limit, metrics=log, seed=seed, device=place, resume=resume
            )
            folder.finish(facts)
    output.print_stage(out, json=json)
