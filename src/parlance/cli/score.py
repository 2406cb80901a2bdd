"""`parlance score`: how well a model predicts a text."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options


def score(
    model: options.ModelFolder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A text file, scored as one document.")],
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
) -> None:
    """Score a text: bits per byte (comparable between all models), perplexity per token, tokens.

    Example: parlance score runs/demo/base my_module.py
    """
    from parlance.cli import inputs, output
    from parlance.inference.model import load

    inputs.torch_device(device)
    text = inputs.text_file(file)
    opened = load(model, device, precision)
    scored = opened.score(text)
    figures = {
        "model": str(opened.folder),
        "file": str(file),
        "bits_per_byte": scored.bits_per_byte,
        "perplexity": scored.perplexity,
        "tokens": scored.tokens,
        "bytes": scored.bytes,
        "nats": scored.nats,
        "unknown": scored.unknown,
    }
    output.tell_unknown(scored.unknown, "text")
    output.print_facts(figures, json=json)
