"""How often each piece of text occurs: counted by threads here, or in parts anywhere and added up.

Counts are 64 bits wide. Memory grows with the number of different pieces only (64 to 128 bytes for each of them and
thread), not with the text. The result is the same however the texts are divided, in order too.

    table = count_pieces(texts, "gpt4")
    merge_counts([table, other]).total

A corpus engine counts shards on their own and merges: a `PieceCounts` is three arrays, which is also how Arrow holds a
column of `large_binary` (offsets and bytes) and one of int64.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.bpe.parallel import chunks_of, in_order
from parlance.text.bpe.patterns import (
    PADDING,
    PatternName,
    pattern_named,
    scan_arguments,
    unaligned_words,
    utf8,
)

_ENDS = 1 << 16
_ROWS = 1 << 16
_STORE = 1 << 20


class PieceCounts(NamedTuple):
    """Different pieces and how often each occurs, in an order that depends on the pieces alone."""

    data: NDArray[np.uint8]
    """The bytes of all pieces, one behind the other."""
    offsets: NDArray[np.int64]
    """Where each piece starts in `data`, and where the last one ends: shape (pieces + 1,)."""
    counts: NDArray[np.int64]
    """How often each occurs, at least 1: shape (pieces,)."""

    @property
    def total(self) -> int:
        """Number of pieces, repeated ones included."""
        return int(self.counts.sum())

    def to_dict(self) -> dict[bytes, int]:
        """The same as a dictionary; slow, for small tables."""
        raw = self.data.tobytes()
        places = itertools.pairwise(self.offsets.tolist())
        return {raw[start:end]: n for (start, end), n in zip(places, self.counts.tolist(), strict=True)}

    @classmethod
    def of(cls, pieces: Iterable[tuple[bytes, int]]) -> "PieceCounts":
        """A table of (piece, count) pairs, as they come: in their order, repeated ones not added up."""
        pairs = list(pieces)
        offsets = np.zeros(len(pairs) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece, _ in pairs], out=offsets[1:])
        data = np.frombuffer(b"".join(piece for piece, _ in pairs), dtype=np.uint8)
        return cls(data, offsets, np.array([count for _, count in pairs], dtype=np.int64))


class PieceTable:
    """A hash table from pieces to 64-bit sums that grows as needed; `table_kernels` has its layout. For one thread."""

    def __init__(self) -> None:
        self.rows = np.zeros((_ROWS, 4), dtype=np.int64)
        """The table."""
        self._store_bytes = np.zeros(_STORE, dtype=np.uint8)
        self.store = unaligned_words(self._store_bytes)
        """Bytes of its long keys."""
        self._state = np.zeros(2, dtype=np.int64)

    def add(self, words: NDArray[np.int64], ends: NDArray[np.int32], start: int, weights: NDArray[np.int64]) -> None:
        """Add `weights` to the pieces that lie one behind the other from `start` to each of `ends`.

        `weights` has one entry for each piece, or a single one for all.
        """
        from parlance.text.bpe.table_kernels import tally

        step, done, count = int(len(weights) == len(ends)), 0, len(ends)
        while True:
            done = tally(words, start, ends, done, count, weights, step, self.rows, self.store, self._state)
            if done == count:
                return
            start = int(ends[done - 1]) if done else start
            self._grow(int(ends[done]) - start)

    def add_counts(self, part: PieceCounts) -> None:
        """Add a table that was counted elsewhere."""
        limit = 1 << 30  # places are 32-bit numbers
        first = 0
        while first < len(part.counts):
            start = int(part.offsets[first])
            last = max(first + 1, int(np.searchsorted(part.offsets, start + limit, side="right")) - 1)
            data = np.concatenate([part.data[start : part.offsets[last]], np.zeros(PADDING, dtype=np.uint8)])
            ends = (part.offsets[first + 1 : last + 1] - start).astype(np.int32)
            self.add(unaligned_words(data), ends, 0, part.counts[first:last])
            first = last

    def counts(self) -> PieceCounts:
        """The content: short pieces by length and bytes, then the long ones by length and hash."""
        used = self.rows[self.rows[:, 1] != 0]
        long = used[:, 1] < 0
        short_rows, long_rows = used[~long], used[long]
        short_rows = short_rows[np.lexsort((short_rows[:, 0], short_rows[:, 1]))]
        long_rows = long_rows[np.lexsort((long_rows[:, 3], long_rows[:, 0], long_rows[:, 1]))]
        short_lengths = short_rows[:, 1] >> 56
        long_lengths = long_rows[:, 1] & 0x7FFFFFFFFFFFFFFF
        letters = np.ascontiguousarray(short_rows[:, :2]).view(np.uint8).reshape(-1, 16)
        short_data = letters[np.arange(16) < short_lengths[:, None]]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([short_lengths, long_lengths]))]).astype(np.int64)
        starts = offsets[len(short_rows) : -1] - len(short_data)
        where = np.repeat(long_rows[:, 3] - starts, long_lengths) + np.arange(long_lengths.sum())
        data = np.concatenate([short_data, self._store_bytes[where]])
        return PieceCounts(data, offsets, np.concatenate([short_rows[:, 2], long_rows[:, 2]]))

    def _grow(self, length: int) -> None:
        """Make room for one more piece of `length` bytes."""
        from parlance.text.bpe.table_kernels import rehash

        if 2 * self._state[0] >= len(self.rows):
            rows = np.zeros((2 * len(self.rows), 4), dtype=np.int64)
            rehash(self.rows, rows)
            self.rows = rows
        if self._state[1] + length > len(self.store):
            larger = np.zeros(2 * len(self._store_bytes) + length, dtype=np.uint8)
            larger[: len(self._store_bytes)] = self._store_bytes
            self._store_bytes, self.store = larger, unaligned_words(larger)


def count_pieces(texts: Iterable[str], pattern: PatternName = "parlance", threads: int | None = None) -> PieceCounts:
    """Count the pieces into which `pattern` cuts `texts`; reads them once, a few megabytes ahead.

    `threads`: the processor's cores by default. Raises UserError for an unknown pattern and a text of 2 GiB or more.
    """
    from parlance.text.bpe.scan_kernels import scan

    arguments = scan_arguments(pattern_named(pattern))
    one = np.ones(1, dtype=np.int64)
    free = [(PieceTable(), np.empty(_ENDS, dtype=np.int32))]

    def count(chunk: Sequence[str]) -> None:
        try:
            table, ends = free.pop()
        except IndexError:
            table, ends = PieceTable(), np.empty(_ENDS, dtype=np.int32)
        batch = utf8(chunk)
        cursor = np.zeros(2, dtype=np.int64)
        start = 0
        while found := scan(batch.words, batch.bounds, cursor, ends, *arguments):
            table.add(batch.words, ends[:found], start, one)
            start = int(ends[found - 1])
        free.append((table, ends))

    for _ in in_order(count, chunks_of(texts), threads):
        pass
    tables = [table for table, _ in free]
    for other in tables[1:]:
        tables[0].add_counts(other.counts())
    return tables[0].counts()


def merge_counts(parts: Iterable[PieceCounts]) -> PieceCounts:
    """Add up tables that were counted apart. Raises UserError for counts below 0 and sums of 2^63 or more."""
    table, total = PieceTable(), 0
    for part in parts:
        if len(part.counts) and part.counts.min() < 0:
            raise UserError("a table of piece counts has a negative count")
        total += sum(part.counts.tolist()) if part.counts.max(initial=0) >= 1 << 32 else part.total
        if total >= 1 << 63:
            raise UserError("the counts of all pieces together reach 2^63, more than a 64-bit number holds")
        table.add_counts(part)
    return table.counts()
