"""Plain text: a file is one document, a large one several that share a group.

Files above `PIECE_BYTES` are read in pieces cut at line ends, "name#1", "name#2", ... A byte-order mark, or else the
first block, decides the encoding (see `encodings`); what does not decode becomes U+FFFD and is counted. A piece with a
NUL byte is binary data.
"""

from collections.abc import Iterator
from pathlib import Path

from parlance.text.documents import Document, decode_utf8
from parlance.text.readers.encodings import as_utf8
from parlance.text.readers.problems import BadInput, Problems
from parlance.text.readers.shards import Part, ReadingOptions
from parlance.text.readers.streams import ByteStream, open_stream

PIECE_BYTES = 1 << 20
"""Texts above this size are read in pieces of at most this size."""


def read_text(part: Part, _options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """The file as one document or in pieces."""
    stream = open_stream(Path(part.path), part.compression, part.start)
    # The stream goes on behind the part: where a piece ends depends on what follows it.
    stop = None if part.end is None else part.end - part.start
    if not part.divided:
        stream = as_utf8(stream, problems.report)
    yield from pieces(stream, part.name, problems, first=part.first, divided=part.divided, stop=stop)
    stream.check()


def pieces(
    stream: ByteStream, name: str, problems: Problems, *, first: int = 1, divided: bool = False, stop: int | None = None
) -> Iterator[Document]:
    """UTF-8 text as one document `name`, or, where it is long or `divided` says so, in pieces from number `first`.

    Those that begin at `stop` bytes or later are not read.
    """
    data, number = stream.read(PIECE_BYTES + 1), first
    in_pieces = divided or len(data) > PIECE_BYTES
    place = 0
    while (data or number == 1) and (stop is None or place < stop):
        cut = piece_end(data[:PIECE_BYTES]) if len(data) > PIECE_BYTES else len(data)
        piece = data[:cut]
        if b"\0" in piece and in_pieces:
            problems.record("piece", number, "binary data (NUL bytes)", "binary data")
        elif b"\0" in piece:
            raise BadInput("binary data", "holds binary data (NUL bytes)")
        elif piece or not stream.damage:
            text, replaced = decode_utf8(piece)
            problems.report.replaced += replaced
            if in_pieces:
                yield Document(f"{name}#{number}", text, name, {"group": name})
            else:
                yield Document(name, text, name)
        place += cut
        data, number = data[cut:] + stream.read(PIECE_BYTES + 1 - len(data) + cut), number + 1


def piece_end(data: bytes) -> int:
    """Where to cut a piece: behind its last newline, else before its last UTF-8 character, which may be incomplete."""
    cut = data.rfind(b"\n") + 1
    if cut == 0:
        cut = len(data) - 1
        while cut > len(data) - 4 and 0x80 <= data[cut] < 0xC0:
            cut -= 1
    return cut
