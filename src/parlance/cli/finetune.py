"""`parlance finetune`: an instructed model from a base model and demonstrations."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options


def finetune(
    model: options.ModelFolder,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="JSONL of demonstrations (prompt and completion, or messages), or a folder with train.jsonl and "
            "validation.jsonl.",
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
    """Fine-tune a model on demonstrations; only the answers count in the loss.

    A single file is divided into 90 % training, 5 % validation and 5 % test, kept in OUT/demonstrations.

    Example: parlance finetune my-base answers.jsonl --steps 200 --out my-assistant
    """
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.config import override
    from parlance.core.metrics import MetricsLog
    from parlance.finetuning.supervised import FinetuningConfig
    from parlance.inference.model import resolve_model_folder
    from parlance.pipeline.stages.instruction import make_instructed

    config = override(FinetuningConfig(), assignments or [])
    limit, base, place = inputs.stage_budget(budget, steps), resolve_model_folder(model), inputs.torch_device(device)
    decided = {"model": str(base), "data": str(data), "skip_bad": skip_bad, "seed": seed}
    decided |= {"budget": limit.model_dump(), "config": config.model_dump(mode="json")}
    with invocation.resumable(), StageFolder(out, "sft", decided, resume=resume) as folder:
        if folder.finished is None:
            rows = inputs.demonstrations_folder(data, out / "demonstrations", skip_bad=skip_bad, seed=seed)
            log = MetricsLog(out / "metrics.jsonl")
            facts = make_instructed(base, rows, out, config, limit, metrics=log, seed=seed, device=place, resume=resume)
            folder.finish(facts)
    output.print_stage(out, json=json)
