"""What each process of a group holds of a model whose parameters are divided.

A parameter is divided evenly along one dimension (`collectives.span`; where the size is no multiple, parts differ by
one). What is not divided, every process has: its gradient is whole on each, or a part of a sum over the group.
`piece_table.py` puts parts together again, for states and checkpoints.

    split = shard_tensors(model, group)                              # or share_experts(model, group)
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed import ProcessGroup

from parlance.training.parallel.collectives import span


@dataclass(frozen=True)
class SplitParameters:
    """How a group of processes divides a model's parameters."""

    dimensions: dict[str, int]
    """The dimension along which a parameter is divided; each part's gradient is whole."""
    sizes: dict[str, int]
    """The size of the whole parameter along it."""
    partial: tuple[str, ...]
    """Undivided parameters whose gradient is the sum of the processes' gradients; in one order on all of them."""


def keep_part(parameter: nn.Parameter, dimension: int, group: ProcessGroup) -> int:
    """Leave of a whole parameter, in place, this process's part; returns the size that is divided."""
    size = parameter.shape[dimension]
    start, stop = span(size, group.rank(), group.size())
    with torch.no_grad():
        parameter.data = parameter.narrow(dimension, start, stop - start).clone()
    return size
