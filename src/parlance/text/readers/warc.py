"""Web archives: the main text of HTML responses, and the text of WET files, record by record.

Reads WARC 0.17 to 1.1 (ISO 28500), each record a gzip member or all of it one stream:

- `response` records: HTTP answers of status 2xx with an HTML body, after undoing chunks and compression;
- `resource` records of type text/html;
- `conversion` records of type text/plain (Common Crawl's WET files).

A document's id is the file's with the number of the record; `metadata` has `url` and `date`. Requests, descriptions
and the like are passed over; answers that are not HTML are counted. Where the framing is lost, the rest of the file is.

    for document in read_warc(part, options, problems): ...
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parlance.text.documents import Document, decode_utf8
from parlance.text.readers.html import NO_TEXT, PAGE_BYTES, decode_page, main_text
from parlance.text.readers.problems import BadInput, Problems
from parlance.text.readers.shards import Part, ReadingOptions
from parlance.text.readers.streams import DAMAGED, ByteStream, open_stream

HEADER_BYTES = 1 << 16
"""A record's header may have at most so many bytes."""
BODY_BYTES = PAGE_BYTES + HEADER_BYTES
"""Larger records are passed over."""

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Record:
    """One record of an archive."""

    number: int
    headers: dict[str, str]
    body: bytes | None
    """None: of a kind that is not read, or too large."""
    length: int


def read_warc(part: Part, options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """One document a page or conversion."""
    stream = open_stream(Path(part.path), part.compression)
    for record in records(stream):
        try:
            text = _text(record, options, problems)
        except BadInput as error:
            problems.record("record", record.number, str(error), error.reason)
            continue
        if text is None:
            continue
        if not text or text.isspace():
            problems.report.skip(NO_TEXT, f"{part.name}:{record.number}")
            continue
        metadata = {
            "url": record.headers.get("warc-target-uri", "").strip("<>"),
            "date": record.headers.get("warc-date", ""),
        }
        metadata = {key: value for key, value in metadata.items() if value}
        yield Document(f"{part.name}:{record.number}", text, part.name, metadata)
    stream.check()


def records(stream: ByteStream) -> Iterator[Record]:
    """The records of an archive, numbered from 1. Raises BadInput where the framing breaks; a record that is cut by
    the end of the file is not among them."""
    lines = _HeaderLines(stream)
    number = 0
    while (version := lines.first()) is not None:
        number += 1
        if not version.startswith("WARC/"):
            raise BadInput(DAMAGED, f"is no WARC file from record {number} on (it begins with {version[:40]!r})")
        headers = parse_headers(lines.block())
        try:
            length = int(headers["content-length"])
        except (KeyError, ValueError):
            length = -1
        if stream.damage:
            return
        if length < 0:
            raise BadInput(DAMAGED, f"has no length in WARC record {number}")
        wanted = headers.get("warc-type", "").lower() in ("response", "resource", "conversion")
        if wanted and length <= BODY_BYTES:
            body = stream.read(length)
            complete = len(body) == length
        else:
            body, complete = None, stream.skip(length) == length
        if not complete:
            if not stream.damage:
                raise BadInput(DAMAGED, f"ends in the middle of WARC record {number}")
            return
        yield Record(number, headers, body, length)


class _HeaderLines:
    """The header lines of records."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    def first(self) -> str | None:
        """The next line that is not empty, or None at the end."""
        while (line := self._line()) is not None:
            if line.strip():
                return line
        return None

    def block(self) -> list[str]:
        """The lines up to an empty one."""
        found, size = [], 0
        while (line := self._line()) and line.strip():
            found.append(line)
            size += len(line)
            if size > HEADER_BYTES:
                raise BadInput(DAMAGED, f"has a WARC header of more than {HEADER_BYTES >> 10} KiB")
        return found

    def _line(self) -> str | None:
        line = self._stream.line(HEADER_BYTES)
        return None if not line else line.decode("utf-8", errors="replace").rstrip("\r\n")


def parse_headers(lines: list[str]) -> dict[str, str]:
    """Names (in lower case) and values; a line that begins with white space goes on with the value before."""
    headers: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
            continue
        key, separator, value = line.partition(":")
        if separator:
            name = key.strip().lower()
            headers[name] = value.strip()
    return headers


def _text(record: Record, options: ReadingOptions, problems: Problems) -> str | None:
    """The text of a record, None where it is not of a kind that is read. Raises BadInput."""
    kind = record.headers.get("warc-type", "").lower()
    if kind not in ("response", "resource", "conversion"):
        return None
    if record.body is None:
        raise BadInput("page too large", f"is a record of {record.length} bytes")
    name = f"{problems.name}:{record.number}"
    body, content_type = record.body, record.headers.get("content-type", "")
    if kind == "conversion" and content_type.lower().startswith("text/"):
        text, replaced = decode_utf8(body)
        problems.report.replaced += replaced
        return text
    if kind == "response":
        if not body.startswith(b"HTTP/"):
            problems.report.skip("WARC response that is not HTTP", name)
            return None
        status, headers, body = split_response(body)
        if not 200 <= status < 300:
            problems.report.skip("WARC response without success", name)
            return None
        content_type = headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() in _HTML:
            body = undo_transfer(body, headers)
    if content_type.partition(";")[0].strip().lower() not in _HTML:
        problems.report.skip("WARC record that is not HTML", name)
        return None
    charset = _CHARSET.search(content_type)
    page, encoding, replaced = decode_page(body, charset[1] if charset else "")
    problems.report.replaced += replaced
    if encoding != "utf-8":
        problems.report.encodings[encoding] += 1
    return main_text(page, favour_precision=options.favour_precision)


def split_response(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of an HTTP answer; the status is 0 where the first line is none."""
    end = re.search(rb"\r?\n\r?\n", data)
    head, body = (data[: end.start()], data[end.end() :]) if end else (data, b"")
    lines = head.decode("utf-8", errors="replace").splitlines()
    code = lines[0].split()[1:2] if lines else []
    return int(code[0]) if code and code[0].isdecimal() else 0, parse_headers(lines[1:]), body


def undo_transfer(body: bytes, headers: dict[str, str]) -> bytes:
    """The body as it was before it was chunked and compressed. What is only declared to be is left as it is: archives
    are often written so. Raises BadInput for compression that is not gzip or deflate, and for damaged data."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = unchunk(body)
    encodings = [name.strip().lower() for name in headers.get("content-encoding", "").split(",")]
    for name in reversed(encodings):
        if name in ("gzip", "x-gzip") and body.startswith(b"\x1f\x8b"):
            body = _inflate(body, 31)
        elif name == "deflate":
            # Servers send it with and without zlib's header.
            has_header = body[:1] == b"\x78" and int.from_bytes(body[:2]) % 31 == 0
            body = body if _looks_like_html(body) else _inflate(body, 15 if has_header else -15)
        elif name not in ("", "identity", "gzip", "x-gzip") and not _looks_like_html(body):
            raise BadInput("unknown compression", f"is compressed with {name[:20]}")
    return body


def unchunk(body: bytes) -> bytes:
    """The data of a chunked body (RFC 9112, section 7.1); from the first thing on that is no chunk, the bytes as they
    are."""
    parts, place = [], 0
    while place < len(body):
        end = body.find(b"\n", place, place + 64)
        size = body[place:end].partition(b";")[0].strip() if end >= 0 else b""
        if not size or not re.fullmatch(rb"[0-9a-fA-F]{1,8}", size):
            parts.append(body[place:])
            break
        length = int(size, 16)
        if length == 0:
            break
        parts.append(body[end + 1 : end + 1 + length])
        place = end + 1 + length
        if body[place : place + 2] == b"\r\n":
            place += 2
        elif body[place : place + 1] == b"\n":
            place += 1
    return b"".join(parts)


def _looks_like_html(body: bytes) -> bool:
    return body[:256].lstrip()[:1] == b"<"


def _inflate(data: bytes, wbits: int) -> bytes:
    """Unpacked data, at most one byte more than a page may have; a page cut in the middle keeps what is there."""
    try:
        return zlib.decompressobj(wbits).decompress(data, PAGE_BYTES + 1)
    except zlib.error as error:
        raise BadInput("damaged compression", "holds damaged compressed data") from error
