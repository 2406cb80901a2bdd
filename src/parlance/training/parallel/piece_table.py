"""Which part of every weight each process holds: what checkpoints, norms, checks and Muon need to know, and no more.

However many axes divide a tensor, a process holds one box of it. Every process tells the others its boxes once, so
nobody needs to know which axes made them.

    table = PieceTable.gather(world, {"layers.0.weight": Piece.whole((64, 32)).split(0, 32, 16)})
    table.holders("layers.0.weight")                     # {piece: [0, 2], other: [1, 3]}
"""

from collections.abc import Mapping, Sequence
from typing import Self

from parlance.training.parallel.processes import World
from parlance.training.pieces import Piece


class PieceTable:
    """The boxes of all processes."""

    def __init__(self, rank: int, by_rank: Sequence[Mapping[str, Piece]]) -> None:
        self.rank, self.by_rank = rank, by_rank
        self.own = by_rank[rank]
        """Those of this process, in the order of its parameters."""
        self.names = sorted({name for pieces in by_rank for name in pieces})
        """Of all weights, wherever they are."""
        self._holders: dict[str, dict[Piece, list[int]]] = {name: {} for name in self.names}
        for holder, pieces in enumerate(by_rank):
            for name, piece in pieces.items():
                self._holders[name].setdefault(piece, []).append(holder)

    @classmethod
    def gather(cls, world: World, own: Mapping[str, Piece]) -> Self:
        """The table of what every process holds; all must call it."""
        said = {name: [piece.shape, piece.offsets, piece.lengths] for name, piece in own.items()}
        return cls(
            world.rank,
            [
                {name: Piece(*(tuple(numbers) for numbers in parts)) for name, parts in pieces.items()}
                for pieces in world.exchange(said)
            ],
        )

    def holders(self, name: str) -> dict[Piece, list[int]]:
        """The ranks that hold each box of a weight, boxes in the order of the lowest of these ranks."""
        return self._holders[name]

    def copies(self, name: str) -> int:
        """How many processes hold what this one holds of a weight."""
        return len(self._holders[name][self.own[name]])

    def writers(self) -> dict[str, dict[Piece, int]]:
        """Of the ranks that hold a box, one that writes it: so that all write about as much. The same everywhere."""
        loads = [0] * len(self.by_rank)
        chosen: dict[str, dict[Piece, int]] = {name: {} for name in self.names}
        boxes = [(piece, name) for name in self.names for piece in self._holders[name]]
        for piece, name in sorted(boxes, key=lambda box: (-box[0].size, box[1], box[0].offsets)):
            writer = min(self._holders[name][piece], key=lambda rank: (loads[rank], rank))
            loads[writer] += piece.size
            chosen[name][piece] = writer
        return chosen
