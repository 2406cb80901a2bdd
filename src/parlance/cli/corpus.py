"""`parlance corpus`: prepare a corpus from raw text, look at a prepared one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options

app = typer.Typer(help="Prepare text for training, or look at prepared text.", rich_markup_mode="rich")


def prepare(
    out: options.Out,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Files, folders and patterns of text: plain text, Markdown, source code, JSON lines, CSV, Parquet, "
            "HTML, WARC, PDF, also compressed. NAME=SOURCE names a source. None: the source code of this Python's "
            "standard library.",
        ),
    ] = None,
    preset: Annotated[
        Literal["text", "web"],
        typer.Option(
            "--preset", help="text: clean and deduplicate. web: as FineWeb, with language and quality filters."
        ),
    ] = "text",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME",
            help="Quality filter instead of the preset's (gopher-repetition, gopher-quality, c4, fineweb); repeatable.",
        ),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--language", metavar="CODE", help="Keep only documents in this language (en, de, ...); repeatable."
        ),
    ] = None,
    personal_data: Annotated[
        Literal["keep", "placeholder", "pseudonym"] | None,
        typer.Option("--personal-data", help="Replace e-mail addresses, phone and card numbers, keys and their kin."),
    ] = None,
    evaluation_sets: Annotated[
        list[str] | None,
        typer.Option(
            "--decontaminate", metavar="NAME=FILE", help="Remove documents that contain items of this set; repeatable."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option("--weight", metavar="NAME=SHARE", help="Share of a named source in the result; repeatable."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", metavar="NAME", help="Field or column with the text; default: text.")
    ] = None,
    skip_bad: options.SkipBad = False,
    runner: options.Runner = "native",
    ray_address: options.RayAddress = None,
    workers: options.Workers = None,
    seed: options.Seed = 0,
    assignments: options.Set = None,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Read, clean, filter, deduplicate and divide text into training, validation and test documents.

    Writes train.jsonl, validation.jsonl, test.jsonl, removed.jsonl (what was taken out and why), card.json (counts
    before and after every step, sources, licences) and datasheet.html, which shows the card. The output is the same
    byte for byte whatever the runner and the number of workers.

    Example: parlance corpus prepare books/ notes.txt --out my-corpus

    Example: parlance corpus prepare crawl.warc.gz --preset web --language en --decontaminate mmlu=mmlu.csv --out web
    """
    from parlance.cli import inputs, output
    from parlance.cli.stage_folder import new_folder
    from parlance.core.progress import say
    from parlance.text.preparation import prepare_corpus
    from parlance.text.preparation.engine import Engine
    from parlance.text.preparation.sources import named_corpora

    if resume and (out / "card.json").exists():
        say(f"{out} is finished already; nothing was done")
        output.print_corpus(out, output.read_card(out), json=json)
        return
    new_folder(out)
    config = inputs.preparation_of(
        preset,
        filters=filters,
        languages=languages,
        personal_data=personal_data,
        evaluation_sets=evaluation_sets,
        weights=weights,
        text_field=text_field,
        assignments=assignments or [],
    )
    prepare_corpus(
        named_corpora(sources or [], skip_bad=skip_bad, text_field=config.text_field),
        out,
        config,
        seed=seed,
        engine=Engine(runner, ray_address=ray_address, workers=workers),
        resume=resume,
    )
    output.print_corpus(out, output.read_card(out), json=json)


def inspect(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="A prepared corpus.")],
    removed: Annotated[
        int, typer.Option("--removed", min=0, metavar="N", help="Also show N removed documents of every reason.")
    ] = 0,
    json: options.Json = False,
) -> None:
    """Show the card of a prepared corpus: what was read, what each step removed, what the splits hold.

    Example: parlance corpus inspect runs/demo/corpus --removed 2
    """
    from parlance.cli import output
    from parlance.core.artifacts import read_jsonl

    output.print_corpus(corpus, output.read_card(corpus), json=json)
    if removed and not json:
        output.print_removed((record for _, record in read_jsonl(corpus / "removed.jsonl")), removed)


for _command in (prepare, inspect):
    app.command(help=options.help_of(_command))(_command)
