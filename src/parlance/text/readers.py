"""From files and folders to documents: plain text, Markdown, Python, JSON lines and Parquet, streamed.

What one document is:

- `.txt`, `.md`, `.py`: the file; files above `PIECE_BYTES` (1 MiB) are read in pieces cut at line ends, which share
  a group;
- `.jsonl`: a line, an object with the string field `text` and, where the user has them, `id`, `source` and `metadata`;
- `.parquet`: a row, with the string column `text` and, where they exist, `id` and `source`.

Memory holds one piece, line or Parquet batch, and the sorted names of the folders on the way down to it: it does not
grow with the corpus. Undecodable bytes and lone surrogates become U+FFFD and are counted. Nothing is cleaned here.

    corpus = FileCorpus([Path("books"), Path("notes.jsonl")])
    for document in corpus: ...
    print(corpus.report)
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from parlance.core.artifacts import PARTIAL
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.documents import Document, ReadingReport, cannot_read, decode_utf8, replace_surrogates

TEXT_SUFFIXES = (".txt", ".md", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
PIECE_BYTES = 1 << 20
"""Plain text files above this size are read in pieces of at most this size."""
PARQUET_ROWS = 1024
"""Rows of a Parquet row group that are held at a time."""


class FileCorpus:
    """All documents of the named files and folders, in the order named, folders recursively in sorted order.

    Hidden and partial (half-written) files, links to folders, and folders that Parlance itself prepared are passed
    over in folders; files of other kinds are skipped and counted. `report` describes the last complete pass.

    Ids are paths relative to the named folder (with its name in front), so that they do not depend on where the corpus
    lies; a record has ":" and its number from 1 (line or row) behind the path, unless it brings an `id`.

    Raises UserError at once for a missing path or a named file of an unknown kind, and while iterating for
    unreadable files, for broken records (unless `skip_bad`, then they are counted) and for no text at all.
    """

    def __init__(self, paths: Sequence[Path], skip_bad: bool = False) -> None:
        if not paths:
            raise UserError("no text was named; name a file or a folder")
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} does not exist; check the path")
            if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
                raise UserError(f"{path}: cannot read files of this kind; the kinds are {', '.join(SUFFIXES)}")
        self.paths = tuple(paths)
        self.skip_bad = skip_bad
        self.report = ReadingReport()

    def __iter__(self) -> Iterator[Document]:
        self.report = report = ReadingReport()
        has_text = False
        with Progress("read", unit="documents") as progress:
            for path, name in self._files(report):
                report.files += 1
                for document in _read(path, name, report, self.skip_bad):
                    has_text = has_text or not (not document.text or document.text.isspace())
                    report.count(document.text)
                    progress.update(1)
                    yield document
        if not has_text:
            where = ", ".join(str(path) for path in self.paths[:3])
            raise UserError(f"there is no text in {where}; Parlance reads {', '.join(SUFFIXES)} files")

    def _files(self, report: ReadingReport) -> Iterator[tuple[Path, str]]:
        """(path, id) of every file to read. Roots of the same name are told apart by "#2", "#3", ..."""
        seen: dict[str, int] = {}
        for path in self.paths:
            root = path.resolve().name or "root"
            seen[root] = seen.get(root, 0) + 1
            name = root if seen[root] == 1 else f"{root}#{seen[root]}"
            if path.is_dir():
                yield from _walk(path, name, report)
            else:
                yield path, name


def _walk(folder: Path, name: str, report: ReadingReport) -> Iterator[tuple[Path, str]]:
    """(path, id) of the readable files below `folder`, sorted by name, a folder's content in its place."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    except OSError as error:
        raise cannot_read(folder, error) from error
    for entry, is_folder in entries:
        path, inner = folder / entry, f"{name}/{entry}"
        if entry.startswith(".") or entry.endswith(PARTIAL):
            report.skip("hidden or partial", inner)
        elif is_folder:
            if (path / "card.json").exists() and (path / "train.jsonl").exists():
                report.skip("a corpus prepared by Parlance", inner)
            else:
                yield from _walk(path, inner, report)
        elif path.suffix.lower() not in SUFFIXES:
            report.skip(f"kind of file: {path.suffix.lower() or 'no extension'}", inner)
        elif not path.is_file():
            report.skip("not a regular file", inner)
        else:
            yield path, inner


def _read(path: Path, name: str, report: ReadingReport, skip_bad: bool) -> Iterator[Document]:
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        yield from _read_text(path, name, report)
    else:
        records = _jsonl_records(path, report) if suffix == ".jsonl" else _parquet_records(path)
        for number, record in records:
            document = _document(record, f"{name}:{number}", name, report)
            if isinstance(document, Document):
                yield document
            elif skip_bad:
                report.skip("broken record", f"{name}:{number}")
            else:
                place = "line" if suffix == ".jsonl" else "row"
                raise UserError(
                    f"{path}, {place} {number}: {document}; mend it, or pass --skip-bad to leave such records out"
                )


def _read_text(path: Path, name: str, report: ReadingReport) -> Iterator[Document]:
    """The file as one document, or as pieces "name#1", "name#2", ... that share the group `name`."""
    with _open(path) as file:
        data = _fill(path, file, b"")
        in_pieces, number = len(data) > PIECE_BYTES, 1
        while data or number == 1:
            cut = _piece_end(data[:PIECE_BYTES]) if len(data) > PIECE_BYTES else len(data)
            text, replaced = decode_utf8(data[:cut])
            report.replaced += replaced
            if in_pieces:
                yield Document(f"{name}#{number}", text, name, {"group": name})
            else:
                yield Document(name, text, name)
            data, number = _fill(path, file, data[cut:]), number + 1


def _fill(path: Path, file: BinaryIO, data: bytes) -> bytes:
    """`data` lengthened from `file` to one byte more than a piece, or to the file's end."""
    try:
        return data + file.read(PIECE_BYTES + 1 - len(data))
    except OSError as error:
        raise cannot_read(path, error) from error


def _piece_end(data: bytes) -> int:
    """Where to cut a piece: behind its last newline, else before its last UTF-8 character, which may be incomplete."""
    cut = data.rfind(b"\n") + 1
    if cut == 0:
        cut = len(data) - 1
        while cut > len(data) - 4 and 0x80 <= data[cut] < 0xC0:
            cut -= 1
    return cut


def _jsonl_records(path: Path, report: ReadingReport) -> Iterator[tuple[int, Any]]:
    """(line number, parsed value) of the non-empty lines; the value of a line that is not JSON is the ValueError."""
    with _open(path) as file:
        number = 0
        while True:
            try:
                line = file.readline()
            except OSError as error:
                raise cannot_read(path, error) from error
            if not line:
                return
            number += 1
            text, replaced = decode_utf8(line)
            report.replaced += replaced
            if text.isspace() or not text:
                continue
            value: Any
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                value = error
            yield number, value


def _parquet_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number, record) of a Parquet file, read one row group at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{path} has no column `text`; its columns are {', '.join(names)}")
            columns = [name for name in ("text", "id", "source") if name in names]
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    number += 1
                    yield number, {key: value for key, value in record.items() if key == "text" or value is not None}
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _document(record: Any, default_id: str, default_source: str, report: ReadingReport) -> Document | str:
    """The document in a record, or what is wrong with the record."""
    if isinstance(record, ValueError | RecursionError):
        return f"not valid JSON ({record})"
    if not isinstance(record, dict):
        return "not a JSON object"
    text = record.get("text")
    if not isinstance(text, str):
        return "there is no string in the field `text`"
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        return "the field `metadata` is not an object"
    text, replaced = replace_surrogates(text)
    report.replaced += replaced
    return Document(str(record.get("id", default_id)), text, str(record.get("source", default_source)), metadata)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise cannot_read(path, error) from error
