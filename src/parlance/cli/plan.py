"""`parlance plan`: what a training run takes, and the scaling law behind a table of runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options


def plan(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="A checkpoint folder, or its config.json: the model to plan for."),
    ] = None,
    params: Annotated[str | None, typer.Option("--params", metavar="N", help="Parameters: 65b, 350m.")] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="N", help="Training tokens: 1.4t. None: the best for the size.")
    ] = None,
    flops: Annotated[
        str | None, typer.Option("--flops", metavar="C", help="Compute, in place of parameters or tokens: 6e23.")
    ] = None,
    money: Annotated[
        str | None, typer.Option("--money", metavar="DOLLARS", help="The same as the compute that this buys.")
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            metavar="NAME",
            help="Device (a wrong name lists them), or peak=312,memory=80,bandwidth=2039,watts=400.",
        ),
    ] = "h100-80gb",
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, max=2**20, help="How many; none: the least power of two that holds it."),
    ] = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="TOKENS", help="Tokens of a step: 4m. None: a usual number.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Tokens of a sequence; else MODEL's, or 2048.")
    ] = None,
    vocab: Annotated[int | None, typer.Option("--vocab", min=1, help="Size of the vocabulary.")] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Blocks; none: a usual shape.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Width of the residual stream.")] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1, help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option("--kv-heads", min=1, help="Key/value heads.")] = None,
    gated: Annotated[
        bool, typer.Option("--gated/--plain", help="Feed-forward with a gate (three matrices) or without (two).")
    ] = True,
    experts: Annotated[int, typer.Option("--experts", min=1, help="Feed-forwards to choose from.")] = 1,
    experts_per_token: Annotated[int, typer.Option("--experts-per-token", min=1, help="How many are used.")] = 1,
    precision: Annotated[
        Literal["mixed", "bf16", "fp32", "fp8"],
        typer.Option("--precision", help="mixed: 16 bits over 32-bit weights; bf16: 16 bits throughout."),
    ] = "mixed",
    optimizer: Annotated[
        Literal["adamw", "muon", "sgd"], typer.Option("--optimizer", help="Decides the states kept.")
    ] = "adamw",
    layout: Annotated[
        str | None,
        typer.Option("--layout", metavar="AXIS=N,...", help="Fix parts of the layout: tensor=8,pipeline=4,zero=1."),
    ] = None,
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak reached, 0 to 1; none: an estimate.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", help="Dollars a device and hour.")] = None,
    watts: Annotated[float | None, typer.Option("--watts", help="Of one device; none: its rated power.")] = None,
    pue: Annotated[float, typer.Option("--pue", help="Electricity of the centre over that of the devices.")] = 1.1,
    carbon_intensity: Annotated[
        float, typer.Option("--carbon-intensity", help="kg CO2 a kWh; 0.475 is the world's mean.")
    ] = 0.475,
    runs: Annotated[
        Path | None,
        typer.Option("--runs", metavar="CSV", help="Finished runs (parameters, tokens, loss): fit the law to them."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="SVG", help="Draw the runs of equal compute and their minima.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Plan a training run: parameters, compute, memory on every layout, time, money, energy, CO2, expected loss.

    With --runs, fit the loss surface to your own runs, with intervals, and divide compute by it.

    Example: parlance plan --params 65b --tokens 1.4t --gpu a100-80gb --gpus 2048

    Example: parlance plan --runs runs.csv --flops 1e21 --picture isoflop.svg
    """
    from parlance.cli import plan_inputs, plan_output
    from parlance.scaling.accelerators import find
    from parlance.scaling.layouts import parse_layout
    from parlance.scaling.planner import make_plan

    given = {"--params": params, "--tokens": tokens, "--flops": flops, "--money": money, "--batch": batch}
    numbers = plan_inputs.counts(given)
    accelerator = find(gpu)
    fixed = None if layout is None else parse_layout(layout)
    surface = plan_inputs.surface_of(runs, picture)
    if surface is not None and model is None and not plan_inputs.says_what_to_train(numbers):
        plan_output.print_surface(surface, json=json)
        return
    sizes = {"vocab_size": vocab, "layers": layers, "width": width, "heads": heads, "kv_heads": kv_heads}
    parts = {"gated_mlp": gated, "experts": experts, "experts_per_token": experts_per_token}
    law = plan_inputs.law_of(surface)
    shape, size = plan_inputs.shape_and_size(
        model,
        numbers,
        surface or law,
        sizes | parts,
        context,
        accelerator=accelerator,
        precision=precision,
        mfu=mfu,
        price=price,
    )
    made = make_plan(
        shape, tokens=size.tokens, accelerator=accelerator, devices=gpus, batch=numbers["--batch"], precision=precision,
        optimizer=optimizer, mfu=mfu, price=price, watts=watts, pue=pue, carbon_intensity=carbon_intensity, fixed=fixed,
        law=law,
    )  # fmt: skip
    plan_output.print_plan(made, size, surface, json=json)
