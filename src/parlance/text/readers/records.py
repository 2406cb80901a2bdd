"""Files of records: JSON lines, CSV and Parquet; a record is a document.

The text is in the field or column `text_field`; `id`, `source` and (JSON lines) `metadata` are used where they exist. A
record without an id is called by its file and its number from 1: the line of JSON lines, the row of the others.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parlance.text.documents import Document, cannot_read, decode_utf8, replace_surrogates
from parlance.text.readers.encodings import as_utf8
from parlance.text.readers.problems import BadInput, Problems
from parlance.text.readers.shards import Part, ReadingOptions
from parlance.text.readers.streams import DAMAGED, LINE_BYTES, ByteStream, open_stream

PARQUET_ROWS = 1024
"""Rows of a Parquet row group that are held at a time."""
DELIMITERS = {".tsv": "\t\t", ".csv": ",;\t"}
"""What may divide the columns, tried in this order until the header has the text's column."""


def read_jsonl(part: Part, options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """One document a line; empty lines count, but are no documents."""
    stream = open_stream(Path(part.path), part.compression, part.start, part.end)
    if part.start == 0:
        stream = as_utf8(stream, problems.report, guess=False)
    for number, line in enumerate(stream.lines(), part.first):
        if line is None:
            problems.record("line", number, f"longer than {LINE_BYTES >> 20} MiB", "record too long")
            continue
        if stream.damage and not line.endswith(b"\n"):
            break  # cut by the damage
        text, replaced = decode_utf8(line)
        problems.report.replaced += replaced
        if not text or text.isspace():
            continue
        value: Any
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            problems.record("line", number, f"not valid JSON ({error})")
            continue
        if document := _document(value, number, "line", part, options, problems):
            yield document
    stream.check()


def read_csv(part: Part, options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """One document a row below the header. Quoted fields may hold line ends and doubled quotes (RFC 4180)."""
    csv.field_size_limit(LINE_BYTES)  # of the whole process; the default is 128 KiB
    path = Path(part.path)
    stream = as_utf8(open_stream(path, part.compression), problems.report)
    lines = _text_lines(stream, problems)
    header = next(lines, "")
    kinds = [suffix for suffix in (part.lower() for part in path.suffixes) if suffix in DELIMITERS]
    for delimiter in DELIMITERS[kinds[-1]]:
        names = next(csv.reader([header], delimiter=delimiter), [])
        if options.text_field in names:
            break
    else:
        stream.check()
        names = next(csv.reader([header], delimiter=DELIMITERS[kinds[-1]][0]), [])
        raise no_column(options.text_field, names)
    rows, number = csv.reader(lines, delimiter=delimiter), 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            problems.record("row", number, f"not a CSV row ({error})")
            continue
        if not row:
            number -= 1
        elif stream.damage and not _more(lines):
            break  # cut by the damage
        elif len(row) != len(names):
            problems.record("row", number, f"has {len(row)} fields, the header {len(names)}")
        elif "\0" in "".join(row):
            problems.record("row", number, "binary data (NUL bytes)")
        else:
            record = {
                name: value for name, value in zip(names, row, strict=True) if value or name == options.text_field
            }
            record.pop("metadata", None)
            if document := _document(record, number, "row", part, options, problems):
                yield document
    stream.check()


def read_parquet(part: Part, options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """One document a row, `PARQUET_ROWS` at a time."""
    import pyarrow
    import pyarrow.parquet

    path, number = Path(part.path), part.first - 1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if options.text_field not in names:
                raise no_column(options.text_field, names)
            columns = [name for name in dict.fromkeys((options.text_field, "id", "source")) if name in names]
            end = file.num_row_groups if part.end is None else part.end
            for group in range(part.start, end):  # one at a time: damage in the next one must not take these rows along
                for batch in file.iter_batches(batch_size=PARQUET_ROWS, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        record = {key: value for key, value in row.items() if value is not None}
                        if document := _document(record, number, "row", part, options, problems):
                            yield document
    except pyarrow.ArrowException as error:
        raise BadInput(DAMAGED, f"is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    except UnicodeDecodeError as error:
        raise BadInput(DAMAGED, f"holds text that is not UTF-8 near row {number + 1}") from error
    except OSError as error:
        if error.errno is None:  # some damage reaches us so
            what = f"is not a readable Parquet file ({str(error).splitlines()[0]})"
            raise BadInput(DAMAGED, what) from error
        raise cannot_read(path, error) from error


def no_column(field: str, names: list[str]) -> BadInput:
    """What to say of a table without the text's column."""
    return BadInput(
        f"no column `{field}`",
        f"has no column `{field}`; its columns are {', '.join(names[:20]) or '(none)'}; name the one with the text "
        "(--text-field)",
    )


def _document(
    record: Any, number: int, place: str, part: Part, options: ReadingOptions, problems: Problems
) -> Document | None:
    """The document in a record, or None where the record is bad."""
    field = options.text_field
    if not isinstance(record, dict):
        problems.record(place, number, "not a JSON object")
        return None
    text = record.get(field)
    if not isinstance(text, str):
        problems.record(place, number, f"there is no string in the field `{field}`")
        return None
    found = {name: value for name, value in record.items() if value is not None}  # null stands for nothing
    metadata = found.get("metadata", {})
    if not isinstance(metadata, dict):
        problems.record(place, number, "the field `metadata` is not an object")
        return None
    text, replaced = replace_surrogates(text)
    problems.report.replaced += replaced
    default = f"{part.name}:{number}"
    return Document(str(found.get("id", default)), text, str(found.get("source", part.name)), metadata)


def _text_lines(stream: ByteStream, problems: Problems) -> Iterator[str]:
    """The decoded lines of a file in UTF-8."""
    first = True
    for line in stream.lines():
        if line is None:
            raise BadInput("record too long", f"has a line longer than {LINE_BYTES >> 20} MiB")
        text, replaced = decode_utf8(line) if first else _decode(line)
        first = False
        problems.report.replaced += replaced
        yield text


def _decode(line: bytes) -> tuple[str, int]:
    text, replaced = decode_utf8(line)
    return (text, replaced) if not line.startswith(codecs.BOM_UTF8) else ("\ufeff" + text, replaced)


def _more(lines: Iterator[str]) -> bool:
    """Whether there is another line; called at the damaged end only."""
    return next(lines, None) is not None
