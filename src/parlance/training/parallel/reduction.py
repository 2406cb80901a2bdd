"""Gradients added up over processes: in flat fp32 buckets, always a sum, never a mean.

    reduce_gradients([(group, parameters)])              # parameter.grad is then the sum over the group

One long message costs far less than many short ones. The sums have equal bits on all processes of a group.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parlance.training.parallel.collectives import gather_rows

BUCKET = 2**22
"""Most numbers of a message, apart from tensors that are longer: 16 MB."""


def reduce_gradients(work: Sequence[tuple[dist.ProcessGroup, Sequence[nn.Parameter]]]) -> None:
    """Replace gradients by their sums over the group that goes with them. All have one."""
    pending = []
    for group, parameters in work:
        dense = [gradient for gradient in map(_gradient, parameters) if not gradient.is_sparse]
        for bucket in buckets(dense):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            pending.append((dist.all_reduce(flat, group=group, async_op=True), flat, bucket))
    for handle, flat, bucket in pending:
        assert handle is not None
        handle.wait()
        for gradient, total in zip(bucket, torch.split(flat, [part.numel() for part in bucket]), strict=True):
            gradient.copy_(total.view_as(gradient))
    for group, parameters in work:
        for parameter in parameters:
            if _gradient(parameter).is_sparse:
                parameter.grad = _sum_of_rows(_gradient(parameter), group)


def _sum_of_rows(gradient: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the group of gradients that are sparse over rows: every process sends the rows that it has."""
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    return torch.sparse_coo_tensor(
        gather_rows(rows, group)[None], gather_rows(values, group), gradient.shape, check_invariants=False
    ).coalesce()


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype, of at most `BUCKET` numbers or one tensor."""
    run, length = list[Tensor](), 0
    for tensor in tensors:
        if run and (length + tensor.numel() > BUCKET or tensor.dtype != run[0].dtype):
            yield run
            run, length = [], 0
        run.append(tensor)
        length += tensor.numel()
    if run:
        yield run


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
