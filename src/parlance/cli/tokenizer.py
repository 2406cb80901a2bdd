"""`parlance tokenizer`: train one on a prepared corpus, import one, look at how one cuts a text, compare several."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parlance.cli import options

app = typer.Typer(
    help="Train or import a tokenizer, see how one cuts a text, compare several.", rich_markup_mode="rich"
)

_TokenizerFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder with a tokenizer.json: a tokenizer or model.")
]


def train(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="A prepared corpus; its training split is used.")],
    out: options.Out,
    kind: Annotated[
        Literal["bpe", "byte", "char", "word"],
        typer.Option("--kind", help="Byte-level byte-pair encoding, plain bytes, characters, or words."),
    ] = "bpe",
    vocab_size: Annotated[
        int,
        typer.Option("--vocab-size", min=1, help="Most tokens, special ones included (bytes always have 260)."),
    ] = 4096,
    pattern: Annotated[
        Literal["parlance", "gpt2", "gpt4", "o200k"] | None,
        typer.Option(
            "--pattern", help="Where bpe cuts before it joins: as GPT-2, GPT-4, GPT-4o, or (default) our way."
        ),
    ] = None,
    runner: options.Runner = "native",
    ray_address: options.RayAddress = None,
    json: options.Json = False,
) -> None:
    """Train a tokenizer and write tokenizer.json, which transformers and tokenizers open too.

    With --runner ray, the pieces that bpe joins are counted on a cluster, for corpora beyond one machine.

    Example: parlance tokenizer train my-corpus --vocab-size 8192 --out my-tokenizer
    """
    from parlance.cli import inputs, output
    from parlance.cli.stage_folder import new_folder
    from parlance.core.artifacts import atomic_directory
    from parlance.core.errors import UserError
    from parlance.text.preparation import read_split
    from parlance.text.preparation.engine import Engine
    from parlance.text.tokenizers import train_tokenizer
    from parlance.text.tokenizers.shared_counting import train_on_engine

    if pattern is not None and kind != "bpe":
        raise UserError(f"--pattern is where bpe cuts; --kind {kind} has no use for it")
    if ray_address is not None and runner != "ray":
        raise UserError("a Ray address was given, but the runner is not ray; add --runner ray")
    if kind != "bpe" and runner != "native":
        raise UserError(f"--runner {runner} counts for bpe only; leave it out for --kind {kind}")
    new_folder(out)
    inputs.corpus_folder(corpus)
    if runner == "native":
        texts = (document.text for document in read_split(corpus, "train"))
        tokenizer = train_tokenizer(texts, kind, vocab_size, pattern or "parlance")
    else:
        engine = Engine(runner, ray_address=ray_address)
        tokenizer = train_on_engine(corpus, vocab_size, pattern or "parlance", engine, out)
    with atomic_directory(out) as folder:
        tokenizer.save(folder)
    output.print_facts({"kind": kind, "vocab_size": tokenizer.vocab_size, "out": str(out)}, json=json)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="tokenizer.json, a .tiktoken or SentencePiece .model file, encoder.json with vocab.bpe, vocab.json "
            "with merges.txt, llama2.c's .bin, or a folder with one of them.",
        ),
    ],
    out: options.Out,
    pattern: Annotated[
        Literal["parlance", "gpt2", "gpt4", "o200k"] | None,
        typer.Option("--pattern", help="Where a .tiktoken or merges file cuts, if that does not show from its size."),
    ] = None,
    chat_template: Annotated[
        Literal["chatml"] | None,
        typer.Option(
            "--chat-template", help="Add this form of conversations and its two tokens; none is added by itself."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Import a tokenizer of another project with the ids it has there.

    Example: parlance tokenizer import cl100k_base.tiktoken --out cl100k
    """
    from parlance.cli import output
    from parlance.cli.stage_folder import new_folder
    from parlance.core.artifacts import atomic_directory
    from parlance.text.tokenizers import import_tokenizer

    new_folder(out)
    tokenizer = import_tokenizer(source, pattern, chat_template)
    with atomic_directory(out) as folder:
        tokenizer.save(folder)
    special = [f"{name} {token}" for name, token in tokenizer.special_tokens.items()]
    facts = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": special,
        "chat_template": tokenizer.has_chat_template,
        "out": str(out),
    }
    output.print_facts(facts, json=json)


def show(
    tokenizer: _TokenizerFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to cut; - reads standard input.")],
    ids: Annotated[bool, typer.Option("--ids", help="A table of ids and bytes instead of colours.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the coloured tokens instead.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the tokens of a text: coloured on a terminal, elsewhere one a line with number, id and bytes.

    Example: parlance tokenizer show runs/demo/tokenizer "def dedent(text):"
    """
    from parlance.cli import inputs, output, tokens_output
    from parlance.core.artifacts import write_text
    from parlance.core.errors import UserError
    from parlance.text.tokenizers import Tokenizer
    from parlance.text.tokenizers.display import tokens_page

    opened = Tokenizer.load(tokenizer)
    tokens = [(token, opened.token_bytes(token)) for token in opened.encode(inputs.prompt_text(text))]
    if html is None:
        tokens_output.print_tokens(tokens, json=json, ids=ids)
    else:
        if html.exists():
            raise UserError(f"{html} exists already; choose another file")
        write_text(html, tokens_page(tokens, f"Tokens of {tokenizer.name}"))
        output.print_facts({"tokens": len(tokens), "out": str(html)}, json=json)


def compare(
    tokenizers: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of tokenizers or models; the first is the measure.")
    ],
    texts: Annotated[
        list[Path],
        typer.Option(
            "--text", metavar="PATH", help="A text file, or a prepared corpus: its test split by language; repeatable."
        ),
    ],
    json: options.Json = False,
) -> None:
    """Compare how tokenizers compress texts: bytes per token, tokens per word, dead tokens.

    Other vocabularies are compared by importing them first: parlance tokenizer import.

    Example: parlance tokenizer compare my-tokenizer cl100k --text book.txt --text my-corpus
    """
    from parlance.cli import tokens_output
    from parlance.text.tokenizers import Tokenizer
    from parlance.text.tokenizers.compression import compare_compression, named_texts

    names = [folder.name for folder in tokenizers]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in tokenizers]
    opened = {name: Tokenizer.load(folder) for name, folder in zip(names, tokenizers, strict=True)}
    comparison = compare_compression(opened, named_texts(texts))
    tokens_output.print_compression(comparison, {name: one.vocab_size for name, one in opened.items()}, json=json)


for _name, _command in (("train", train), ("import", import_), ("show", show), ("compare", compare)):
    app.command(_name, help=options.help_of(_command))(_command)
