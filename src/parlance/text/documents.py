"""What a corpus is: something that can be iterated, again and again, for documents.

A `Document` is one text with a name, an origin and free metadata; as JSON it is one object
`{"id", "text", "source", "metadata"}`, the line format of every `*.jsonl` that Parlance writes.

    Document("notes/a.txt", "Some text.", "notes/a.txt").to_json()
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from parlance.core.errors import UserError

LEFT_OUT_LIMIT = 10_000
"""At most this many files that were not read are listed by name in a `ReadingReport`; all are counted."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus."""

    id: str
    """Name of the document, unique within its corpus unless the user's own ids repeat."""
    text: str
    source: str
    """Where it comes from: a path, a web address, the name of a collection."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values. Two keys have a meaning: `group` (documents of one group never end up in different splits) and
    `licence`."""

    @property
    def group(self) -> str:
        """The unit that may not be torn between training and test data: `metadata["group"]`, else the id."""
        group = self.metadata.get("group")
        return self.id if group is None else str(group)

    def to_json(self) -> dict[str, Any]:
        """The document as a JSON object."""
        return {"id": self.id, "text": self.text, "source": self.source, "metadata": self.metadata}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """The inverse of `to_json`; `source` and `metadata` may be absent. Raises KeyError without `id` or `text`."""
        return cls(record["id"], record["text"], record.get("source", ""), record.get("metadata", {}))


class Corpus(Protocol):
    """Documents in a fixed order; every iteration starts anew and yields the same ones."""

    def __iter__(self) -> Iterator[Document]: ...


@dataclass
class ReadingReport:
    """What one pass over a corpus met."""

    files: int = 0
    """Files opened."""
    documents: int = 0
    """Documents yielded."""
    bytes: int = 0
    """UTF-8 bytes of their texts."""
    replaced: int = 0
    """Undecodable byte sequences and lone surrogates that became U+FFFD."""
    encodings: Counter[str] = field(default_factory=Counter)
    """Files and pages in another encoding than UTF-8, by encoding."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files or records that were not read, counted by reason."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the files that were not read, the first `LEFT_OUT_LIMIT` of them."""

    def skip(self, reason: str, name: str) -> None:
        """Count something that is not read."""
        self.skipped[reason] += 1
        if len(self.left_out) < LEFT_OUT_LIMIT:
            self.left_out.append((name, reason))

    def count(self, text: str) -> None:
        """Count a document that is yielded."""
        self.documents += 1
        self.bytes += utf8_length(text)

    def merge(self, other: "ReadingReport") -> None:
        """Add the report of what was read after this."""
        self.files += other.files
        self.documents += other.documents
        self.bytes += other.bytes
        self.replaced += other.replaced
        self.encodings.update(other.encodings)
        self.skipped.update(other.skipped)
        self.left_out += other.left_out[: LEFT_OUT_LIMIT - len(self.left_out)]

    def to_json(self, *, full: bool = False) -> dict[str, Any]:
        """The counts; with the list of names where `full`."""
        counts = {
            "files": self.files,
            "documents": self.documents,
            "bytes": self.bytes,
            "replaced": self.replaced,
            "encodings": dict(sorted(self.encodings.items())),
            "skipped": dict(sorted(self.skipped.items())),
        }
        return counts | {"left_out": [list(pair) for pair in self.left_out]} if full else counts

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json(full=True)`."""
        counts = {name: record[name] for name in ("files", "documents", "bytes", "replaced")}
        left_out = [(name, reason) for name, reason in record["left_out"]]
        return cls(
            **counts, encodings=Counter(record["encodings"]), skipped=Counter(record["skipped"]), left_out=left_out
        )


class Shard(Protocol):
    """A part of a corpus that another process or machine can read."""

    def read(self, report: ReadingReport) -> Iterator[Document]:
        """The documents, counted in `report`."""
        ...

    def to_json(self) -> dict[str, Any]:
        """JSON for `parlance.text.shards.open_shard`, with `kind`, `index` and `bytes` (as stored)."""
        ...


@runtime_checkable
class ShardedCorpus(Protocol):
    """A corpus that can be read in shards: their documents, one shard after the other, are those of the corpus."""

    report: ReadingReport

    def __iter__(self) -> Iterator[Document]: ...

    def shards(self, target_bytes: int) -> Sequence[Shard]:
        """The shards, about `target_bytes` stored bytes each; `report` is then what no shard will report."""
        ...


def cannot_read(path: Path, error: OSError) -> UserError:
    """The one sentence a user needs where the operating system refuses to read."""
    reason = error.strerror or str(error)
    return UserError(f"cannot read {path}: {reason[0].lower()}{reason[1:]}")


def utf8_length(text: str) -> int:
    """Number of UTF-8 bytes of `text` (a lone surrogate counts as the three bytes of U+FFFD)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", errors="surrogatepass"))


def decode_utf8(data: bytes) -> tuple[str, int]:
    """(text, number of undecodable sequences replaced by U+FFFD); a byte-order mark at the start is dropped."""
    try:
        return data.decode("utf-8-sig"), 0
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
        return text, text.count("\ufffd") - data.count(b"\xef\xbf\xbd")


def replace_surrogates(text: str) -> tuple[str, int]:
    """(text, count): lone surrogates, which UTF-8 cannot hold, become U+FFFD."""
    try:
        text.encode("utf-8")
        return text, 0
    except UnicodeEncodeError:
        count = sum(1 for character in text if "\ud800" <= character <= "\udfff")
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text), count
