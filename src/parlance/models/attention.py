"""Causal attention over all, the last `window`, or one document's positions, or with ALiBi; no T x T matrix for long T.

    q = torch.randn(1, 12, 65536, 64); k = v = torch.randn(1, 4, 65536, 64)
    sliding_window_attention(q, k, v, window=1024, scale=64**-0.5)                         # (1, 12, 65536, 64)

Shapes: B batch, T queries, S keys, H query heads, K key/value heads (H a multiple of K; query head h reads key head
h // (H / K)), E head width. q is (B, H, T, E), k and v are (B, K, T, E), the result is (B, H, T, E) in q's dtype;
`scale` multiplies q k^T. All are differentiable once in q, k and v and do not repeat the keys of grouped heads. Memory
grows linearly with T. Decoding against a cache is not done here.

How: queries go in blocks of 128 against the keys that any of them sees. A block is two matrix products around a
softmax, or on CPUs in float32 the fused kernel, each where it was measured to be faster (docs/lab-notebook.md).

Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries); Beltagy et al. 2020 and Jiang et al. 2023 (sliding
window); Press et al. 2022 (ALiBi). Dilated attention is in `dilated_attention`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from parlance.core.errors import UserError

Block = tuple[int, int, int]
"""(start, stop, first): queries [start, stop), none of which sees a key outside [first, stop)."""
Bias = Callable[[Block], Tensor]
"""What to add to a block's scores, -inf where a key is hidden: (stop - start, stop - first), or that per head."""

BLOCK = 128
"""Queries of a block: of 64 to 1024 the fastest, for it wastes little at a window's edges and stays in the cache."""
PRODUCTS = 2048
"""Up to this length, products in blocks beat the fused kernel's own causal pass, on CPUs in bfloat16."""
KEEP_WEIGHTS = 1024
"""Up to this length, the attention weights are kept for the backward pass; beyond, it computes them again."""

fused_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v where query t sees the keys 0 to t."""
    T = q.shape[2]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= PRODUCTS:
        return _banded_attention(q, k, v, scale, window=T, slopes=None)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def sliding_window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """Attention where query t sees the `window` keys t - window + 1 to t, itself included.

    Time and memory are linear in T. A window below 1 is a `UserError`.
    """
    if window < 1:
        raise UserError(f"a sliding window holds at least 1 position, not {window}")
    if window >= q.shape[2]:
        return causal_attention(q, k, v, scale)
    return _banded_attention(q, k, v, scale, window, slopes=None)


def alibi_attention(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, scale: float) -> Tensor:
    """Causal attention with slopes[h] * (j - i) added to the score of query i and key j; slopes (H,).

    The slopes get no gradient (in ALiBi they are constants).
    """
    return _banded_attention(q, k, v, scale, window=q.shape[2], slopes=slopes)


def offset_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, offsets: Tensor, scale: float, window: int | None
) -> Tensor:
    """Causal attention with -slopes[h] * |i - j - offsets[h]| added to the score of query i and key j; both (H,).

    ALiBi is the case of offsets 0. `window`: as in `sliding_window_attention`; None: all keys.
    """
    T = q.shape[2]
    return _banded_attention(q, k, v, scale, T if window is None else min(window, T), slopes, offsets)


def document_attention(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, scale: float) -> Tensor:
    """Causal attention within each document of packed rows.

    `documents` (B, T) int64 numbers the document of each position. A document is a run of equal numbers in a row: a
    number that comes back after another one is a new document. Padding is a document like any other.
    """
    B, H, T, E = q.shape
    # All rows as one sequence, in which a row's end ends a document too: a view where heads were split off (B, T, H E).
    q, k, v = (x.transpose(1, 2).reshape(1, B * T, -1, E).transpose(1, 2) for x in (q, k, v))
    begins = torch.ones(B, T, dtype=torch.bool, device=documents.device)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    position = torch.arange(B * T, device=documents.device)
    begin = torch.where(begins.flatten(), position, 0).cummax(0).values  # (B T,): where each position's document begins
    firsts = begin[::BLOCK].tolist()

    def bias(block: Block) -> Tensor:
        start, stop, first = block
        keys, queries = position[first:stop], position[start:stop, None]
        return hide((keys <= queries) & (keys >= begin[start:stop, None]), q.dtype)

    blocks = [(start, stop, firsts[start // BLOCK]) for start, stop in spans(B * T, BLOCK)]
    y = _blocked_attention(q, k, v, scale, blocks, bias)
    return y.transpose(1, 2).reshape(B, T, H, E).transpose(1, 2)


def _banded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    window: int,
    slopes: Tensor | None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Query t sees the last `window` keys; with ALiBi where there are slopes, around offsets where there are any."""
    T = q.shape[2]
    blocks = [(start, stop, max(0, start - window + 1)) for start, stop in spans(T, BLOCK)]
    # What is added depends on the distance only, so every block reads a part of one table, whose column `back` is the
    # key at the position of the block's first query.
    back, rows = max(start - first for start, _, first in blocks), min(BLOCK, T)
    distance = torch.arange(-back, rows, device=q.device) - torch.arange(rows, device=q.device)[:, None]
    table = hide((distance <= 0) & (distance > -window), q.dtype)
    if slopes is not None:
        # Each element is rounded once, from its exact distance: in bfloat16 no worse than the scores' own rounding.
        if offsets is not None:
            distance = -(distance + offsets[:, None, None]).abs()
        table = (table + slopes.to(precise(q.dtype))[:, None, None] * distance).to(q.dtype)

    def bias(block: Block) -> Tensor:
        start, stop, first = block
        return table[..., : stop - start, back - (start - first) : back + stop - start]

    return _blocked_attention(q, k, v, scale, blocks, bias)


def _fused(q: Tensor) -> bool:
    """Whether blocks go through the CPU's fused kernel instead of matrix products."""
    return q.device.type == "cpu" and q.dtype != torch.bfloat16


def _blocked_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: list[Block], bias: Bias) -> Tensor:
    """Attention of consecutive blocks that cover all queries."""
    if _fused(q):
        return cast(Tensor, _FusedBlocks.apply(q, k, v, scale, blocks, bias))  # type: ignore[no-untyped-call]
    keep = q.shape[2] <= KEEP_WEIGHTS and torch.is_grad_enabled()
    return cast(Tensor, _ProductBlocks.apply(q, k, v, scale, blocks, bias, keep))  # type: ignore[no-untyped-call]


class _FusedBlocks(torch.autograd.Function):
    """Blocks through the CPU's fused kernel, which reads the keys of grouped heads as they lie."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: list[Block], bias: Bias) -> Tensor:
        q, k, v = (dense_rows(x) for x in (q, k, v))
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=precise(q.dtype))
        for start, stop, first in blocks:
            out[:, :, start:stop], lse[:, :, start:stop] = fused_forward(
                q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop],
                attn_mask=_per_batch(bias((start, stop, first))), scale=scale,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.blocks, ctx.bias = scale, blocks, bias
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = dense_rows(grad)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=precise(x.dtype)) for x in (k, v))
        for start, stop, first in ctx.blocks:
            dq[:, :, start:stop], dk_block, dv_block = fused_backward(
                grad[:, :, start:stop], q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop],
                out[:, :, start:stop], lse[:, :, start:stop], 0.0, False,
                attn_mask=_per_batch(ctx.bias((start, stop, first))), scale=ctx.scale,
            )  # fmt: skip
            dk[:, :, first:stop] += dk_block
            dv[:, :, first:stop] += dv_block
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


class _ProductBlocks(torch.autograd.Function):
    """Blocks as two matrix products around a softmax; the query heads of a group stand below each other as rows."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: list[Block], bias: Bias, keep: bool
    ) -> Tensor:
        B, H, T, E = q.shape
        out, flat_k, flat_v, kept = torch.empty_like(q), k.reshape(-1, T, E), v.reshape(-1, T, E), []
        for block in blocks:
            start, stop, first = block
            weights = _block_weights(q, flat_k, scale, block, bias)
            out[:, :, start:stop] = torch.bmm(weights, flat_v[:, first:stop]).view(B, H, -1, E)
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.blocks, ctx.bias = scale, blocks, bias
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        B, H, T, E = q.shape
        flat_k, flat_v, dq = k.reshape(-1, T, E), v.reshape(-1, T, E), torch.empty_like(q)
        summed = 0 if len(ctx.blocks) == 1 else T
        dk, dv = (torch.zeros_like(x[:, :summed], dtype=precise(x.dtype)) for x in (flat_k, flat_v))
        rows = len(flat_k), -1, E  # (B K, H/K T, E)
        for number, block in enumerate(ctx.blocks):
            start, stop, first = block
            weights = kept[number] if kept else _block_weights(q, flat_k, ctx.scale, block, ctx.bias)  # P
            grad_block, q_block = grad[:, :, start:stop].reshape(rows), q[:, :, start:stop].reshape(rows)
            dp = torch.bmm(grad_block, flat_v[:, first:stop].mT)
            ds = torch._softmax_backward_data(dp, weights, -1, weights.dtype)  # P (dP - rowsum(P dP))
            dq[:, :, start:stop] = (torch.bmm(ds, flat_k[:, first:stop]) * ctx.scale).view(B, H, -1, E)
            dk_block, dv_block = torch.bmm(ds.mT, q_block) * ctx.scale, torch.bmm(weights.mT, grad_block)
            if len(ctx.blocks) == 1:  # nothing to add up
                dk, dv = dk_block, dv_block
            else:
                dk[:, first:stop] += dk_block
                dv[:, first:stop] += dv_block
        return dq, dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype), None, None, None, None


def _block_weights(q: Tensor, flat_k: Tensor, scale: float, block: Block, bias: Bias) -> Tensor:
    """Attention weights (B K, H/K T, S) of a block."""
    scores = block_scores(q, flat_k, scale, block, bias)
    return scores.softmax(-1).view(len(flat_k), -1, scores.shape[-1])


def block_scores(q: Tensor, flat_k: Tensor, scale: float, block: Block, bias: Bias) -> Tensor:
    """scale q k^T + bias, (B, H, stop - start, stop - first), of q (B, H, T, E) and flat_k (B K, T, E)."""
    start, stop, first = block
    rows = q[:, :, start:stop].reshape(len(flat_k), -1, q.shape[3])
    scores = torch.baddbmm(q.new_empty(1, 1, 1), rows, flat_k[:, first:stop].mT, beta=0.0, alpha=scale)
    return scores.view(len(q), -1, stop - start, stop - first).add_(bias(block))


def spans(length: int, step: int) -> Iterator[tuple[int, int]]:
    """[start, stop) of consecutive pieces of `length` positions."""
    return ((start, min(start + step, length)) for start in range(0, length, step))


def hide(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else -inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -math.inf)


def dense_rows(x: Tensor) -> Tensor:
    """x with its last dimension dense, which the fused kernel takes for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


def precise(dtype: torch.dtype) -> torch.dtype:
    """What sums and logarithms are kept in: float32, or float64 for itself."""
    return torch.promote_types(dtype, torch.float32)


def _per_batch(bias: Tensor) -> Tensor:
    """As the fused kernel reads it: with a batch dimension where it is per head."""
    return bias if bias.dim() == 2 else bias.unsqueeze(0)
