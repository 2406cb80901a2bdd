"""What a run directory holds, read tolerantly: a report must come out of a run that was cut short or half broken.

A missing file is no news; a file or a line that cannot be read becomes a note that the report prints.

    run = read_run_files(Path("runs/demo"))
    run.curve("pretrain", "seconds", "loss")     # [(1.2, 5.1), ...]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parlance.core.artifacts import read_json, read_jsonl
from parlance.core.errors import UserError
from parlance.core.formatting import mapping, number, text

DOCUMENTS = (
    "summary.json",
    "environment.json",
    "corpus/card.json",
    "tokenizer/report.json",
    "base/prediction.json",
    "evaluation/language_modelling.json",
    "evaluation/reward_model.json",
    "evaluation/policy.json",
    "evaluation/samples.json",
)
"""The JSON files a report is made from, relative to the run directory."""


@dataclass(frozen=True)
class RunFiles:
    """What could be read of a run directory."""

    name: str
    """Name of the folder."""
    documents: dict[str, Any]
    """JSON files by their path."""
    metrics: dict[str, list[dict[str, Any]]]
    """Rows of metrics.jsonl by stage."""
    recipe: str | None
    """Text of recipe.yaml."""
    notes: list[str]
    """What could not be read, as sentences."""

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object in the file at `path`, or an empty one."""
        return mapping(self.documents.get(path))

    def curve(self, stage: str, x: str, y: str) -> list[tuple[float, float]]:
        """Points of those rows of a stage that have both figures."""
        pairs = [(number(row.get(x)), number(row.get(y))) for row in self.metrics.get(stage, [])]
        return [(first, second) for first, second in pairs if first is not None and second is not None]

    def last(self, stage: str, field: str) -> float | None:
        """The last figure that a stage wrote under this name."""
        values = [number(row.get(field)) for row in self.metrics.get(stage, [])]
        return next((value for value in reversed(values) if value is not None), None)


def read_run_files(run_directory: Path) -> RunFiles:
    """Read what a report needs. Raises UserError where `run_directory` is no folder or holds nothing of a run."""
    if not run_directory.is_dir():
        raise UserError(f"{run_directory} is not a folder; give the run directory that `parlance run --out` wrote")
    documents, notes = dict[str, Any](), list[str]()
    for path in DOCUMENTS:
        if (run_directory / path).exists():
            try:
                documents[path] = read_json(run_directory / path)
            except UserError:
                notes.append(f"{path} could not be read; what it says is left out.")
    metrics = _read_metrics(run_directory / "metrics.jsonl", notes)
    recipe = None
    if (run_directory / "recipe.yaml").exists():
        recipe = (run_directory / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    if not (documents or metrics or recipe or notes):
        raise UserError(f"{run_directory} holds no file of a run (no summary.json, metrics.jsonl, ...)")
    return RunFiles(run_directory.resolve().name, documents, metrics, recipe, notes)


def _read_metrics(path: Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows by stage; lines that are no row are counted in a note."""
    rows, bad = dict[str, list[dict[str, Any]]](), 0
    if not path.exists():
        return rows
    try:
        for _, row in read_jsonl(path, skip_bad=True):
            stage = text(row.get("stage"))
            if stage is None:
                bad += 1
            else:
                rows.setdefault(stage, []).append(row)
    except UserError:
        notes.append("metrics.jsonl could not be read; the curves are left out.")
        return {}
    if bad:
        what = (
            "1 line of metrics.jsonl is not a row of figures"
            if bad == 1
            else f"{bad} lines of metrics.jsonl are not rows of figures"
        )
        notes.append(f"{what} and left out.")
    return rows
