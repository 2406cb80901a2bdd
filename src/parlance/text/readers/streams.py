"""The bytes of a stored file: a range of it, decompressed, in blocks; damage ends the stream and is remembered.

    stream = open_stream(Path("a.jsonl.gz"), "gz")
    for line in stream.lines(): ...
    stream.check()          # raises BadInput where the file is damaged; what came before it was read

Memory holds a few blocks whatever the file unpacks to. gzip follows RFC 1952 (several members, zeros behind the last),
zstandard RFC 8878 (several frames; no dictionaries).
"""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from parlance.text.documents import cannot_read
from parlance.text.readers.problems import BadInput

BLOCK_BYTES = 1 << 18
"""Bytes that are read and unpacked at a time."""
ZSTD_INPUT_BYTES = 1 << 12
"""zstandard unpacks all it is given: 4 KiB grow to 128 MiB at the very worst."""
LINE_BYTES = 64 << 20
"""Longer lines are not read."""
DAMAGED = "damaged file"
"""The heading under which damaged files are counted."""


class ByteStream:
    """Bytes from an iterator of blocks. A BadInput from it ends the stream early and waits for `check`."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""
        self.damage: BadInput | None = None

    def check(self) -> None:
        """Raise the BadInput that ended the stream, if one did."""
        if self.damage is not None:
            raise self.damage

    def block(self) -> bytes:
        """The next bytes, some of them; empty at the end."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        try:
            return next(self._blocks, b"")
        except BadInput as damage:
            self.damage = damage
            return b""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        parts, length = [], 0
        while length < size and (data := self.block()):
            parts.append(data)
            length += len(data)
        joined = b"".join(parts)
        self._rest = joined[size:]
        return joined[:size]

    def peek(self, size: int) -> bytes:
        """What `read` would return."""
        data = self.read(size)
        self._rest = data + self._rest
        return data

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; returns how many there were."""
        left = size
        while left > 0 and (data := self.block()):
            self._rest = data[left:]
            left -= min(left, len(data))
        return size - left

    def line(self, limit: int) -> bytes:
        """The next line with its "\\n"; what there is of it where it is longer than about `limit` bytes."""
        parts: list[bytes] = []
        length = 0
        while length <= limit and (data := self.block()):
            end = data.find(b"\n") + 1
            parts.append(data[:end] if end else data)
            length += len(parts[-1])
            if end:
                self._rest = data[end:]
                break
        return b"".join(parts)

    def lines(self, limit: int = LINE_BYTES) -> Iterator[bytes | None]:
        """The lines with their "\\n", the last perhaps without; None for one of more than `limit` bytes."""
        start: list[bytes] = []  # the line that is not complete yet
        length = 0
        while data := self.block():
            lines = data.split(b"\n")
            for line in lines[:-1]:
                if length + len(line) > limit:
                    yield None
                elif start:
                    start += [line, b"\n"]
                    yield b"".join(start)
                else:
                    yield line + b"\n"
                start, length = [], 0
            if last := lines[-1]:
                length += len(last)
                start = [*start, last] if length <= limit else []
        if length > limit:
            yield None
        elif start:
            yield b"".join(start)


def open_stream(path: Path, compression: str = "", start: int = 0, end: int | None = None) -> ByteStream:
    """The bytes `start`..`end` of a file as stored (None: to its end), unpacked. Raises UserError where it cannot be
    opened, and while reading where the system refuses."""
    unpack: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {"gz": _gunzip, "zst": _unzstd}
    block = ZSTD_INPUT_BYTES if compression == "zst" else BLOCK_BYTES
    stored = _stored(path, _open(path), start, end, block)
    return ByteStream(unpack[compression](stored) if compression else stored)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise cannot_read(path, error) from error


def _stored(path: Path, file: BinaryIO, start: int, end: int | None, block: int) -> Iterator[bytes]:
    with file:
        try:
            file.seek(start)
            while data := file.read(block if end is None else min(block, end - start)):
                start += len(data)
                yield data
        except OSError as error:
            raise cannot_read(path, error) from error


def _gunzip(stored: Iterator[bytes]) -> Iterator[bytes]:
    member, members, begun = zlib.decompressobj(wbits=31), 0, False
    for data in stored:
        while data:
            if not begun and members and not data.strip(b"\0"):
                break  # tape blocks and some tools fill up with zeros
            try:
                unpacked = member.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                is_gzip = begun or members or data.startswith(b"\x1f\x8b")
                what = "holds damaged gzip data" if is_gzip else "is no gzip data"
                raise BadInput(DAMAGED, what) from error
            if unpacked:
                yield unpacked
            begun = True
            if member.eof:
                data, member, members, begun = member.unused_data, zlib.decompressobj(wbits=31), members + 1, False
            elif not unpacked and not member.unconsumed_tail:
                break
            else:
                data = member.unconsumed_tail
    if begun or not members:
        raise BadInput(DAMAGED, "the gzip data ends in the middle")


def _unzstd(stored: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame, frames, begun = decompressor.decompressobj(), 0, False
    for data in stored:
        while data:
            try:
                unpacked = frame.decompress(data)
            except zstandard.ZstdError as error:
                is_zstd = begun or frames or data.startswith(b"\x28\xb5\x2f\xfd")
                what = "holds damaged zstandard data" if is_zstd else "is no zstandard data"
                raise BadInput(DAMAGED, what) from error
            begun = True
            for place in range(0, len(unpacked), BLOCK_BYTES):
                yield unpacked[place : place + BLOCK_BYTES]
            if not frame.eof:
                break
            data, frame, frames, begun = frame.unused_data, decompressor.decompressobj(), frames + 1, False
    if begun or not frames:
        raise BadInput(DAMAGED, "the zstandard data ends in the middle")
