"""A box of a tensor: what one process holds of it, or one file.

rows = Piece.whole((64, 32)).split(0, 32, 16)         # rows 32..47
rows.of(tensor)
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Self

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A box of a tensor."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Where the box begins, in each dimension."""
    lengths: tuple[int, ...]
    """Its size."""

    @classmethod
    def whole(cls, shape: Iterable[int]) -> Self:
        """All of a tensor."""
        sizes = tuple(shape)
        return cls(sizes, (0,) * len(sizes), sizes)

    def split(self, dim: int, start: int, length: int) -> "Piece":
        """The part start..start+length of this box in one dimension, counted from its own beginning."""
        offsets, lengths = list(self.offsets), list(self.lengths)
        offsets[dim] += start
        lengths[dim] = length
        return Piece(self.shape, tuple(offsets), tuple(lengths))

    @property
    def size(self) -> int:
        """Numbers in the box."""
        return prod(self.lengths)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the box lies in the whole tensor."""
        return tuple(slice(start, start + length) for start, length in zip(self.offsets, self.lengths, strict=True))

    def of(self, whole: Tensor) -> Tensor:
        """The box cut out of the whole tensor."""
        return whole[self.slices]

    def overlap(self, other: "Piece") -> "Piece | None":
        """What two boxes of one tensor have in common; None where that is nothing."""
        starts = [max(a, b) for a, b in zip(self.offsets, other.offsets, strict=True)]
        ends = [
            min(a + n, b + m)
            for a, n, b, m in zip(self.offsets, self.lengths, other.offsets, other.lengths, strict=True)
        ]
        lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        return None if any(length <= 0 for length in lengths) else Piece(self.shape, tuple(starts), tuple(lengths))

    def within(self, other: "Piece") -> tuple[slice, ...]:
        """Where this box, which lies inside `other`, is in it."""
        return tuple(
            slice(start - first, start - first + length)
            for start, first, length in zip(self.offsets, other.offsets, self.lengths, strict=True)
        )
