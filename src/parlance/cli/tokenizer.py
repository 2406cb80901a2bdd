"""`parlance tokenizer`: train one on a prepared corpus, look at how one cuts a text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options

app = typer.Typer(help="Train a tokenizer, or see how one cuts a text.", rich_markup_mode="rich")


def train(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A prepared corpus; its training split is used.")],
    out: options.Out,
    kind: Annotated[
        Literal["bpe", "byte"], typer.Option("--kind", help="Byte-level byte-pair encoding, or plain bytes.")
    ] = "bpe",
    vocab_size: Annotated[
        int, typer.Option("--vocab-size", min=260, help="Tokens, four special ones included (bytes always have 260).")
    ] = 4096,
    json: options.Json = False,
) -> None:
    """Train a tokenizer and write tokenizer.json, which transformers and tokenizers open too.

    Example: parlance tokenizer train my-corpus --vocab-size 8192 --out my-tokenizer
    """
    from parlance.cli import inputs, output
    from parlance.cli.stage_folder import new_folder
    from parlance.core.artifacts import atomic_directory
    from parlance.text.preparation import read_split
    from parlance.text.tokenizers import train_tokenizer

    new_folder(out)
    texts = (document.text for document in read_split(inputs.corpus_folder(corpus), "train"))
    tokenizer = train_tokenizer(texts, kind, vocab_size)
    with atomic_directory(out) as folder:
        tokenizer.save(folder)
    output.print_facts({"kind": kind, "vocab_size": tokenizer.vocab_size, "out": str(out)}, json=json)


def show(
    tokenizer: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with a tokenizer.json: a tokenizer or model.")
    ],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to cut; - reads standard input.")],
    json: options.Json = False,
) -> None:
    """Show the tokens of a text, one a line: number, id and bytes.

    Example: parlance tokenizer show runs/demo/tokenizer "def dedent(text):"
    """
    from parlance.cli import inputs, output
    from parlance.text.tokenizers import Tokenizer

    opened = Tokenizer.load(tokenizer)
    ids = opened.encode(inputs.prompt_text(text))
    output.print_tokens([(token, opened.token_bytes(token)) for token in ids], json=json)


for _command in (train, show):
    app.command(help=options.help_of(_command))(_command)
