"""Whether processes that hold the same weights still do: nothing is ever silently out of step.

    check_replicas(world, table, {"layers.0.weight": tensor})            # raises where two copies differ in one bit

Every process hashes what it holds and tells the others eight bytes a weight.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from parlance.core.errors import UserError
from parlance.training.parallel.piece_table import PieceTable

SHOWN = 3
"""Most weights that an error names."""


def check_replicas(table: PieceTable, weights: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Raises UserError, on all processes, where processes that hold the same box of a weight have other bits there.

    `weights`: what this process holds, by name. `group`: of all processes; None: the default one.
    """
    own = [_digest(weights[name]) if name in table.own else 0 for name in table.names]
    mine = torch.tensor(own, dtype=torch.int64)
    heard = [torch.empty_like(mine) for _ in table.by_rank]
    dist.all_gather(heard, mine, group=group)
    digests = torch.stack(heard).tolist()
    different = []
    for number, name in enumerate(table.names):
        for holders in table.holders(name).values():
            counts = Counter(digests[rank][number] for rank in holders)
            if len(counts) > 1:
                usual, votes = counts.most_common(1)[0]
                tied = votes * 2 <= len(holders)
                odd = [rank for rank in holders if tied or digests[rank][number] != usual]
                different.append((name, odd, [rank for rank in holders if rank not in odd]))
    if different:
        raise UserError(_sentence(different))


def _sentence(different: list[tuple[str, list[int], list[int]]]) -> str:
    name, odd, others = different[0]
    who = f"process {odd[0]}" if len(odd) == 1 else f"processes {', '.join(map(str, odd))}"
    if others:
        told = f"{name} of {who} differs from that of {'process' if len(others) == 1 else 'processes'} "
        told += ", ".join(map(str, others))
    else:
        told = f"{name} differs between {who}"
    more = [other for other, _, _ in different[1:]]
    if more:
        told += f" (so do {', '.join(more[:SHOWN])}{f' and {len(more) - SHOWN} more' if len(more) > SHOWN else ''})"
    return (
        f"the copies of the model are no longer equal: {told}; training stops, and the resume states written before "
        "are whole"
    )


def _digest(weight: Tensor) -> int:
    content = weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return int.from_bytes(hashlib.sha256(content.data).digest()[:8], "little", signed=True)
