"""LongNet's dilated attention: sees far at a cost that is linear in the length; and its step for decoding.

    q = torch.randn(1, 12, 65536, 64); k = v = torch.randn(1, 4, 65536, 64)
    dilated_attention(q, k, v, segments=((2048, 1), (4096, 2), (8192, 4)), scale=64**-0.5)        # (1, 12, 65536, 64)

Each branch (w, r) cuts the sequence into segments of w positions. In each, head j keeps the positions j mod r,
j mod r + r, ... counted from the segment's begin; its kept queries see its kept keys, causally. The branches are mixed
by their softmax denominators, that is: they make one softmax over the keys of all branches, in which a key that n
branches show counts n times. A branch adds nothing to a query that it does not keep; what no branch keeps gets 0.

Shapes as in `attention`: B batch, T queries, S keys, H query heads, K key/value heads, E head width. Keys of grouped
heads are repeated only as far as a dilated branch keeps them. Differentiable once in q, k and v.

Source: Ding et al. 2023 (LongNet). Its published code keeps the mixing weights out of the gradient and gives blocks of
neighbouring heads the same offset; here the gradient is that of the formula, and the offsets are the paper's.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from parlance.core.errors import UserError
from parlance.models.attention import (
    BLOCK,
    Bias,
    Block,
    block_scores,
    dense_rows,
    fused_backward,
    fused_forward,
    hide,
    precise,
    spans,
)

Segments = tuple[tuple[int, int], ...]
"""(segment length w, dilation r) of each branch."""

PRODUCTS = 512
"""Up to so many kept positions a segment, matrix products in bfloat16 beat the fused kernel on CPUs."""


def check_segments(segments: Segments) -> None:
    """Raise `UserError` unless there is a branch and each has 1 <= r <= w."""
    if not segments:
        raise UserError("dilated attention needs at least one (segment length, dilation)")
    for w, r in segments:
        if not 1 <= r <= w:
            raise UserError(f"a branch of dilated attention needs 1 <= dilation <= segment length, not ({w}, {r})")


def dilated_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    """Attention (B, H, T, E) of q (B, H, T, E) to k and v (B, K, T, E), as the module says."""
    check_segments(segments)
    return cast(Tensor, _DilatedAttention.apply(q, k, v, segments, scale))  # type: ignore[no-untyped-call]


def dilated_step(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, segments: Segments, scale: float) -> Tensor:
    """`dilated_attention` of queries q (B, H, T, E) at `positions` (B, T) int64 to a cache k and v (B, K, S, E).

    Key s stands at position s; keys behind a query's position (free slots) do not count, but must be finite. It is
    what `dilated_attention` gives at these positions of the whole sequence, up to rounding. For few queries: builds
    (B, H, T, S) scores, where S reaches from the begin of the longest segment to the last query.
    """
    check_segments(segments)
    B, H, T, E = q.shape
    earliest, stop = int(positions.min()), int(positions.max()) + 1
    first = min(earliest // w * w for w, _ in segments)
    times = _times_shown(positions, torch.arange(first, stop, device=q.device), H, segments)  # (B, H, T, S)
    rows = q.reshape(B, k.shape[1], -1, E)  # (B, K, H/K T, E)
    scores = scale * torch.matmul(rows, k[:, :, first:stop].mT).to(precise(q.dtype)).view(B, H, T, -1)
    weights = (scores + times.to(scores.dtype).log()).softmax(-1).masked_fill(~times.any(-1, keepdim=True), 0.0)
    return torch.matmul(weights.to(v.dtype).view(*rows.shape[:3], -1), v[:, :, first:stop]).view(B, H, T, E)


def _times_shown(positions: Tensor, keys: Tensor, H: int, segments: Segments) -> Tensor:
    """How many branches show key position s to query position t: (B, H, T, S) float32 of (B, T) and (S,)."""
    queries = positions[:, None, :, None]  # (B, 1, T, 1)
    times = torch.zeros(len(positions), H, positions.shape[1], len(keys), device=keys.device)
    for w, r in segments:
        offset = (torch.arange(H, device=keys.device) % r)[:, None, None]  # (H, 1, 1)
        kept_queries, kept_keys = queries % w % r == offset, keys % w % r == offset
        times += kept_queries & kept_keys & (queries // w == keys // w) & (keys <= queries)
    return times


class _Piece(NamedTuple):
    """Consecutive segments of one branch, and the heads that have one offset in them."""

    offset: int
    dilation: int
    begin: int
    segments: int
    length: int

    def positions(self, x: Tensor) -> Tensor:
        """The view (B, H, segments, M, E) of the kept positions of x (B, H, T, E)."""
        part = x[:, :, self.begin : self.begin + self.segments * self.length]
        part = part.view(*x.shape[:2], self.segments, self.length, x.shape[3])
        return part[:, :, :, self.offset :: self.dilation]

    def kept(self, x: Tensor) -> Tensor:
        """Of these, the view of the heads with this offset."""
        return self.positions(x)[:, self.offset :: self.dilation]

    def gathered_heads(self, H: int, K: int, device: torch.device) -> Tensor | None:
        """The key heads that the kept query heads read; None where `kept` of the keys has them, without a copy."""
        if K == H or self.dilation == 1:
            return None
        return torch.arange(self.offset, H, self.dilation, device=device) // (H // K)

    def keys(self, x: Tensor, H: int) -> Tensor:
        """What the kept queries of H heads need of keys or values x (B, K, T, E)."""
        heads = self.gathered_heads(H, x.shape[1], x.device)
        return self.kept(x) if heads is None else self.positions(x)[:, heads]

    def add_to_keys(self, x: Tensor, part: Tensor, H: int) -> None:
        """x += part, where part has the shape of `keys(x, H)`."""
        heads = self.gathered_heads(H, x.shape[1], x.device)
        if heads is None:
            self.kept(x).add_(part)
        else:
            self.positions(x).index_add_(1, heads, part.to(x.dtype))


def _pieces(H: int, T: int, segments: Segments) -> Iterator[_Piece]:
    """Of all branches: the whole segments at once, then the last, shorter one."""
    for w, r in segments:
        whole = T // w
        for begin, count, length in ((0, whole, w), (whole * w, 1, T - whole * w)):
            if count and length:
                for offset in range(min(r, H, length)):
                    yield _Piece(offset, r, begin, count, length)


def _fold(x: Tensor) -> Tensor:
    """(B, H, segments, M, E) -> (B segments, H, M, E)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, segments: int) -> Tensor:
    """(B segments, H, M, E) -> (B, H, segments, M, E)."""
    return x.view(-1, segments, *x.shape[1:]).transpose(1, 2)


class _DilatedAttention(torch.autograd.Function):
    """The mixture of all branches.

    Since it is one softmax over all branches' keys, a branch's part of the gradient is that of plain attention with the
    mixture's output and log-sum-exp in place of its own.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
        q, k, v = (dense_rows(x) for x in (q, k, v))
        H, T = q.shape[1:3]
        out = torch.zeros_like(q, dtype=precise(q.dtype))
        lse = torch.full_like(out[..., :1], -math.inf)  # (B, H, T, 1)
        for piece in _pieces(H, T, segments):
            q_part, k_part, v_part = _fold(piece.kept(q)), _fold(piece.keys(k, H)), _fold(piece.keys(v, H))
            branch, branch_lse = (_unfold(x, piece.segments) for x in _attend(q_part, k_part, v_part, scale))
            out_kept, lse_kept = piece.kept(out), piece.kept(lse)
            total = torch.logaddexp(lse_kept, branch_lse)
            out_kept.mul_((lse_kept - total).exp_()).add_(branch * (branch_lse - total).exp_())
            lse_kept.copy_(total)
        mixed = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, mixed, lse)
        ctx.segments, ctx.scale = segments, scale
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mixed, lse = ctx.saved_tensors
        grad = dense_rows(grad)
        H, T = q.shape[1:3]
        dq, dk, dv = (torch.zeros_like(x, dtype=precise(x.dtype)) for x in (q, k, v))
        for piece in _pieces(H, T, ctx.segments):
            grad_part, mixed_part, lse_part, q_part = (_fold(piece.kept(x)) for x in (grad, mixed, lse, q))
            k_part, v_part = _fold(piece.keys(k, H)), _fold(piece.keys(v, H))
            parts = _attend_backward(grad_part, mixed_part, lse_part, q_part, k_part, v_part, ctx.scale)
            dq_part, dk_part, dv_part = (_unfold(x, piece.segments) for x in parts)
            piece.kept(dq).add_(dq_part)
            piece.add_to_keys(dk, dk_part, H)
            piece.add_to_keys(dv, dv_part, H)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _fused(q: Tensor) -> bool:
    """Whether causal attention of q (N, H, M, E) goes through the CPU's fused kernel instead of matrix products."""
    return q.device.type == "cpu" and (q.dtype != torch.bfloat16 or q.shape[2] > PRODUCTS)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of q, k, v (N, H or K, M, E) and the log-sum-exp (N, H, M, 1) of its scores."""
    if _fused(q):
        out, lse = fused_forward(q, k, v, is_causal=True, scale=scale)
        return out, lse.unsqueeze(-1)
    N, H, M, E = q.shape
    out, lse = q.new_empty(q.shape), q.new_empty(N, H, M, 1, dtype=precise(q.dtype))
    flat_k, flat_v = k.flatten(0, 1), v.flatten(0, 1)
    for start, stop in spans(M, BLOCK):
        scores = block_scores(q, flat_k, scale, (start, stop, 0), _causal_bias(q))
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True, dtype=lse.dtype)
        product = torch.bmm(weights.view(len(flat_k), -1, stop), flat_v[:, :stop])
        out[:, :, start:stop] = product.view(N, H, -1, E) / total
        lse[:, :, start:stop] = top + total.log()
    return out, lse


def _attend_backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of attention with the weights exp(scores - lse), of which `_attend`'s keys get a part."""
    if _fused(q):
        gradients = fused_backward(grad, q, k, v, out, lse.squeeze(-1), 0.0, True, scale=scale)
        return cast(tuple[Tensor, Tensor, Tensor], gradients)
    N, H, M, E = q.shape
    flat_k, flat_v = k.flatten(0, 1), v.flatten(0, 1)
    dq = q.new_empty(q.shape)
    dk, dv = (x.new_zeros(x.shape, dtype=lse.dtype) for x in (flat_k, flat_v))
    delta = (grad * out).sum(-1, keepdim=True, dtype=lse.dtype)
    rows = len(flat_k), -1
    for start, stop in spans(M, BLOCK):
        scores = block_scores(q, flat_k, scale, (start, stop, 0), _causal_bias(q))
        weights = (scores - lse[:, :, start:stop]).exp_().to(q.dtype).view(*rows, stop)
        grad_block, q_block = grad[:, :, start:stop].reshape(*rows, E), q[:, :, start:stop].reshape(*rows, E)
        dv[:, :stop] += torch.bmm(weights.mT, grad_block)
        dp = torch.bmm(grad_block, flat_v[:, :stop].mT)
        ds = dp.sub_(delta[:, :, start:stop].reshape(*rows, 1)).mul_(weights)
        dq[:, :, start:stop] = (torch.bmm(ds, flat_k[:, :stop]) * scale).view(N, H, -1, E)
        dk[:, :stop] += torch.bmm(ds.mT, q_block) * scale
    return dq, dk.view(k.shape), dv.view(v.shape)


def _causal_bias(q: Tensor) -> Bias:
    """Hides the keys behind each query of a block."""

    def bias(block: Block) -> Tensor:
        start, stop, first = block
        keys, queries = torch.arange(first, stop, device=q.device), torch.arange(start, stop, device=q.device)
        return hide(keys <= queries[:, None], q.dtype)

    return bias
