"""`parlance quantize`: a model with integers for weights."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options


def quantize(
    model: options.ModelFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new checkpoint folder.")],
    bits: Annotated[int, typer.Option("--bits", help="Bits of a weight: 8 or 4. A head of its own has 8.")] = 4,
    method: Annotated[
        Literal["nearest", "calibrated"] | None,
        typer.Option(
            "--method",
            help="The nearest integers, or those that keep what the model computes on --text; none: calibrated for 4 "
            "bits where there is a text.",
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="PATH",
            help="Text to calibrate on and to measure with: a file (its end is held out) or a corpus folder.",
        ),
    ] = None,
    assignments: options.Set = None,
    json: options.Json = False,
) -> None:
    """Write a model with its matrices as integers of 8 or 4 bits, and say what that costs on held-out text.

    The folder opens here like any other, and in transformers with the library compressed-tensors. Nothing is
    overwritten.

    Example: parlance quantize runs/demo/base --bits 4 --text runs/demo/corpus --out base-int4
    """
    from parlance.cli import inputs, output
    from parlance.core.config import override, parse_config
    from parlance.core.errors import UserError
    from parlance.inference.model import resolve_model_folder
    from parlance.inference.quantisation.quantise import QuantisationConfig, quantise, read_texts

    if bits not in (4, 8):
        raise UserError(f"--bits {bits}: weights have 8 or 4 bits")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} already exists; nothing is overwritten: choose another --out")
    inputs.torch_device("cpu")
    chosen = method or ("calibrated" if bits == 4 and text is not None else "nearest")
    values = {"bits": bits, "method": chosen}
    config = override(parse_config(QuantisationConfig, values, where="options"), assignments or ())
    texts = None if text is None else read_texts(text, config)
    facts = quantise(resolve_model_folder(model), out, config, texts)
    output.print_facts({"out": str(out), **facts}, json=json)
