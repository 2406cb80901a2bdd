"""Step 4, for one shard: cut repeated spans, replace personal data, write the lines of every split; then join them.

Writer(work, config).write_shard(0)
join_shards(work, folder, shards=12, shuffle=False)
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import read_json, write_json
from parlance.text.documents import Document, utf8_length
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.decisions import BY_POSITION, NOT_DRAWN
from parlance.text.preparation.judging import Removals, Tally
from parlance.text.preparation.work_folder import NUMBER_BITS, WorkFolder, growing
from parlance.text.splits import SHORT, SPLITS, cut_by_position

LISTED = 50
"""Names of held-out groups that the card lists."""
SAMPLES, SAMPLE_CHARACTERS = 10, 400
"""Documents that the card quotes, and how much of each."""
NOT_DRAWN_REASON = "not drawn"
LINE = np.dtype([("order", "<u8"), ("group", "<u8"), ("length", "<i8")])
"""A line of a split: its place in a random order, the key of its group, its bytes."""


@dataclass
class Outcome:
    """What was written for one shard, or for all of them; JSON in the work folder."""

    documents: Counter[str] = field(default_factory=Counter)
    """By split."""
    bytes: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    language_bytes: Counter[str] = field(default_factory=Counter)
    personal_data: Counter[str] = field(default_factory=Counter)
    """Spans replaced, by category."""
    lengths: Counter[str] = field(default_factory=Counter)
    """Documents by length: "k" counts those of 2^k to 2^(k+1) - 1 characters."""
    held_out: dict[str, list[str]] = field(default_factory=lambda: {split: [] for split in SPLITS[1:]})
    """The first names of held-out groups, sorted."""
    samples: list[list[Any]] = field(default_factory=list)
    """(place in a random order, id, source, beginning of the text) of the first documents in that order."""

    def count(self, split: str, document: Document, order: int) -> None:
        """Count a finished document."""
        size = utf8_length(document.text)
        self.documents[split] += 1
        self.bytes[split] += size
        self.lengths[str(max(1, len(document.text)).bit_length() - 1)] += 1
        if "language" in document.metadata:
            language = str(document.metadata["language"])
            self.languages[language] += 1
            self.language_bytes[language] += size
        if split in self.held_out:
            names = self.held_out[split]
            if document.group not in names:
                self.held_out[split] = sorted([*names, document.group])[:LISTED]
        if split == SPLITS[0] and (len(self.samples) < SAMPLES or order < self.samples[-1][0]):
            sample = [order, document.id, document.source, document.text[:SAMPLE_CHARACTERS]]
            self.samples = sorted([*self.samples, sample])[:SAMPLES]

    def merge(self, other: dict[str, Any]) -> None:
        """Add the outcome of another shard, as stored."""
        for name in ("documents", "bytes", "languages", "language_bytes", "personal_data", "lengths"):
            getattr(self, name).update(other[name])
        for split, names in other["held_out"].items():
            self.held_out[split] = sorted({*self.held_out[split], *names})[:LISTED]
        self.samples = sorted([*self.samples, *other["samples"]])[:SAMPLES]


class Writer:
    """Everything that writing a shard needs, opened once a process."""

    def __init__(self, work: WorkFolder, config: PreparationConfig) -> None:
        self._work, self._config = work, config
        self._has_long = bool(read_json(work.decided)["has_long"])
        self._removals = Removals(config)

    def write_shard(self, index: int) -> dict[str, Any]:
        """Write the lines of shard `index` for every split, and what was removed; returns what was written."""
        tally, outcome = Tally(), Outcome()
        lines: dict[str, list[tuple[int, int, int]]] = {split: [] for split in SPLITS}
        paths = {split: self._work.lines(split, index) for split in SPLITS}
        paths["removed"] = self._work.removed("write", index)
        with ExitStack() as stack:
            files = {
                name: stack.enter_context(stack.enter_context(growing(path)).open("wb")) for name, path in paths.items()
            }
            for document, row in self._rows(index):
                destination = row["destination"]
                if destination >= NOT_DRAWN:
                    reason = NOT_DRAWN_REASON if destination == NOT_DRAWN else row["reason"]
                    details = {} if row["stays"] is None else {"stays": row["stays"]}
                    tally.remove(reason, document)
                    record = self._removals.record(document, reason, row["similarity"], **details)
                    _write_line(files["removed"], record)
                    continue
                document = self._finished(document, row["spans"], tally, outcome)
                length = len(document.text.strip())
                if row["spans"] and length < self._config.min_characters:
                    tally.remove("repeated spans", document, "repeated spans: too short without them")
                    record = self._removals.record(document, "repeated spans: too short without them", length)
                    _write_line(files["removed"], record)
                    continue
                for split, part in self._parts(document, destination):
                    length = _write_line(files[split], part.to_json())
                    lines[split].append((row["order_key"], row["group_key"], length))
                    outcome.count(split, part, row["order_key"])
        for split in SPLITS:
            np.save(self._work.order(split, index), np.array(lines[split], dtype=LINE))
        write_json(self._work.tally("write", index), {"tally": vars(tally), "outcome": vars(outcome)})
        return {"shard": index, "documents": sum(outcome.documents.values()), "bytes": sum(outcome.bytes.values())}

    def _rows(self, index: int) -> Iterator[tuple[Document, dict[str, Any]]]:
        """The documents of the shard with keys, decision and repeated spans."""
        import pyarrow.parquet as pq

        decisions = pq.read_table(self._work.decisions(index)).to_pylist()
        spans = self._spans(index)
        names = ["number", "id", "source", "metadata", "text", "group_key", "order_key"]
        place = 0
        with pq.ParquetFile(self._work.documents(index)) as file:
            for batch in file.iter_batches(batch_size=256, columns=names):
                for row in batch.to_pylist():
                    document = Document(row["id"], row["text"], row["source"], json.loads(row["metadata"]))
                    keys = {"group_key": row["group_key"], "order_key": row["order_key"]}
                    yield document, {**decisions[place], **keys, "spans": spans.get(row["number"], [])}
                    place += 1

    def _spans(self, index: int) -> dict[int, list[tuple[int, int]]]:
        """Ranges of pieces to cut from the shard's documents, by document number."""
        import pyarrow.parquet as pq

        if not self._work.spans.exists():
            return {}
        bounds = [("number", ">=", index << NUMBER_BITS), ("number", "<", (index + 1) << NUMBER_BITS)]
        table = pq.read_table(self._work.spans, filters=bounds)
        spans: dict[int, list[tuple[int, int]]] = {}
        for row in table.to_pylist():
            spans.setdefault(row["number"], []).append((row["first"], row["last"]))
        return spans

    def _finished(self, document: Document, spans: list[tuple[int, int]], tally: Tally, outcome: Outcome) -> Document:
        """The document without its repeated spans and with its personal data replaced."""
        text = document.text
        if spans:
            from parlance.text.repeated_spans import pieces, without_spans

            text = without_spans(text, pieces(text).starts, np.array(spans))
            tally.edited_bytes["repeated spans"] += utf8_length(document.text) - utf8_length(text)
        if self._removals.redactor is not None:
            redaction = self._removals.redactor.redact(text)
            if redaction.counts:
                outcome.personal_data.update(redaction.counts)
                tally.edited_bytes["personal data"] += utf8_length(text) - utf8_length(redaction.text)
                text = redaction.text
        return document if text is document.text else Document(document.id, text, document.source, document.metadata)

    def _parts(self, document: Document, destination: int) -> Iterator[tuple[str, Document]]:
        """The document under its split, or its parts where the corpus is divided by position."""
        if destination != BY_POSITION:
            yield SPLITS[destination], document
        elif self._has_long and len(document.text) < SHORT:
            yield SPLITS[0], document
        else:
            config = self._config
            for split, (start, end) in cut_by_position(
                document.text, config.validation_share, config.test_share
            ).items():
                metadata = {**document.metadata, "group": document.group, "characters": [start, end]}
                yield split, Document(f"{document.id}#{split}", document.text[start:end], document.source, metadata)


def join_shards(work: WorkFolder, folder: Path, shards: int, *, shuffle: bool) -> dict[str, int]:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `removed.jsonl`; returns the groups of each split."""
    groups = {}
    for split in SPLITS:
        rows = [np.load(work.order(split, index), allow_pickle=False) for index in range(shards)]
        groups[split] = len(np.unique(np.concatenate([part["group"] for part in rows])))
        with (folder / f"{split}.jsonl").open("wb") as out:
            paths = [work.lines(split, index) for index in range(shards)]
            if shuffle:
                _copy_shuffled(paths, rows, out)
            else:
                _copy(paths, out)
    with (folder / "removed.jsonl").open("wb") as out:
        _copy([work.removed(step, index) for index in range(shards) for step in ("judge", "write")], out)
    return groups


def _copy(paths: list[Path], out: BinaryIO) -> None:
    for path in paths:
        with path.open("rb") as file:
            shutil.copyfileobj(file, out, 1 << 20)


def _copy_shuffled(paths: list[Path], rows: list[NDArray[Any]], out: BinaryIO) -> None:
    """The lines of all files in the order of their keys; memory holds 32 bytes a line, the files are mapped."""
    starts = [np.cumsum(part["length"]) - part["length"] for part in rows]
    files = np.concatenate([np.full(len(part), index) for index, part in enumerate(rows)])
    start, joined = np.concatenate(starts), np.concatenate(rows)
    order = np.argsort(joined["order"], kind="stable")
    maps = [np.memmap(path, mode="r") if path.stat().st_size else None for path in paths]
    for file, first, length in zip(
        files[order].tolist(), start[order].tolist(), joined["length"][order].tolist(), strict=True
    ):
        data = maps[file]
        assert data is not None, "a file with a line is not empty"
        out.write(data[first : first + length].tobytes())


def _write_line(file: BinaryIO, record: dict[str, Any]) -> int:
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")
    file.write(line)
    return len(line)
