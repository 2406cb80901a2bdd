"""`parlance generate`: a model continues a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parlance.cli import options

if TYPE_CHECKING:
    from parlance.inference.model import Candidate, Continuation, Model


def generate(
    model: options.ModelFolder,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads standard input.")],
    max_tokens: options.MaxTokens = 128,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", metavar="FILE", help="Write JSON that this schema describes.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option("--regex", metavar="R", help="Write what this regular expression matches.")
    ] = None,
    choices: Annotated[str | None, typer.Option("--choices", metavar="A,B,C", help="Write one of these.")] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            "--draft",
            metavar="DIR|prompt",
            help="Guess ahead with a smaller or an n-gram model, or from the prompt: the same law, sooner.",
        ),
    ] = None,
    best_of: Annotated[
        int, typer.Option("--best-of", min=1, metavar="N", help="Write N texts, keep the one likeliest per token.")
    ] = 1,
    beams: Annotated[
        int, typer.Option("--beams", min=0, metavar="N", help="Search the likeliest text with N beams; draw nothing.")
    ] = 0,
    overflow: options.Overflow = "error",
    seed: options.Seed = 0,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of SamplingConfig: min_p=0.1, top_logprobs=5, ..."),
    ] = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    json: options.Json = False,
) -> None:
    """Continue a text. The continuation streams to standard output; the same seed gives the same text.

    Example: parlance generate runs/demo/base "def dedent("

    Example: parlance generate runs/demo "Name a fruit:" --json-schema fruit.json
    """
    from parlance.cli import inputs, output
    from parlance.core.errors import UserError
    from parlance.inference.model import Draft, load

    inputs.torch_device(device)
    sampling = inputs.sampling_of(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        overflow=overflow,
        seed=seed,
        stop=stop or (),
        assignments=assignments or (),
    )
    ahead: dict[str, object] = {"--json-schema": json_schema, "--regex": regex, "--choices": choices, "--draft": draft}
    given = [name for name, value in ahead.items() if value is not None]
    if (best_of > 1 or beams) and (given or (best_of > 1 and beams)):
        other = given[0] if given else "--beams"
        raise UserError(f"--{'best-of' if best_of > 1 else 'beams'} and {other} do not go together: leave one out")
    opened = load(model, device, precision)
    text = inputs.prompt_text(prompt)
    if best_of > 1 or beams:
        if beams:  # nothing is drawn, so what draws are made by is nothing to refuse
            found = opened.beam_search(text, beams, sampling)
        else:
            found = opened.best_of(text, best_of, sampling)
        _show(opened, text, found, json=json)
        return
    constraint = inputs.constraint_of(json_schema, regex, choices, opened)
    guesses: Draft | None = None
    if draft is not None:
        guesses = "prompt" if draft == "prompt" else load(draft, device, precision)
    pieces = opened.stream(text, sampling, constraint=constraint, draft=guesses)
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
                "tokens": _tokens(opened, pieces) if sampling.top_logprobs else None,
            }
        )
    else:
        output.print_continuation(text, pieces)
    output.tell_ending(pieces)


def _tokens(model: "Model", pieces: "Continuation") -> list[dict[str, Any]]:
    """Each token with its log-probability and the likeliest ones in its place."""

    def shown(token: int) -> str:
        return model.tokenizer.token_bytes(token).decode("utf-8", errors="replace")

    return [
        {
            "id": draw.token,
            "text": shown(draw.token),
            "log_prob": draw.log_prob,
            "top": [{"id": token, "text": shown(token), "log_prob": log_prob} for token, log_prob in draw.top],
        }
        for draw in pieces.draws
    ]


def _show(model: "Model", prompt: str, found: "list[Candidate]", *, json: bool) -> None:
    """The best of several texts; as JSON, all of them."""
    from parlance.cli import output

    if json:
        rows = [
            {"text": each.text, "tokens": each.tokens, "log_prob": each.log_prob, "ended": each.ended} for each in found
        ]
        output.print_json({"model": str(model.folder), "prompt": prompt, "text": found[0].text, "candidates": rows})
    else:
        output.print_continuation(prompt, [found[0].text])
