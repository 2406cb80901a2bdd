"""Step 1, for one shard: read, normalise, filter, decontaminate; fingerprint what is left.

Every decision is a function of one document and the configuration, so shards can be judged anywhere in any order.
The order of the checks is FineWeb's: length and encoding, language, quality filters; then contamination.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parlance.core.artifacts import os_errors, write_json
from parlance.text.documents import Document, ReadingReport, replace_surrogates, utf8_length
from parlance.text.preparation.config import PreparationConfig
from parlance.text.preparation.work_folder import NUMBER_BITS, WorkFolder, growing
from parlance.text.shards import open_shard
from parlance.text.splits import SHORT, group_key

if TYPE_CHECKING:
    from parlance.text.pii import Redactor

FLUSH_BYTES = 4 << 20
"""Text that is collected before it is fingerprinted and written."""
_MARGIN = 500
_UNDECODABLE = "\ufffd" + "".join(
    chr(c) for c in (*range(0x20), *range(0x7F, 0xA0)) if c not in (0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85)
)


@dataclass
class Tally:
    """What one step did to the documents of one shard, or of all of them; JSON in the work folder."""

    documents: int = 0
    bytes: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    """Documents removed, by check."""
    removed_bytes: Counter[str] = field(default_factory=Counter)
    edited_bytes: Counter[str] = field(default_factory=Counter)
    """UTF-8 bytes that a check took out of (above 0) or added to (below 0) documents that stay."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Documents removed, by exact reason."""
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    """What normalisation repaired."""
    contaminated: Counter[str] = field(default_factory=Counter)
    """Documents removed for overlapping with an evaluation set, by its name."""
    has_long: bool = False
    """Whether any document is long enough to be cut by position."""

    def remove(self, check: str, document: Document, reason: str | None = None) -> None:
        """Count a document that `check` removes."""
        self.removed[check] += 1
        self.removed_bytes[check] += utf8_length(document.text)
        self.reasons[reason or check] += 1

    def merge(self, other: dict[str, Any]) -> None:
        """Add the tally of another shard, as stored."""
        for name, value in other.items():
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(value)
            elif isinstance(mine, bool):
                setattr(self, name, mine or value)
            else:
                setattr(self, name, mine + value)


class Removals:
    """Lines of `removed.jsonl`: what was removed, why, and how it begins, without its personal data."""

    def __init__(self, config: PreparationConfig) -> None:
        self._keep = config.removed_characters
        self.redactor = open_redactor(config)

    def clean(self, document: Document) -> Document:
        """The document without lone surrogates, and without personal data in id, source and metadata."""
        return Document(
            self._cleaned(document.id), document.text, self._cleaned(document.source), self._cleaned(document.metadata)
        )

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, str):
            text = replace_surrogates(value)[0]
            return text if self.redactor is None else self.redactor.redact(text).text
        if isinstance(value, list):
            return [self._cleaned(item) for item in value]
        if isinstance(value, dict):
            return {self._cleaned(name): self._cleaned(item) for name, item in value.items()}
        return value

    def record(self, document: Document, reason: str, figure: float | None, **details: Any) -> dict[str, Any]:
        """The line of one document."""
        text = document.text[: self._keep]
        if self.redactor is not None:  # what the cut goes through must be recognised too
            text = self.redactor.redact(document.text[: self._keep + _MARGIN]).text[: self._keep]
        head = {"id": document.id, "source": document.source, "reason": reason, "figure": figure}
        return {**head, **details, "text": text}


def open_redactor(config: PreparationConfig) -> "Redactor | None":
    """What replaces personal data, where `config` asks for it. Raises UserError for a key that cannot be read."""
    if config.personal_data == "keep":
        return None
    from parlance.text.pii import Redactor

    key = None
    if config.pseudonym_key is not None:
        path = Path(config.pseudonym_key)
        with os_errors("read", path):
            key = path.read_bytes().strip()
    return Redactor(config.pii, mode=config.personal_data, key=key)


class Judge:
    """Everything that judging a shard needs, opened once a process."""

    def __init__(self, work: WorkFolder, config: PreparationConfig, plan: dict[str, Any]) -> None:
        """`plan`: content of `plan.json`."""
        from parlance.text.minhash import MinHasher

        self._work, self._config, self._plan = work, config, plan
        self._removals = Removals(config)
        self._languages = None
        if config.languages or config.identify_languages:
            from parlance.text.languages import LanguageIdentifier

            self._languages = LanguageIdentifier(Path(config.language_model) if config.language_model else None)
        self._overlaps = None
        if config.evaluation_sets:
            from parlance.text.decontamination import OverlapIndex

            self._overlaps = OverlapIndex.load(work.evaluation)
        self._hasher = MinHasher(plan["seed"], config.duplicate_bands, config.duplicate_rows)

    def judge_shard(self, index: int) -> dict[str, Any]:
        """Write the documents, removed lines and tally of shard `index`; returns documents and bytes read."""
        tally, report = Tally(), ReadingReport()
        documents = open_shard(self._plan["shards"][index], report)
        with (
            growing(self._work.documents(index)) as target,
            growing(self._work.removed("judge", index)) as removed_path,
            removed_path.open("w", encoding="utf-8", errors="replace", newline="\n") as removed,
        ):

            def refuse(document: Document, check: str, reason: str, figure: float | None, **details: Any) -> None:
                tally.remove(check, document, reason)
                record = self._removals.record(document, reason, figure, **details)
                removed.write(json.dumps(record, ensure_ascii=False) + "\n")

            origin = self._plan["shards"][index].get("origin", "")
            table = _Table(target, index, origin, self._plan["seed"], self._config, self._hasher)
            with table:
                for raw in documents:
                    document = self._removals.clean(raw)
                    tally.documents += 1
                    tally.bytes += utf8_length(document.text)
                    tally.sources[document.source] += 1
                    tally.licences[str(document.metadata.get("licence") or "not stated")] += 1
                    kept = self._judge(document, tally, refuse)
                    if kept is not None:
                        tally.has_long = tally.has_long or len(kept.text) >= SHORT
                        table.add(kept, raw.group)
        write_json(self._work.tally("judge", index), {"tally": vars(tally), "report": report.to_json(full=True)})
        return {"shard": index, "documents": tally.documents, "bytes": tally.bytes}

    def _judge(self, document: Document, tally: Tally, refuse: Callable[..., None]) -> Document | None:
        """The document as it goes on, or None where a check removed it."""
        config, text = self._config, document.text
        metadata = document.metadata
        undecodable = undecodable_share(text)  # before control characters are repaired
        if undecodable > config.max_undecodable:
            refuse(document, "undecodable", "undecodable", round(undecodable, 4))
            return None
        if config.normalise:
            from parlance.text.normalisation import normalise

            normalised = normalise(text, config.normalisation)
            if normalised.changes:
                tally.changes.update(normalised.changes)
                tally.edited_bytes["normalised"] += utf8_length(text) - utf8_length(normalised.text)
                text = normalised.text
        document = Document(document.id, text, document.source, metadata)
        length = len(text.strip())
        if length < config.min_characters:
            refuse(document, "too short", "too short", length)
            return None
        if self._languages is not None:
            language, probability = self._languages.identify(text)
            metadata = {**metadata, "language": language, "language_probability": round(probability, 4)}
            document = Document(document.id, text, document.source, metadata)
            if config.languages and not (
                language in config.languages and probability >= config.min_language_probability
            ):
                refuse(document, "language", f"language: {language}", round(probability, 4))
                return None
        if config.filters:
            from parlance.text.filters import judge

            verdict = judge(text, config.filters, config.filter_limits)
            if verdict.reason is not None:
                figure = None if verdict.figure is None else round(verdict.figure, 4)
                refuse(document, verdict.reason.partition(":")[0], verdict.reason, figure, limit=verdict.limit)
                return None
            if verdict.text is not None and verdict.text != text:
                tally.edited_bytes["c4 lines"] += utf8_length(text) - utf8_length(verdict.text)
                document = Document(document.id, verdict.text, document.source, metadata)
        if self._overlaps is not None and (found := self._overlaps.find(document.text)):
            tally.contaminated.update({overlap.set for overlap in found})
            matches = [{"set": overlap.set, "item": overlap.item, "ngram": overlap.ngram} for overlap in found[:5]]
            if self._removals.redactor is not None:  # a part of a text may show what the whole would hide
                matches = [{"set": match["set"], "item": match["item"]} for match in matches]
            refuse(document, "contaminated", "contaminated", len(found), matches=matches)
            return None
        return document


class _Table:
    """The Parquet file of a shard's documents, written some megabytes at a time."""

    def __init__(self, path: Path, index: int, origin: str, seed: int, config: PreparationConfig, hasher: Any) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa, self._index, self._origin, self._seed, self._config = pa, index, origin, seed, config
        self._hasher = hasher
        self._bands = [f"band{band:03d}" for band in range(config.duplicate_bands)] if config.near_duplicates else []
        integers = ["group_key", "order_key", "digest_low", "digest_high", *self._bands]
        self._schema = pa.schema(
            [("number", pa.int64()), ("bytes", pa.int64())]
            + [(name, pa.string()) for name in ("id", "group", "source", "origin", "language", "metadata", "text")]
            + [(name, pa.uint64()) for name in integers]
        )
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1)
        self._documents: list[Document] = []
        self._groups: list[str] = []
        self._pending = self._row = 0

    def add(self, document: Document, group: str) -> None:
        """Append a document, which belongs to `group` whatever its metadata show of it."""
        self._documents.append(document)
        self._groups.append(group)
        self._pending += len(document.text)
        if self._pending >= FLUSH_BYTES:
            self._flush()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        documents = self._documents
        if not documents:
            return
        texts = [document.text for document in documents]
        first = (self._index << NUMBER_BITS) + self._row
        digests = np.frombuffer(b"".join(content_hash(text) for text in texts), dtype="<u8").reshape(-1, 2)
        columns: dict[str, Any] = {
            "number": np.arange(first, first + len(documents), dtype=np.int64),
            "bytes": np.array([utf8_length(text) for text in texts], dtype=np.int64),
            "id": [document.id for document in documents],
            "group": [document.group for document in documents],
            "source": [document.source for document in documents],
            "origin": [self._origin] * len(documents),
            "language": [str(document.metadata.get("language", "")) for document in documents],
            "metadata": [json.dumps(document.metadata, ensure_ascii=False) for document in documents],
            "text": texts,
            "group_key": np.array([group_key(self._seed, group) for group in self._groups], dtype=np.uint64),
            "order_key": np.array([group_key(self._seed, f"order:{d.id}") for d in documents], dtype=np.uint64),
            "digest_low": digests[:, 0],
            "digest_high": digests[:, 1],
        }
        if self._bands:
            keys = self._hasher.bands_of_texts(texts, self._config.duplicate_ngram)
            columns |= {name: np.ascontiguousarray(keys[:, band]) for band, name in enumerate(self._bands)}
        self._writer.write_table(self._pa.table(columns, schema=self._schema))
        self._row += len(documents)
        self._documents, self._groups, self._pending = [], [], 0


def content_hash(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def undecodable_share(text: str) -> float:
    """Share of the characters that are U+FFFD or control characters other than white space, 0..1."""
    return sum(map(text.count, _UNDECODABLE)) / max(1, len(text))
