"""What the small commands print: facts, cards, tokens, streams of text; or one JSON object with --json."""

import json as json_module
import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parlance.core import formatting as form
from parlance.core.artifacts import read_json
from parlance.core.errors import UserError
from parlance.core.progress import say

if TYPE_CHECKING:
    from parlance.inference.model import Continuation

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text with control characters written out, so that no model's output can steer a terminal."""
    return text.translate(_CONTROL)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on one line of standard output; what is infinite or no number is null, as JSON has neither."""
    sys.stdout.write(json_module.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_facts(facts: dict[str, Any], *, json: bool) -> None:
    """Names and values, one pair a line; lists become several lines, objects and nothing are left out."""
    if json:
        print_json(facts)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if isinstance(value, dict) or value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            table.add_row(form.label(name), Text(printable(_shown(name, item))))
    Console().print(table)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return form.duration(value) if name == "seconds" else form.figure(value)
    return str(value)


def print_stage(out: Path, *, json: bool) -> None:
    """What a stage recorded in its folder when it was done."""
    record = read_json(out / "stage.json")
    if json:
        print_json(record)
    else:
        print_facts(
            {"stage": record["stage"], "seconds": record["seconds"], **record["facts"], "out": str(out)}, json=False
        )


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a prepared corpus. Raises UserError where there is none."""
    path = folder / "card.json"
    card = read_json(path) if path.exists() else None
    if not isinstance(card, dict) or card.get("kind") != "corpus" or "steps" not in card:
        raise UserError(
            f"{folder} is not a prepared corpus: it has no card.json; make one with parlance corpus prepare"
        )
    return card


def print_corpus(folder: Path, card: dict[str, Any], *, json: bool) -> None:
    """The card of a prepared corpus."""
    if json:
        print_json(card | {"out": str(folder)})
        return
    console = Console()
    steps = Table("step", box=None, pad_edge=False)
    splits = Table("split", box=None, pad_edge=False)
    for table, names in ((steps, ("removed", "documents", "size")), (splits, ("documents", "size"))):
        for name in names:
            table.add_column(name, justify="right", min_width=10)
    for row in card["steps"]:
        steps.add_row(row["step"], form.count(row["removed"]), form.count(row["documents"]), form.size(row["bytes"]))
    for name, part in card["splits"].items():
        splits.add_row(name, form.count(part["documents"]), form.size(part["bytes"]))
    console.print(steps)
    console.print()
    console.print(splits)
    console.print()
    lists = {
        "licences": card["licences"],
        "not read": (card.get("reading") or {}).get("skipped", {}),
        "repaired": card.get("normalisation", {}),
        "languages": {name: row["documents"] for name, row in card.get("languages", {}).items()},
        "personal data replaced": card.get("personal_data", {}),
        "contaminated by": card.get("contaminated_by", {}),
    }
    for title, counts in lists.items():
        if counts:
            words = ", ".join(f"{name} ({form.count(number)})" for name, number in counts.items())
            console.print(Text(printable(f"{title}: {words}")))
    for name, row in card.get("mixture", {}).items():
        share = f"{form.percent(row['fraction'])} of {form.size(row['available_bytes'])}"
        console.print(Text(printable(f"source {name or 'unnamed'}: {share}, {form.count(row['documents'])} documents")))
    console.print(Text(f"divided: {card['split_method']}"))
    console.print(Text(f"folder: {folder}"))


def print_removed(records: Iterable[dict[str, Any]], number: int) -> None:
    """The first `number` removed documents of every reason."""
    shown: Counter[str] = Counter()
    console = Console()
    for record in records:
        shown[record["reason"]] += 1
        if shown[record["reason"]] <= number:
            figure = "" if record["figure"] is None else f" ({record['figure']})"
            console.print()
            console.print(Text(printable(f"{record['reason']}{figure}: {record['id']}"), style="bold"))
            console.print(Text(printable(record["text"][:300])))


def print_continuation(prompt: str, pieces: Iterable[str]) -> None:
    """A text as it grows. On a terminal the prompt stands before it; elsewhere only what the model wrote is written."""
    live = sys.stdout.isatty()
    if live:
        sys.stdout.write(f"\x1b[2m{printable(prompt)}\x1b[0m")
    stream(pieces)


def stream(pieces: Iterable[str]) -> None:
    """Write pieces as they come, and a final newline. On a terminal, control characters are written out."""
    live = sys.stdout.isatty()
    try:
        for piece in pieces:
            sys.stdout.write(printable(piece) if live else piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")


def tell_unknown(count: int, what: str) -> None:
    """Say on standard error that a text has tokens that the vocabulary lacks."""
    if count:
        tokens = "one token" if count == 1 else f"{form.count(count)} tokens"
        say(f"not in the vocabulary, read as <unk>: {tokens} of the {what}")


def tell_ending(continuation: "Continuation") -> None:
    """Say on standard error where a text was cut because the model's context is full."""
    if continuation.ended == "context":
        say("the text ends here because the model's context is full (--overflow slide goes on)")


def print_ladder(result: dict[str, Any], *, json: bool) -> None:
    """The models of a comparison, the best first."""
    if json:
        print_json(result)
        return
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("Model", "left"), ("Bits per byte", "right"), ("Parameters", "right"), ("Time", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for row in sorted(result["models"], key=lambda row: float(row["curve"][-1][1])):
        seconds, bits = row["curve"][-1]
        table.add_row(row["name"], form.figure(bits), form.figure(row["parameters"]), form.duration(seconds))
    Console().print(table)
