"""A corpus of files in parts that can be read anywhere, in any order: `Part` and `Shard`.

    for shard in FileCorpus([Path("books")]).shards():
        for document in shard.read(report): ...

A part is a file or a range of one; a shard is some parts that follow each other. Both are JSON, and functions of the
files alone. The documents of all shards, one shard after the other, are those of the corpus, with the same ids.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from parlance.core.config import Config
from parlance.text.documents import Document, ReadingReport
from parlance.text.readers.problems import BadInput, Problems


class ReadingOptions(Config):
    """How files become documents."""

    skip_bad: bool = False
    """Count, list and leave out bad records and files; otherwise the first one is an error."""
    text_field: str = Field(default="text", min_length=1)
    """Field or column of JSON lines, CSV and Parquet files that holds the text."""
    favour_precision: bool = True
    """HTML: rather lose some of the text than take navigation and advertisements for it."""


@dataclass(frozen=True)
class Part:
    """A file, or a range of one."""

    path: str
    name: str
    """What the documents' ids begin with."""
    kind: str
    compression: str = ""
    start: int = 0
    """Where it begins: byte; of a Parquet file the row group."""
    end: int | None = None
    """Where it ends; None: at the file's end."""
    first: int = 1
    """Number of its first line, row or piece in the file."""
    divided: bool = False
    """Whether the file has other parts."""


@dataclass(frozen=True)
class Shard:
    """Parts that are read together."""

    index: int
    parts: tuple[Part, ...]
    bytes: int
    """Bytes of the parts as stored."""
    options: ReadingOptions = field(default_factory=ReadingOptions)

    def read(self, report: ReadingReport) -> Iterator[Document]:
        """The documents, counted in `report`. Raises UserError for what cannot be read."""
        for part in self.parts:
            yield from read_part(part, self.options, report)

    def to_json(self) -> dict[str, Any]:
        """The shard as a JSON object, which `open_shard` reads in another process."""
        parts = [asdict(part) for part in self.parts]
        return {
            "kind": "files",
            "index": self.index,
            "bytes": self.bytes,
            "parts": parts,
            "options": self.options.model_dump(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; other keys are ignored."""
        parts = tuple(Part(**part) for part in record["parts"])
        return cls(record["index"], parts, record["bytes"], ReadingOptions.model_validate(record["options"]))


Reader = Callable[[Part, ReadingOptions, Problems], Iterator[Document]]
"""Yields the documents of a part; BadInput from it means that the rest of the part cannot be read."""


def read_part(part: Part, options: ReadingOptions, report: ReadingReport) -> Iterator[Document]:
    """The documents of one part, counted in `report`. Raises UserError for what cannot be read."""
    problems = Problems(Path(part.path), part.name, options.skip_bad, report)
    if part.start == 0:
        report.files += 1
    try:
        for document in _reader(part.kind)(part, options, problems):
            report.count(document.text)
            yield document
    except BadInput as error:
        problems.file(error)


def _reader(kind: str) -> Reader:
    """The function that reads files of a kind. Imported here: each kind needs other libraries."""
    if kind == "text":
        from parlance.text.readers.plain_text import read_text

        return read_text
    if kind in ("jsonl", "csv", "parquet"):
        from parlance.text.readers.records import read_csv, read_jsonl, read_parquet

        return {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet}[kind]
    if kind == "html":
        from parlance.text.readers.html import read_html

        return read_html
    if kind == "warc":
        from parlance.text.readers.warc import read_warc

        return read_warc
    from parlance.text.readers.pdf import read_pdf

    return read_pdf
