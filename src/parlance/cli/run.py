"""`parlance run`: the whole line from text to an aligned, evaluated model and a report."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options


def run(
    out: options.Out,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files and folders of text (.txt, .md, .py, .jsonl, .parquet). None: the source code of this Python's "
            "standard library, from which a documentation assistant is made.",
        ),
    ] = None,
    demonstrations: Annotated[
        Path | None,
        typer.Option("--demonstrations", metavar="FILE", help="JSONL of prompts with good answers; adds fine-tuning."),
    ] = None,
    preferences: Annotated[
        Path | None,
        typer.Option(
            "--preferences", metavar="FILE", help="JSONL of ranked answers; adds a reward model and its optimisation."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe", metavar="FILE", help="A recipe.yaml to start from; other options override its fields."
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Time for the whole run: 90s, 8m, 1.5h. Default: 8m.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            "--steps",
            metavar="STAGE=N,...",
            help="Steps instead of time, like pretrain=20,sft=10,reward=5,ppo=2; repeatable bit for bit.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish the run that --out holds; --out alone is enough beside it.")
    ] = False,
    skip_bad: options.SkipBad = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random choice. Default: 0.")] = None,
    device: Annotated[
        options.DeviceName | None,
        typer.Option(
            "--device", help="Where to compute; auto takes CUDA, else an Apple GPU, else the CPU. Default: auto."
        ),
    ] = None,
    assignments: options.Set = None,
    json: options.Json = False,
) -> None:
    """Turn text into a language model you can talk to, and a report about it.

    Prepares the corpus, trains a tokenizer, an n-gram baseline and a Transformer, and evaluates them. With
    demonstrations it also fine-tunes, with preferences it also learns a reward and optimises the model against it.
    The default recipe (no SOURCE) does all of this. Stop it at any moment; --resume goes on.

    Example: parlance run --budget 8m --out runs/demo

    Example: parlance run books/ notes.txt --demonstrations answers.jsonl --out runs/mine
    """
    from parlance.cli import inputs, invocation, output, results

    wanted = inputs.recipe_of(
        sources=sources or [],
        demonstrations=demonstrations,
        preferences=preferences,
        recipe_file=recipe,
        budget=budget,
        steps=steps,
        seed=seed,
        device=device,
        skip_bad=skip_bad,
        assignments=assignments or [],
    )
    if wanted is not None and not resume:
        inputs.check_inputs(wanted)
    with invocation.resumable(["run", "--out", str(out)]):
        from parlance.pipeline.run import run_pipeline

        summary = run_pipeline(wanted, out, resume=resume, command=invocation.command_line())
    if json:
        output.print_json(summary | {"out": str(out)})
    else:
        results.print_run(out)
