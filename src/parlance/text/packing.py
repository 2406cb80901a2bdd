"""Whole documents as rows of T targets: best-fit decreasing bin packing, so that few documents are cut.

A document of L ids, its end-of-text included, is cut into pieces: one for every T of its ids, and one of the rest. A
piece of T ids is a row of its own. The rests, longest first, each go to the row with the least room that still holds
them (best-fit decreasing: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", arXiv:2404.10830). No
document of T ids or fewer is cut, no id is left out, every id is a target exactly once; what stays empty is masked.
Of collections measured, mostly below 1 % of the positions are empty, and 18 % in the worst case, where most documents
are a little longer than T/2 (half is the limit); a larger T mends it. Filling rows by cropping documents instead, as
nanochat does, lost more ids than are empty here in every case, and for good (benchmarks/token_stream.py).

Every id is predicted from the id that truly stands before it: a piece comes with the id before its first, which for the
beginning of a document is the end-of-text of another one, as when a model is asked to begin a text.

The plan depends on the lengths of the documents and on T alone. It takes 12 bytes a piece and 8 a row, three to six
times that while it is made, and O(n log n) time for n documents. It masks no attention: `documents` says which
positions of a row belong together, `positions` where each stands in its own piece.

    plan = PackingPlan.best_fit(starts=np.array([0, 5, 7]), total=20, context_length=8)
    plan.rows, plan.utilisation                    # 3, 0.833...
    batch = plan.batch(tokens, rows=np.array([0, 2]))
"""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parlance.text.token_shards import TokenShards

Packing = Literal["stream", "best-fit"]
"""How documents become rows: cut wherever a window of the stream ends, or packed as whole as they go."""

IGNORE = -100
"""Target where there is nothing to predict; what PyTorch's cross-entropy passes over by default."""


@dataclass(frozen=True)
class PackedBatch:
    """B rows of T positions, each array (B, T). What is empty is at the end of a row."""

    inputs: NDArray[np.int64]
    """The id before each target; 0 where empty."""
    targets: NDArray[np.int64]
    """The ids to predict; `IGNORE` where empty."""
    documents: NDArray[np.int32]
    """Number of the piece within its row, from 0 in order; the empty rest counts as one more piece. A position may
    attend to earlier ones (and itself) with the same number."""
    positions: NDArray[np.int32]
    """Place within the piece, from 0."""


@dataclass(frozen=True)
class PackingPlan:
    """Which piece of which document stands in which row. Made by `best_fit`."""

    context_length: int
    """Targets a row, T."""
    starts: NDArray[np.int64]
    """First id of each piece, shape (pieces,), row after row."""
    lengths: NDArray[np.int32]
    """Ids of each piece, 1..T, shape (pieces,)."""
    bounds: NDArray[np.int64]
    """Row r has the pieces bounds[r]..bounds[r + 1] - 1; shape (rows + 1,)."""

    @classmethod
    def best_fit(cls, starts: NDArray[np.int64], total: int, context_length: int) -> "PackingPlan":
        """Pack the documents that begin at `starts` (documents,), increasing from 0, in a split of `total` ids."""
        T = context_length
        sizes = np.diff(starts, append=total)
        full, rest = sizes // T, sizes % T
        whole_rows = int(full.sum())
        # The k-th piece of a document begins k T behind its start.
        number = np.arange(whole_rows) - np.repeat(np.cumsum(full) - full, full)
        whole = np.repeat(starts, full) + number * T
        left = rest > 0
        rest_starts, rest_sizes = (starts + full * T)[left], rest[left]
        # Longest first, equal ones in the order of the corpus. Sorting 16-bit keys is linear.
        order = np.argsort((T - rest_sizes).astype(np.uint16 if T < 1 << 16 else np.int64), kind="stable")
        row_of, rows = best_fit_decreasing(np.bincount(rest_sizes, minlength=T), T)
        by_row = order[np.argsort(row_of, kind="stable")]
        return cls(
            context_length=T,
            starts=np.concatenate((whole, rest_starts[by_row])),
            lengths=np.concatenate((np.full(whole_rows, T), rest_sizes[by_row])).astype(np.int32),
            bounds=np.concatenate(
                (np.arange(whole_rows + 1), whole_rows + np.cumsum(np.bincount(row_of, minlength=rows)))
            ),
        )

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.bounds) - 1

    @property
    def utilisation(self) -> float:
        """Share of the positions that have a target, above 0, at most 1; the rest is masked."""
        return int(self.lengths.sum(dtype=np.int64)) / (self.rows * self.context_length)

    def batch(self, tokens: TokenShards, rows: NDArray[np.int64]) -> PackedBatch:
        """The rows with these numbers (B,), out of the ids of the split that was planned."""
        shape = (len(rows), self.context_length)
        inputs, targets = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        documents, positions = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int32)
        count = np.arange(self.context_length, dtype=np.int32)
        spans = zip(self.bounds[rows].tolist(), self.bounds[rows + 1].tolist(), strict=True)
        for row, (first, last) in enumerate(spans):
            at = 0
            pieces = zip(self.starts[first:last].tolist(), self.lengths[first:last].tolist(), strict=True)
            for number, (start, length) in enumerate(pieces):
                end = at + length
                ids = tokens.ring(start - 1, length + 1)
                inputs[row, at:end], targets[row, at:end] = ids[:-1], ids[1:]
                documents[row, at:end], positions[row, at:end] = number, count[:length]
                at = end
            if at < self.context_length:
                inputs[row, at:], targets[row, at:] = 0, IGNORE
                documents[row, at:], positions[row, at:] = last - first, count[: self.context_length - at]
        return PackedBatch(inputs, targets, documents, positions)


def best_fit_decreasing(counts: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Best-fit decreasing for whole-numbered sizes: (bin of each item, largest items first; number of bins).

    counts[s] is the number of items of size s, 0 < s <= capacity; counts[0] is passed over. Items of one size are
    placed together: whole groups of bins with equal room take as many each as they hold. A group is moved at most
    log2(capacity) times, since its room at least halves, so at most O(S log(capacity)) groups are moved for S
    different sizes.
    """
    groups: dict[int, deque[NDArray[np.int64]]] = {}  # by room, the bins that have it
    rooms = 0  # bit r is set where there is a group with room r
    bins = 0
    placed = [np.empty(0, dtype=np.int64)]
    for size in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[size]) if size else 0
        while left:
            enough = rooms >> size
            if enough:
                room = size + (enough & -enough).bit_length() - 1  # the least room that holds an item
                group = groups[room].popleft()
                if not groups[room]:
                    rooms ^= 1 << room
            else:
                room = capacity
                group = np.arange(bins, bins - (-left // (capacity // size)))
                bins += len(group)
            each = room // size
            taken = min(left, each * len(group))
            filled, extra = divmod(taken, each)
            placed.append(np.repeat(group, each)[:taken])
            left -= taken
            parts = (
                (room - each * size, group[:filled]),
                (room - extra * size, group[filled : filled + (extra > 0)]),
                (room, group[filled + (extra > 0) :]),
            )
            for rest, part in parts:
                if rest and len(part):
                    groups.setdefault(rest, deque()).append(part)
                    rooms |= 1 << rest
    return np.concatenate(placed), bins
