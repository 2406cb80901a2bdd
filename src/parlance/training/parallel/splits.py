"""What each process of a group holds of a model whose parameters are divided, and the way between parts and wholes.

A parameter is divided evenly along one dimension (`collectives.span`; where the size is no multiple, parts differ by
one). What is not divided, every process has: its gradient is whole on each, or a part of a sum over the group.

    split = shard_tensors(model, group)                              # or share_experts(model, group)
    weights = gather_tensors(dict(model.named_parameters()), split, group)
    mine = local_part(weights["lm_head.weight"], split, "lm_head.weight", group.rank(), group.size())
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parlance.training.parallel.collectives import gather, span


@dataclass(frozen=True)
class SplitParameters:
    """How a group of processes divides a model's parameters."""

    dimensions: dict[str, int]
    """The dimension along which a parameter is divided; each part's gradient is whole."""
    sizes: dict[str, int]
    """The size of the whole parameter along it."""
    partial: tuple[str, ...]
    """Undivided parameters whose gradient is the sum of the processes' gradients; in one order on all of them."""


def local_part(whole: Tensor, split: SplitParameters, name: str, index: int, ways: int) -> Tensor:
    """The view of a whole parameter (or of a tensor like it) that process `index` of `ways` holds."""
    if name not in split.dimensions:
        return whole
    start, stop = span(split.sizes[name], index, ways)
    return whole.narrow(split.dimensions[name], start, stop - start)


def whole_tensor(part: Tensor, split: SplitParameters, name: str, group: ProcessGroup) -> Tensor:
    """The whole, on every process, of what each holds of parameter `name` (or of a tensor like it, as a moment)."""
    if name not in split.dimensions:
        return part.detach()
    dimension, size, ways = split.dimensions[name], split.sizes[name], group.size()
    spans = [span(size, index, ways) for index in range(ways)]
    longest = max(stop - start for start, stop in spans)
    with torch.no_grad():
        rows = part.detach().movedim(dimension, 0)
        padded = torch.cat((rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])))
        gathered = gather(padded, group)
        whole = torch.cat([gathered[index, : stop - start] for index, (start, stop) in enumerate(spans)])
        return whole.movedim(0, dimension).contiguous()


def gather_tensors(parts: Mapping[str, Tensor], split: SplitParameters, group: ProcessGroup) -> dict[str, Tensor]:
    """Whole tensors, on every process, of the parts by parameter name; all processes give the same names in order."""
    return {name: whole_tensor(part, split, name, group) for name, part in parts.items()}


def keep_part(parameter: nn.Parameter, dimension: int, group: ProcessGroup) -> int:
    """Leave of a whole parameter, in place, this process's part; returns the size that is divided."""
    size = parameter.shape[dimension]
    start, stop = span(size, group.rank(), group.size())
    with torch.no_grad():
        parameter.data = parameter.narrow(dimension, start, stop - start).clone()
    return size
