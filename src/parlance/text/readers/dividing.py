"""How files are divided into parts, and parts packed into shards.

JSON lines are cut at the first line end behind each multiple of the target, Parquet between row groups, plain text
between the pieces that it is read in anyway. The lines of a JSON lines file are counted on the way, so that ids stay
what they are; files below the target are not looked into at all.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from parlance.text.documents import cannot_read
from parlance.text.readers import plain_text
from parlance.text.readers.encodings import HEAD_BYTES, encoding_of
from parlance.text.readers.shards import Part, ReadingOptions, Shard

SCAN_BYTES = 4 << 20
"""Bytes that are searched for line ends at a time."""
FILE_COST = 4096
"""A file costs at least what so many bytes do."""
UNPACKED = 4
"""Stored bytes of a compressed file count so many times."""


def divide(part: Part, target_bytes: int) -> Iterator[tuple[Part, int]]:
    """(part, its stored bytes) of a whole file; several where it is larger than `target_bytes` and can be divided."""
    path = Path(part.path)
    try:
        size = path.stat().st_size
        if part.compression or size <= target_bytes:
            found = None
        elif part.kind == "jsonl":
            found = _divide_lines(part, target_bytes, size)
        elif part.kind == "text":
            found = _divide_text(part, target_bytes, size)
        elif part.kind == "parquet":
            found = _divide_rows(part, target_bytes)
        else:
            found = None
    except OSError as error:
        raise cannot_read(path, error) from error
    yield from found if found and len(found) > 1 else [(part, size)]


def pack(parts: Iterable[tuple[Part, int]], target_bytes: int, options: ReadingOptions) -> list[Shard]:
    """Shards of parts that follow each other; a shard is full when the next part would bring it over the target."""
    shards: list[Shard] = []
    held: list[Part] = []
    stored = weight = 0
    for part, size in parts:
        cost = max(FILE_COST, size * (UNPACKED if part.compression else 1))
        if held and weight + cost > target_bytes:
            shards.append(Shard(len(shards), tuple(held), stored, options))
            held, stored, weight = [], 0, 0
        held.append(part)
        stored, weight = stored + size, weight + cost
    if held:
        shards.append(Shard(len(shards), tuple(held), stored, options))
    return shards


def _divide_lines(part: Part, target: int, size: int) -> list[tuple[Part, int]] | None:
    cuts, lines = [0], [1]  # byte and line number at which each part begins
    with Path(part.path).open("rb") as file:
        if encoding_of(file.read(4), guess=False) != "utf-8":
            return None
        file.seek(0)
        place, line = 0, 1  # of the bytes that are not searched yet
        while data := file.read(SCAN_BYTES):
            begin = 0
            while place + len(data) > cuts[-1] + target:
                # The search for the end of a line may begin in the block before: never look back.
                end = data.find(b"\n", max(begin, cuts[-1] + target - place - 1)) + 1
                if not end:
                    break
                line += data.count(b"\n", begin, end)
                cuts.append(place + end)
                lines.append(line)
                begin = end
            line += data.count(b"\n", begin)
            place += len(data)
    if cuts[-1] >= size:
        del cuts[-1], lines[-1]
    return _ranges(part, cuts, lines, size)


def _divide_text(part: Part, target: int, size: int) -> list[tuple[Part, int]] | None:
    """Follow the cuts of `plain_text.pieces`, looking only at the end of each piece."""
    length = plain_text.PIECE_BYTES
    cuts, numbers = [0], [1]
    with Path(part.path).open("rb") as file:
        if size <= length or encoding_of(file.read(HEAD_BYTES)) != "utf-8":
            return None
        place, number = 0, 1
        while size - place > length:
            place += _cut(file.fileno(), place, length)
            number += 1
            if place - cuts[-1] >= target:
                cuts.append(place)
                numbers.append(number)
    return _ranges(part, cuts, numbers, size)


def _cut(file: int, place: int, length: int) -> int:
    """The length of the piece that begins at `place`: its end is looked at first, all of it where that has no line."""
    tail = min(4096, length)
    data = os.pread(file, tail, place + length - tail)
    if b"\n" in data or tail == length:
        return length - tail + plain_text.piece_end(data)
    return plain_text.piece_end(os.pread(file, length, place))


def _divide_rows(part: Part, target: int) -> list[tuple[Part, int]] | None:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(part.path)
    except pyarrow.ArrowException:
        return None  # reading it says what is wrong
    found, start, first, stored, rows = [], 0, 1, 0, 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        columns = range(row_group.num_columns)
        stored += sum(row_group.column(column).total_compressed_size for column in columns)
        rows += row_group.num_rows
        if stored >= target or group == metadata.num_row_groups - 1:
            found.append((replace(part, start=start, end=group + 1, first=first, divided=True), stored))
            start, first, stored, rows = group + 1, first + rows, 0, 0
    return found


def _ranges(part: Part, cuts: list[int], firsts: list[int], size: int) -> list[tuple[Part, int]]:
    """Parts that begin at the bytes `cuts` and with the numbers `firsts`."""
    ends = [*cuts[1:], size]
    return [
        (replace(part, start=start, end=end, first=first, divided=True), end - start)
        for start, end, first in zip(cuts, ends, firsts, strict=True)
    ]
