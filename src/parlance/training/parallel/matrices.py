"""Muon where a matrix is divided among processes, or held by several: each is orthogonalised once, by one of them.

1. Every process sends its box of a matrix's direction to the process that works on that matrix.
2. That one puts the boxes together and orthogonalises.
3. It sends each process that holds a box of the matrix the box of the result.

Matrices go to the processes that hold some of them so that all have about equal work; replicas that would all do the
same share it, and get equal bits. The experts of a layer are as many matrices, those of one process one unit of work.

    updates = DividedMatrices(table, group)({"layers.0.mlp.weight": direction}, torch.bfloat16)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from parlance.training.optimizers import orthogonalise
from parlance.training.parallel.piece_table import PieceTable
from parlance.training.pieces import Piece


@dataclass(frozen=True)
class _Unit:
    """Matrices that one process works on: a weight, or the experts of it that some processes hold."""

    name: str
    box: Piece
    """All rows and columns; of the dimensions before them, what the holders have."""
    pieces: tuple[tuple[Piece, tuple[int, ...]], ...]
    """What is held of it, and by which ranks."""
    owner: int


class DividedMatrices:
    """Orthogonalises what a group of processes holds together, all of which hold boxes of the same weights."""

    def __init__(self, table: PieceTable, group: dist.ProcessGroup | None) -> None:
        """None: this process alone."""
        self._table, self._group = table, group
        self._ranks = [table.rank] if group is None else dist.get_process_group_ranks(group)
        self._plans: dict[tuple[str, ...], list[_Unit]] = {}

    def __call__(self, directions: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The orthogonal factors of matrices of which this process holds the boxes `directions`: its boxes of them.

        All processes of the group call it with the same names. Each result is scaled by the square root of rows over
        columns where that is above one. The products run in `dtype`.
        """
        names = tuple(sorted(directions))
        if names not in self._plans:
            self._plans[names] = self._plan(names)
        units, rank = self._plans[names], self._table.rank
        sends: dict[int, list[Tensor]] = {other: [] for other in self._ranks}
        receives: dict[int, list[tuple[_Unit, Piece]]] = {other: [] for other in self._ranks}
        for unit in units:
            for piece, holders in unit.pieces:
                if unit.owner in holders:
                    continue
                if holders[0] == rank:
                    sends[unit.owner].append(directions[unit.name])
                if unit.owner == rank:
                    receives[holders[0]].append((unit, piece))
        shapes = [[piece.lengths for _, piece in row] for row in receives.values()]
        arrived = _exchange([*sends.values()], shapes, _device(directions), self._group)
        wholes = {unit: _empty(unit, directions) for unit in units if unit.owner == rank}
        for unit, whole in wholes.items():
            own = self._table.own[unit.name]
            whole[own.within(unit.box)] = directions[unit.name]
        for row, tensors in zip(receives.values(), arrived, strict=True):
            for (unit, piece), tensor in zip(row, tensors, strict=True):
                wholes[unit][piece.within(unit.box)] = tensor
        return self._give_back(units, orthogonal_units(wholes, dtype), directions)

    def _give_back(
        self, units: Sequence[_Unit], done: Mapping[_Unit, Tensor], directions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        rank = self._table.rank
        sends: dict[int, list[Tensor]] = {other: [] for other in self._ranks}
        receives: dict[int, list[str]] = {other: [] for other in self._ranks}
        updates: dict[str, Tensor] = {}
        for unit in units:
            for piece, holders in unit.pieces:
                for holder in holders:
                    if holder == rank == unit.owner:
                        updates[unit.name] = done[unit][piece.within(unit.box)]
                    elif unit.owner == rank:
                        sends[holder].append(done[unit][piece.within(unit.box)])
                    elif holder == rank:
                        receives[unit.owner].append(unit.name)
        shapes = [[tuple(directions[name].shape) for name in row] for row in receives.values()]
        arrived = _exchange([*sends.values()], shapes, _device(directions), self._group)
        for row, tensors in zip(receives.values(), arrived, strict=True):
            updates |= dict(zip(row, tensors, strict=True))
        return updates

    def _plan(self, names: Sequence[str]) -> list[_Unit]:
        """Units of work and who does them; the same on all processes that hold any of the matrices."""
        units: list[tuple[str, Piece, list[tuple[Piece, tuple[int, ...]]]]] = []
        for name in names:
            boxes: dict[Piece, list[tuple[Piece, tuple[int, ...]]]] = {}
            for piece, holders in self._table.holders(name).items():
                if piece.size:
                    boxes.setdefault(_matrix_box(piece), []).append((piece, tuple(holders)))
            units += [(name, box, pieces) for box, pieces in boxes.items()]
        loads = dict.fromkeys(self._ranks, 0.0)
        plan = []
        for name, box, pieces in sorted(units, key=lambda unit: (-_cost(unit[1]), unit[0], unit[1].offsets)):
            candidates = {rank for _, holders in pieces for rank in holders}
            owner = min(candidates, key=lambda rank: (loads[rank], rank))
            loads[owner] += _cost(box)
            plan.append(_Unit(name, box, tuple(pieces), owner))
        own = [unit for unit in plan if any(self._table.rank in holders for _, holders in unit.pieces)]
        return sorted(own, key=lambda unit: (unit.name, unit.box.offsets))


def orthogonal_units(wholes: Mapping[_Unit, Tensor], dtype: torch.dtype) -> dict[_Unit, Tensor]:
    """Orthogonal factors, matrices of one shape in one batch."""
    shapes: dict[torch.Size, list[_Unit]] = {}
    for unit, whole in wholes.items():
        shapes.setdefault(whole.shape[-2:], []).append(unit)
    done = {}
    for (rows, columns), units in shapes.items():
        stacked = torch.cat([wholes[unit].reshape(-1, rows, columns) for unit in units])
        factors = orthogonalise(stacked, dtype) * max(1.0, rows / columns) ** 0.5
        counts = [prod(wholes[unit].shape[:-2]) for unit in units]
        for unit, part in zip(units, factors.split(counts), strict=True):
            done[unit] = part.view(wholes[unit].shape)
    return done


def _matrix_box(piece: Piece) -> Piece:
    """All rows and columns of the matrices that a box has some of."""
    offsets = (*piece.offsets[:-2], 0, 0)
    return Piece(piece.shape, offsets, (*piece.lengths[:-2], *piece.shape[-2:]))


def _cost(box: Piece) -> float:
    return float(box.size) * min(box.lengths[-2:])


def _empty(unit: _Unit, directions: Mapping[str, Tensor]) -> Tensor:
    return directions[unit.name].new_empty(unit.box.lengths)


def _device(tensors: Mapping[str, Tensor]) -> torch.device:
    return next((tensor.device for tensor in tensors.values()), torch.device("cpu"))


def _exchange(
    sends: Sequence[Sequence[Tensor]],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    device: torch.device,
    group: dist.ProcessGroup | None,
) -> list[list[Tensor]]:
    """Send each rank of the group its tensors (fp32), and return what arrives from each: tensors of `shapes`."""
    if group is None:
        return [[] for _ in shapes]
    flat = [tensor.reshape(-1).float() for row in sends for tensor in row]
    outgoing = torch.cat(flat) if flat else torch.empty(0, device=device)
    counts = [[prod(shape) for shape in row] for row in shapes]
    incoming = torch.empty(sum(map(sum, counts)), device=device)
    dist.all_to_all_single(
        incoming,
        outgoing,
        [sum(row) for row in counts],
        [sum(tensor.numel() for tensor in row) for row in sends],
        group=group,
    )
    arrived, start = [], 0
    for row, sizes in zip(shapes, counts, strict=True):
        tensors = []
        for shape, size in zip(row, sizes, strict=True):
            tensors.append(incoming[start : start + size].view(shape))
            start += size
        arrived.append(tensors)
    return arrived
