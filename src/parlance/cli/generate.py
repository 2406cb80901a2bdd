"""`parlance generate`: a model continues a text."""

from typing import Annotated

import typer

from parlance.cli import options


def generate(
    model: options.ModelFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")],
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    overflow: options.Overflow = "error",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
) -> None:
    """Continue a text. The continuation streams to standard output; the same seed gives the same text.

    Example: parlance generate runs/demo/base "def dedent("
    """
    from parlance.cli import inputs, output
    from parlance.inference.model import load

    inputs.torch_device(device)
    sampling = inputs.sampling_of(
        max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, overflow=overflow, seed=seed
    )
    opened = load(model, device, precision)
    text = inputs.prompt_text(prompt)
    pieces = opened.stream(text, sampling)
    output.tell_unknown(pieces.unknown, "prompt")
    if json:
        written = "".join(pieces)
        output.print_json(
            {
                "model": str(opened.folder),
                "prompt": text,
                "text": written,
                "ended": pieces.ended,
                "unknown": pieces.unknown,
            }
        )
    else:
        output.print_continuation(text, pieces)
    output.tell_ending(pieces)
