"""What `parlance tokenizer` prints: tokens in colours or as a table, and how tokenizers compress texts."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parlance.cli.output import print_json, printable
from parlance.core import formatting as form
from parlance.text.tokenizers.compression import Comparison
from parlance.text.tokenizers.display import visible, visible_lines

_BACKGROUNDS = ("cyan", "yellow", "green", "magenta", "bright_blue", "bright_red")
"""Behind tokens, in turns: colours that every terminal has, and on which black letters can be read."""


def print_tokens(
    tokens: Sequence[tuple[int, bytes]], *, json: bool, ids: bool = False, console: Console | None = None
) -> None:
    """Tokens in colours, or (`ids`) a table of their ids and bytes; elsewhere than on a terminal one a line."""
    size = sum(len(data) for _, data in tokens)
    if json:
        rows = [
            {"id": token, "text": data.decode("utf-8", errors="replace"), "bytes": data.hex()} for token, data in tokens
        ]
        print_json({"tokens": rows, "count": len(rows), "bytes": size})
        return
    console = console or Console()
    if not console.is_terminal:
        for number, (token, data) in enumerate(tokens):
            sys.stdout.write(f"{number:>5} {token:>7}  {repr(data)[1:]}\n")
        return
    styles = [f"black on {_BACKGROUNDS[number % len(_BACKGROUNDS)]}" for number in range(len(tokens))]
    if ids:
        table = Table("token", box=None, pad_edge=False)
        table.add_column("id", justify="right")
        table.add_column("bytes", overflow="fold")
        for (token, data), style in zip(tokens, styles, strict=True):
            table.add_row(Text.assemble((visible(data), style)), str(token), data.hex(" "))
        console.print(table)
    else:
        console.print(
            Text.assemble(*((visible_lines(data), style) for (_, data), style in zip(tokens, styles, strict=True)))
        )
    rate = f", {size / len(tokens):.2f} bytes a token" if tokens else ""
    console.print(Text(f"{form.count(len(tokens))} tokens, {form.count(size)} bytes{rate}", style="dim"))


def print_compression(comparison: Comparison, sizes: dict[str, int], *, json: bool) -> None:
    """How tokenizers fit texts; `sizes` are their vocabularies. The first tokenizer is the measure of the others."""
    first = {row.text: row for row in reversed(comparison.rows)}
    if json:
        rows = [
            {
                **asdict(row),
                "bytes_per_token": row.bytes_per_token,
                "tokens_per_word": row.tokens_per_word,
                "tokens_to_first": row.tokens / max(1, first[row.text].tokens),
            }
            for row in comparison.rows
        ]
        facts = {
            name: {
                "vocab_size": size,
                "ordinary_tokens": comparison.ordinary[name],
                "dead_tokens": comparison.dead[name],
            }
            for name, size in sizes.items()
        }
        print_json({"texts": rows, "tokenizers": facts})
        return
    console = Console()
    table = Table("text", "tokenizer", box=None, pad_edge=False)
    for name in ("bytes", "bytes/token", "tokens/word", "to first", "<unk>"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        to_first = row.tokens / max(1, first[row.text].tokens)
        table.add_row(
            Text(printable(row.text)),
            Text(printable(row.tokenizer)),
            form.count(row.bytes),
            f"{row.bytes_per_token:.2f}",
            f"{row.tokens_per_word:.2f}",
            f"{to_first:.2f} x",
            form.percent(row.unknown / max(1, row.tokens)) if row.unknown else "",
        )
    console.print(table)
    console.print()
    tokens = Table("tokenizer", box=None, pad_edge=False)
    for name in ("vocabulary", "never occur here", "share"):
        tokens.add_column(name, justify="right")
    for name, size in sizes.items():
        dead, ordinary = comparison.dead[name], comparison.ordinary[name]
        tokens.add_row(Text(printable(name)), form.count(size), form.count(dead), form.percent(dead / max(1, ordinary)))
    console.print(tokens)
