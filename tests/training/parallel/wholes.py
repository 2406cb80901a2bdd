"""Between whole parameters and the parts that a group of processes holds, apart from the code that is tested."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parlance.training.parallel.collectives import gather, span
from parlance.training.parallel.splits import SplitParameters


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
