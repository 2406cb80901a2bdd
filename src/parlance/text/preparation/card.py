"""The card of a prepared corpus: what was read, what each step took out or changed, what is left, as `card.json`.

The card says nothing of the machine, the runner or the time, so that the same documents give the same bytes.
"""

from collections import Counter
from typing import Any

from parlance.text.documents import ReadingReport
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.judging import Tally
from parlance.text.preparation.writing import Outcome
from parlance.text.splits import SPLITS

FORMAT = 2
"""Version of the card."""
LISTED = 50
"""Entries of the card's lists."""
_BY_GROUP = "whole groups"
_BY_POSITION = "by position: the end of each document is held out, because there are too few or too uneven groups"
STEPS = (
    "undecodable",
    "normalised",
    "too short",
    "language",
    "gopher-repetition",
    "gopher-quality",
    "c4",
    "c4 lines",
    "fineweb",
    "contaminated",
    "exact duplicate",
    "near duplicate",
    "not drawn",
    "repeated spans",
    "personal data",
)
"""In the order in which they happen; a step that did nothing to any document has no row of its own in some corpora."""


def steps(tally: Tally, config: PreparationConfig) -> list[dict[str, Any]]:
    """Rows {step, removed, documents, bytes}: documents that a step removed, and what was left after it."""
    documents, size = tally.documents, tally.bytes
    rows: list[dict[str, Any]] = [{"step": "read", "removed": 0, "documents": documents, "bytes": size}]
    always = {"too short", "undecodable", *config.filters}
    always |= {"exact duplicate"} if config.exact_duplicates else set()
    always |= {"near duplicate"} if config.near_duplicates else set()
    always |= {"language"} if config.languages else set()
    always |= {"contaminated"} if config.evaluation_sets else set()
    for step in STEPS:
        removed, edited = tally.removed[step], tally.edited_bytes[step]
        documents, size = documents - removed, size - tally.removed_bytes[step] - edited
        if removed or edited or step in always:
            rows.append({"step": step, "removed": removed, "documents": documents, "bytes": size})
    return rows


def make_card(
    *,
    tally: Tally,
    outcome: Outcome,
    report: ReadingReport | None,
    groups: dict[str, int],
    decided: dict[str, Any],
    config: PreparationConfig,
    seed: int,
) -> dict[str, Any]:
    """The content of `card.json`."""
    return {
        "kind": "corpus",
        "format": FORMAT,
        "reading": report.to_json() if report else None,
        "sources": _most(tally.sources),
        "source_count": len(tally.sources),
        "licences": dict(sorted(tally.licences.items())),
        "steps": steps(tally, config),
        "reasons": dict(sorted(tally.reasons.items())),
        "normalisation": dict(sorted(tally.changes.items())),
        "contaminated_by": dict(sorted(tally.contaminated.items())),
        "languages": {
            name: {"documents": count, "bytes": outcome.language_bytes[name]}
            for name, count in _most(outcome.languages).items()
        },
        "personal_data": dict(sorted(outcome.personal_data.items())),
        "lengths": {name: outcome.lengths[name] for name in sorted(outcome.lengths, key=int)},
        "mixture": decided["mixture"] if config.weights or len(decided["mixture"]) > 1 else {},
        "split_method": _BY_GROUP if decided["by_group"] else _BY_POSITION,
        "splits": {
            split: {
                "documents": outcome.documents[split],
                "bytes": outcome.bytes[split],
                "groups": groups[split],
                "group_names": outcome.held_out.get(split, []),
            }
            for split in SPLITS
        },
        "samples": [{"id": name, "source": source, "text": text} for _, name, source, text in outcome.samples],
        "config": config.model_dump(mode="json"),
        "seed": seed,
    }


def _most(counts: Counter[str]) -> dict[str, int]:
    """The largest counts, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LISTED])
