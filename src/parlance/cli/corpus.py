"""`parlance corpus`: prepare a corpus from raw text, look at a prepared one."""

from pathlib import Path
from typing import Annotated

import typer

from parlance.cli import options

app = typer.Typer(help="Prepare text for training, or look at prepared text.", rich_markup_mode="rich")


def prepare(
    out: options.Out,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files and folders of text (.txt, .md, .py, .jsonl, .parquet). None: the source code of this Python's "
            "standard library.",
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    seed: options.Seed = 0,
    assignments: options.Set = None,
    json: options.Json = False,
) -> None:
    """Read, filter, deduplicate and divide text into training, validation and test documents.

    Writes train.jsonl, validation.jsonl, test.jsonl, removed.jsonl (what was taken out and why) and card.json (counts
    before and after every filter, sources, licences).

    Example: parlance corpus prepare books/ notes.txt --out my-corpus
    """
    from parlance.cli import output
    from parlance.cli.stage_folder import new_folder
    from parlance.core.artifacts import read_json
    from parlance.core.config import override
    from parlance.pipeline.stages import make_corpus
    from parlance.text.preparation import PreparationConfig

    config = override(PreparationConfig(), assignments or [])
    make_corpus(sources or [], new_folder(out), config, skip_bad=skip_bad, seed=seed)
    output.print_corpus(out, read_json(out / "card.json"), json=json)


def inspect(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="A prepared corpus.")],
    json: options.Json = False,
) -> None:
    """Show the card of a prepared corpus: what was read, what each filter removed, what the splits hold.

    Example: parlance corpus inspect runs/demo/corpus
    """
    from parlance.cli import output
    from parlance.core.artifacts import read_json

    output.print_corpus(corpus, read_json(corpus / "card.json"), json=json)


for _command in (prepare, inspect):
    app.command(help=options.help_of(_command))(_command)
