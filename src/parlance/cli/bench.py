"""`parlance bench`: comparisons that anyone can run on their own text and machine."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options

app = typer.Typer(help="Comparisons on your own text and machine.", no_args_is_help=True)


def ladder(
    out: options.Out,
    corpus: Annotated[
        Path | None,
        typer.Argument(metavar="[CORPUS]", help="A prepared corpus; none: this Python's own standard library."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Time for each network: 30s, 2m.")] = "60s",
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="byte|bpe:N|char:N|word:N|DIR", help="What all models read.")
    ] = "byte",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    assignments: options.Set = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Train every language model of the ladder for the same time on the same text, and draw their bits per byte.

    From counted n-grams over feed-forward, convolutional and recurrent networks to Transformers. OUT gets ladder.json
    and ladder.svg, and the training metrics of each network.

    Example: parlance bench ladder --budget 60s --out ladder

    Example: parlance bench ladder my-corpus --set networks=[LSTM,Transformer] --budget 5m --out two
    """
    from parlance.cli import inputs, invocation, output
    from parlance.cli.stage_folder import StageFolder
    from parlance.core.artifacts import read_json
    from parlance.core.config import override, parse_duration
    from parlance.pipeline.ladder import LadderConfig, run_ladder
    from parlance.pipeline.stages.corpus import make_corpus
    from parlance.text.preparation import PreparationConfig

    config = override(LadderConfig(seconds=parse_duration(budget)), assignments or [])
    place = inputs.torch_device(device)
    if corpus is not None:
        inputs.corpus_folder(corpus)
    settings = {"corpus": None if corpus is None else str(corpus), "tokenizer": tokenizer, "seed": seed}
    decided = settings | {"config": config.model_dump(mode="json")}
    with invocation.resumable(), StageFolder(out, "ladder", decided, resume=resume) as folder:
        if folder.finished is None:
            text = corpus or out / "corpus"
            if corpus is None and not (text / "card.json").exists():
                make_corpus([], text, PreparationConfig(), skip_bad=False, seed=seed)
            encoder = inputs.tokenizer_for(tokenizer, text, out / "tokenizer")
            run_ladder(text, encoder, out, config, seed=seed, device=place)
            folder.finish({"picture": str(out / "ladder.svg")})
    output.print_ladder(read_json(out / "ladder.json"), json=json)


app.command("ladder", help=options.help_of(ladder))(ladder)
