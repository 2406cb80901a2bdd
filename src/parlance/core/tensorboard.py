"""Events for TensorBoard: named numbers over steps, in the file format that it reads, without its package.

    writer = EventWriter(Path("base/tensorboard"))
    writer.write(20, {"pretrain/loss": 4.1})                 # tensorboard --logdir base/tensorboard

A file is a sequence of records: length (8 bytes, little-endian), its masked CRC-32C, the content, its masked CRC-32C.
A content is a message `Event` of tensorflow's event.proto in the encoding of protocol buffers, of which five fields are
used here: wall_time (1), step (2), file_version (3), session_log (7), summary (5) with a list of values (1) that have a
tag (1) and a simple_value (2). Only numbers: no images, no text, no graph.
"""

import itertools
import os
import socket
import struct
import time
from functools import cache
from pathlib import Path

from parlance.core.artifacts import os_errors

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, bits reversed."""
PREFIX = "events.out.tfevents"
"""How the names of event files begin."""
_START = 1
"""SessionLog.START: everything from this event's step on, written earlier, is to be forgotten."""


@cache
def _table() -> list[int]:
    """The checksum of each byte."""
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    table, value = _table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def record(content: bytes) -> bytes:
    """A content with its length and checksums."""
    length = struct.pack("<Q", len(content))
    return length + _masked(length) + content + _masked(content)


def _masked(data: bytes) -> bytes:
    """The checksum as it is stored: rotated, and a number added, so that checksums of checksums are no special case."""
    value = crc32c(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    """Seven bits a byte, lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _nested(field: int, content: bytes) -> bytes:
    """A field of bytes, text or a message."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def event(seconds: float, step: int, body: bytes) -> bytes:
    """An `Event` at a time (seconds since 1970) and step."""
    return b"\x09" + struct.pack("<d", seconds) + b"\x10" + _varint(step) + body


def scalars(values: dict[str, float]) -> bytes:
    """The summary field of an event: one simple value a tag."""
    parts = (_nested(1, _nested(1, tag.encode()) + b"\x15" + struct.pack("<f", value)) for tag, value in values.items())
    return _nested(5, b"".join(parts))


class EventWriter:
    """Appends events to one new file of `folder`, made with the first of them."""

    _numbers = itertools.count()

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Path | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append figures of a step. Raises UserError (full disk, ...)."""
        self._append(step, scalars(values))

    def restart(self, step: int) -> None:
        """Say that training goes on from `step`, so that later events of an earlier process, if any, are not shown."""
        if any(self._folder.glob(f"{PREFIX}.*")):
            self._append(step + 1, _nested(7, b"\x08" + _varint(_START)))

    def _append(self, step: int, body: bytes) -> None:
        with os_errors("write", self._folder):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = f"{PREFIX}.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
                file = self._folder / f"{name}.{next(self._numbers)}"
                _add(file, record(event(time.time(), 0, _nested(3, b"brain.Event:2"))))
                self._file = file
            _add(self._file, record(event(time.time(), step, body)))


def _add(path: Path, data: bytes) -> None:
    """Append all of `data` or nothing: after part of a record readers find no other. Raises OSError."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise
