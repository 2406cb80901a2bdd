"""Tables of finished training runs: a CSV file with a header, one run a line.

parameters,tokens,loss          (or N,D,loss; a column flops or C is taken where it is there)
73824672,3154403320,3.405928

runs = read_runs(Path("runs.csv"))
"""

import csv
import math
from pathlib import Path

from parlance.core.errors import UserError
from parlance.scaling.frontier import Run

COLUMNS = {"parameters": ("parameters", "n"), "tokens": ("tokens", "d"), "loss": ("loss",), "flops": ("flops", "c")}
"""What a column may be called, in any case; flops may be missing."""


def read_runs(path: Path) -> list[Run]:
    """The runs of a file. Raises UserError that names file and line for what is missing or no number above zero."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8: {error}") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    places = {
        name: next((header.index(word) for word in words if word in header), None) for name, words in COLUMNS.items()
    }
    missing = [name for name, place in places.items() if place is None and name != "flops"]
    if missing:
        raise UserError(
            f"{path}: its first line must name the columns parameters, tokens and loss; {missing[0]} is missing"
        )
    runs = []
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        numbers = {
            name: _number(row, place, f"{path}, line {line}: {name}")
            for name, place in places.items()
            if place is not None
        }
        runs.append(Run(numbers["parameters"], numbers["tokens"], numbers["loss"], numbers.get("flops")))
    if not runs:
        raise UserError(f"{path} holds no runs")
    return runs


def _number(row: list[str], place: int, where: str) -> float:
    text = row[place].strip() if place < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{where} is no number: {text!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where} must be finite and above zero, not {text}")
    return value
