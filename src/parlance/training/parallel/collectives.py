"""Communications between the processes of a group that gradients pass through, and how sizes are divided.

Every function here has to be called by all processes of the group, in one order; so have their backward passes, which
autograd runs in the reverse of that order. A group of one costs a copy at most. On CPUs what is added up is fp32
(gloo's sums in bfloat16 round at every rank).

    x = enter(x, group)              # identity; backward: sum over the group
    x = total(x, group)              # sum over the group; backward: identity

These two are Megatron's conjugate pair (Shoeybi et al. 2019, section 3), for computations that all ranks of a group
repeat with equal inputs, but for the part between the two. R: processes of the group.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup


def span(size: int, index: int, ways: int) -> tuple[int, int]:
    """[start, stop) of part `index` of `size` things divided `ways` ways; equal parts where `ways` divides `size`."""
    return size * index // ways, size * (index + 1) // ways


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """x itself; its gradient is the sum of the ranks' gradients. Where equal tensors enter what is divided."""
    return cast(Tensor, _Enter.apply(x, group))  # type: ignore[no-untyped-call]


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' x; each gets the whole gradient. Where partial results leave what is divided."""
    return cast(Tensor, _Total.apply(x, group))  # type: ignore[no-untyped-call]


def gather(x: Tensor, group: ProcessGroup) -> Tensor:
    """(R, ...) of every rank's x (...), all of one shape; a rank's gradient is the sum over the ranks of its part's."""
    return cast(Tensor, _Gather.apply(x, group))  # type: ignore[no-untyped-call]


def gather_rows(x: Tensor, group: ProcessGroup) -> Tensor:
    """The ranks' rows x (N, ...) one after another; N may differ. Gradients as those of `gather`."""
    counts = x.new_empty(group.size(), dtype=torch.int64)
    dist.all_gather_single(counts, torch.tensor([len(x)], device=x.device), group=group)
    lengths = counts.tolist()
    longest = max(lengths)
    padded = torch.cat((x, x.new_zeros(longest - len(x), *x.shape[1:])))
    rows = gather(padded, group)
    return torch.cat([rows[rank, :length] for rank, length in enumerate(lengths)])


def exchange(x: Tensor, send: Sequence[int], receive: Sequence[int], group: ProcessGroup) -> Tensor:
    """Rows x (N, ...) go to the ranks, send[r] of them to rank r, in order; receive[r] rows come from rank r.

    Returns the rows received (sum of `receive`, ...) in the order of the ranks. Gradients travel back the way
    their rows came.
    """
    return cast(Tensor, _Exchange.apply(x, list(send), list(receive), group))  # type: ignore[no-untyped-call]


def add_up(x: Tensor, group: ProcessGroup) -> Tensor:
    """A new tensor, the sum of the ranks' x, with equal bits on every rank. No gradient."""
    summed = x.detach().to(_addable(x), copy=True).contiguous()
    dist.all_reduce(summed, group=group)
    return summed.to(x.dtype)


def _addable(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return add_up(grad, ctx.group), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:  # noqa: ARG004
        return add_up(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.numel())
        dist.all_gather_single(out, x.contiguous().flatten(), group=group)
        return out.view(group.size(), *x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = grad.to(_addable(grad)).contiguous().flatten()
        own = parts.new_empty(parts.numel() // ctx.group.size())
        dist.reduce_scatter_single(own, parts, group=ctx.group)
        return own.view(grad.shape[1:]).to(grad.dtype), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _swap(x, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _swap(grad, ctx.receive, ctx.send, ctx.group), None, None, None


def _swap(x: Tensor, send: list[int], receive: list[int], group: ProcessGroup) -> Tensor:
    out = x.new_empty(sum(receive), *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
    return out
