"""Raw documents -> a prepared corpus on disk: filtered, deduplicated, divided into training, validation and test data.

Writes one folder, whole or not at all:

- `train.jsonl`, `validation.jsonl`, `test.jsonl`: documents, one a line;
- `removed.jsonl`: what was taken out, each with id, source, reason, a figure, and the first 500 characters;
- `card.json`: sources, licences, documents and bytes after every step, the splits, the configuration.

Steps, in this order: too short; undecodable or binary; exact duplicates; near duplicates (the longest document of a
cluster stays, then the one with the smallest id); division by group (see `splits.py`).
The texts stream through the disk twice; memory holds about 0.4 kB a document (hashes, bands, ids), never the texts.
The same documents and configuration give the same bytes. Languages, quality and privacy are not judged here.

    card = prepare_corpus(FileCorpus([Path("books")]), Path("runs/demo/corpus"), PreparationConfig())
    for document in read_split(Path("runs/demo/corpus"), "train"): ...
"""

import json
import math
import platform
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from pydantic import Field

from parlance.core.artifacts import atomic_directory, read_jsonl, write_json
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.deduplication import (
    NearDuplicates,
    best_of_clusters,
    content_hash,
    equal_rows_clusters,
    estimated_similarity,
)
from parlance.text.documents import Corpus, Document, ReportingCorpus, utf8_length
from parlance.text.splits import SHORT, SPLITS, assign_groups, cut_by_position

EXCERPT = 500
"""Characters of a removed text that `removed.jsonl` keeps."""
LISTED = 50
"""Entries of the card's lists (sources, sample ids, held-out groups)."""
_CANDIDATES = "candidates.jsonl"
_BY_GROUP = "whole groups"
_BY_POSITION = "by position: the end of each document is held out, because there are too few or too uneven groups"
_STEPS = ("too short", "undecodable", "exact duplicate", "near duplicate")


class PreparationConfig(Config):
    """What is taken out of a corpus and how the rest is divided."""

    min_characters: int = Field(default=16, ge=1)
    """Documents with fewer characters, white space at the ends not counted, are removed."""
    max_undecodable: float = Field(default=0.1, ge=0, le=1)
    """Documents with a larger share of replacement and control characters are removed (binary data, wrong encoding)."""
    exact_duplicates: bool = True
    """Remove documents that differ from another one in white space at most."""
    near_duplicates: bool = True
    """Remove documents that share most of their word 5-grams with another one (MinHash, 14 bands of 8)."""
    validation_share: float = Field(default=0.04, gt=0, lt=0.2)
    """Share of the bytes for validation, which steers decisions during training."""
    test_share: float = Field(default=0.06, gt=0, lt=0.2)
    """Share of the bytes for the final test, which steers nothing."""


@dataclass
class _Candidates:
    """What is remembered of the documents that passed the filters, in the order of `candidates.jsonl`."""

    near: NearDuplicates
    ids: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    """UTF-8 bytes."""
    digests: bytearray = field(default_factory=bytearray)
    is_long: bool = False
    """Whether any document is long enough to be cut by position."""


@dataclass
class _Tally:
    """Documents and bytes read, and removed by each step."""

    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    removed_bytes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)

    def steps(self) -> list[dict[str, Any]]:
        """What each step removed, and documents and bytes that are left after it."""
        documents, size = self.documents, self.bytes
        rows: list[dict[str, Any]] = [{"step": "read", "removed": 0, "documents": documents, "bytes": size}]
        for step in _STEPS:
            documents, size = documents - self.removed[step], size - self.removed_bytes[step]
            rows.append({"step": step, "removed": self.removed[step], "documents": documents, "bytes": size})
        return rows


def prepare_corpus(corpus: Corpus, out: Path, config: PreparationConfig, *, seed: int = 0) -> dict[str, Any]:
    """Prepare `corpus` into the folder `out` and return its card.

    `seed` decides which groups are held out and which permutations MinHash uses.

    An `out` that holds a prepared corpus is replaced. Raises UserError where `out` is another non-empty folder, where
    the corpus is empty, and where the filters leave nothing.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "card.json").is_file())):
        raise UserError(f"{out} exists and is not a prepared corpus; choose another folder, or remove it first")
    with atomic_directory(out) as folder:
        tally = _Tally()
        with _writer(folder / "removed.jsonl") as removed:
            # 1. Read and filter; what passes goes to disk, its hashes stay in memory.
            candidates = _filter(corpus, folder, removed, config, tally, seed)
            # 2. For every candidate: the document that makes it superfluous, or itself.
            reasons = _duplicates(candidates, config)
            # 3. Choose the split of every group.
            sizes: Counter[str] = Counter()
            for index, group in enumerate(candidates.groups):
                if index not in reasons:
                    sizes[group] += candidates.sizes[index]
            splits = assign_groups(sizes, config.validation_share, config.test_share, seed)
            # 4. Divide.
            counts = _divide(folder, removed, candidates, reasons, splits, config, tally)
            report = corpus.report if isinstance(corpus, ReportingCorpus) else None
            for name, reason in report.left_out if report else ():
                _write(
                    removed, {"id": name, "source": name, "reason": f"not read: {reason}", "figure": None, "text": ""}
                )
        (folder / _CANDIDATES).unlink()
        kept = [name for index, name in enumerate(candidates.ids) if index not in reasons]
        card = {
            "kind": "corpus",
            "reading": report.to_json() if report else None,
            "sources": dict(tally.sources.most_common(LISTED)),
            "source_count": len(tally.sources),
            "licences": dict(sorted(tally.licences.items())),
            "steps": tally.steps(),
            "split_method": _BY_GROUP if splits else _BY_POSITION,
            "splits": counts,
            "config": config.model_dump(),
            "seed": seed,
            "sample_ids": kept[:: math.ceil(len(kept) / LISTED)],
            "python": platform.python_version(),
        }
        write_json(folder / "card.json", card)
    return card


def read_split(folder: Path, split: str) -> Iterator[Document]:
    """The documents of "train", "validation" or "test" of a prepared corpus. Raises UserError where it is missing."""
    path = folder / f"{split}.jsonl"
    if split not in SPLITS or not path.is_file():
        raise UserError(f"{folder} has no {split} split; prepare it with `parlance corpus prepare`")
    for number, record in read_jsonl(path):
        try:
            yield Document.from_json(record)
        except KeyError as error:
            raise UserError(f"{path}, line {number}: there is no field {error}; prepare the corpus again") from error


def undecodable_share(text: str) -> float:
    """Share of the characters that are U+FFFD or control characters other than white space, 0..1."""
    return sum(map(text.count, _UNDECODABLE)) / max(1, len(text))


_UNDECODABLE = "\ufffd" + "".join(
    chr(c) for c in (*range(0x20), *range(0x7F, 0xA0)) if c not in (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85)
)


def _filter(
    corpus: Corpus, folder: Path, removed: TextIO, config: PreparationConfig, tally: _Tally, seed: int
) -> _Candidates:
    """Write the documents that pass the filters to `candidates.jsonl`, the others to `removed`."""
    candidates = _Candidates(NearDuplicates(seed))
    with _writer(folder / _CANDIDATES) as file:
        for document in corpus:
            text, size = document.text, utf8_length(document.text)
            tally.documents += 1
            tally.bytes += size
            tally.sources[document.source] += 1
            tally.licences[str(document.metadata.get("licence", "not stated"))] += 1
            length, undecodable = len(text.strip()), undecodable_share(text)
            if length < config.min_characters:
                _remove(removed, tally, document, "too short", length)
            elif undecodable > config.max_undecodable:
                _remove(removed, tally, document, "undecodable", round(undecodable, 4))
            else:
                _write(file, document.to_json())
                candidates.ids.append(document.id)
                candidates.groups.append(document.group)
                candidates.sizes.append(size)
                candidates.digests += content_hash(text)
                candidates.is_long = candidates.is_long or len(text) >= SHORT
                if config.near_duplicates:
                    candidates.near.add(text)
    if not tally.documents:
        raise UserError("the corpus has no documents; name files or folders that contain text")
    if not candidates.ids:
        causes = ", ".join(f"{count} {step}" for step, count in tally.removed.items())
        raise UserError(
            f"the filters left nothing of the corpus ({causes}); give more text, or lower min_characters "
            "or raise max_undecodable"
        )
    return candidates


def _duplicates(candidates: _Candidates, config: PreparationConfig) -> dict[int, tuple[str, int, float]]:
    """For the number of each superfluous candidate: (reason, number of the document that stays, similarity)."""
    reasons: dict[int, tuple[str, int, float]] = {}
    count = len(candidates.ids)
    if config.exact_duplicates:
        clusters = equal_rows_clusters(bytes(candidates.digests), 16)
        for index, best in enumerate(best_of_clusters(clusters, candidates.sizes, candidates.ids).tolist()):
            if best != index:
                reasons[index] = ("exact duplicate", best, 1.0)
    if config.near_duplicates:
        clusters = candidates.near.clusters()
        # An exact duplicate is not the best of its cluster: the same order has already preferred another one.
        bests = best_of_clusters(clusters, candidates.sizes, candidates.ids).tolist()
        keys = candidates.near.keys()
        for index in range(count):
            if bests[index] != index and index not in reasons:
                similarity = estimated_similarity(keys[index], keys[bests[index]])
                reasons[index] = ("near duplicate", bests[index], round(similarity, 4))
    return reasons


def _divide(
    folder: Path,
    removed: TextIO,
    candidates: _Candidates,
    reasons: dict[int, tuple[str, int, float]],
    splits: dict[str, str] | None,
    config: PreparationConfig,
    tally: _Tally,
) -> dict[str, dict[str, Any]]:
    """Write every candidate to its split, or to `removed`; returns documents, bytes and groups of the splits."""
    documents: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    groups: dict[str, dict[str, None]] = {split: {} for split in SPLITS}
    files = {split: _writer(folder / f"{split}.jsonl") for split in SPLITS}
    try:
        with Progress("divide", total=len(candidates.ids), unit="documents") as progress:
            for index, (_, record) in enumerate(read_jsonl(folder / _CANDIDATES)):
                progress.update(1)
                document = Document.from_json(record)
                if index in reasons:
                    reason, best, similarity = reasons[index]
                    _remove(removed, tally, document, reason, similarity, candidates.ids[best])
                    continue
                for split, part in _parts(document, splits, config, candidates.is_long):
                    _write(files[split], part.to_json())
                    documents[split] += 1
                    sizes[split] += utf8_length(part.text)
                    groups[split][part.group] = None
    finally:
        for file in files.values():
            file.close()
    if not all(sizes[split] for split in SPLITS):
        raise UserError("the corpus is too small to be divided into training, validation and test data; give more text")
    return {
        split: {
            "documents": documents[split],
            "bytes": sizes[split],
            "groups": len(groups[split]),
            "group_names": sorted(groups[split])[:LISTED] if split != "train" else [],
        }
        for split in SPLITS
    }


def _parts(
    document: Document, splits: dict[str, str] | None, config: PreparationConfig, is_long: bool
) -> Iterator[tuple[str, Document]]:
    """The document under its split, or its parts where the corpus is divided by position."""
    if splits is not None:
        yield splits[document.group], document
    elif is_long and len(document.text) < SHORT:
        yield "train", document
    else:
        ranges = cut_by_position(document.text, config.validation_share, config.test_share)
        for split, (start, end) in ranges.items():
            metadata = {**document.metadata, "group": document.group, "characters": [start, end]}
            yield split, Document(f"{document.id}#{split}", document.text[start:end], document.source, metadata)


def _remove(
    removed: TextIO, tally: _Tally, document: Document, reason: str, figure: float, stays: str | None = None
) -> None:
    tally.removed[reason] += 1
    tally.removed_bytes[reason] += utf8_length(document.text)
    record = {"id": document.id, "source": document.source, "reason": reason, "figure": figure}
    if stays is not None:
        record["stays"] = stays
    _write(removed, {**record, "text": document.text[:EXCERPT]})


def _writer(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors="replace", newline="\n")


def _write(file: TextIO, record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")
