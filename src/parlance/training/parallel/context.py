"""Context parallelism: the positions of each row divided over processes, which exchange keys and values.

Each process computes its part of the positions with all weights; only attention needs the others': keys and values are
gathered in every layer, and their gradients are summed and scattered on the way back. Of R processes each has two
pieces of a row, one from the beginning and the one as far from the end (0 and 2R - 1, 1 and 2R - 2, ...), so that
causal attention costs all of them the same.

    share_context(model, group)
    part = context_part(batch, group.rank(), group.size())          # a batch that `objective(model, part)` reads

Losses and counts of the parts add up to those of the batch, and so do the gradients of all parameters. Causal, sliding
window, ALiBi, relative and full attention are computed as one process does, over packed documents too. Not divided:
what looks back in another way (n-gram embeddings, dilated attention, head offsets), and encoder-decoders. There is one
exchange a layer, and in return every process holds the keys and values of whole rows until the layer's backward pass
(and of packed rows a mask of its queries by all keys). Blocks can be compiled: exchanges are part of the graph.

Shapes: B rows, T positions of a row, R processes, P = T / 2R positions of a piece, H query heads, K key/value heads,
E head width. Sources: Llama Team 2024, section 3.3.2 (gathered keys and values, 2R pieces); Liu et al. 2023 (the ring
that exchanges them bit by bit).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Attention, Layout
from parlance.training.objectives import TokenBatch
from parlance.training.parallel.collectives import gather

QUERIES = 512
"""Positions whose scores are made at a time: their mask is this many by all keys."""


def pieces(length: int, index: int, ways: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """[start, stop) of the two pieces of a row that process `index` of `ways` has.

    Raises UserError where `length` is no multiple of 2 `ways`.
    """
    size, rest = divmod(length, 2 * ways)
    if rest or not size:
        raise UserError(
            f"{length} positions cannot be divided over {ways} processes: choose a context length that is a multiple "
            f"of {2 * ways}, or another context"
        )
    late = 2 * ways - 1 - index
    return (index * size, (index + 1) * size), (late * size, (late + 1) * size)


def context_part(batch: TokenBatch, index: int, ways: int) -> TokenBatch:
    """The positions of every row that process `index` of `ways` computes: (B, T / R), and where they stand."""
    T = batch.inputs.shape[1]
    (early, after_early), (late, after_late) = pieces(T, index, ways)
    device = batch.inputs.device
    own = torch.cat((torch.arange(early, after_early, device=device), torch.arange(late, after_late, device=device)))
    whole = batch.layout
    if whole is None:
        layout = Layout(own[None], None, keys_at=torch.arange(T, device=device)[None])
    elif whole.mask is not None:
        layout = Layout(whole.positions[:, own], whole.mask[:, own], keys_at=whole.positions)
    else:
        assert whole.documents is not None
        mask = whole.documents[:, own, None] == whole.documents[:, None, :]
        mask &= torch.arange(T, device=device) <= own[:, None]
        layout = Layout(whole.positions[:, own], mask, keys_at=whole.positions)
    return replace(batch, inputs=batch.inputs[:, own], targets=batch.targets[:, own], layout=layout)


def share_context(model: Transformer, group: ProcessGroup) -> None:
    """Make `model`, in place, read the parts that `context_part` makes. Raises UserError where it cannot.

    The gradient of every parameter is to be summed over the group.
    """
    check_context(model)
    for module in model.modules():
        if isinstance(module, Attention):
            module.across = ContextAttention(group)


def check_context(model: Transformer) -> None:
    """Raises UserError where the positions of a row do not meet in attention alone."""
    config = model.config
    if config.cross_attention:
        raise UserError("context parallelism does not divide encoder-decoders: set context to 1")
    others = {
        "dilated attention": config.dilated_segments,
        "embeddings of several tokens (ngram_tables)": config.looks_back,
        "head_offsets": config.head_offsets,
    }
    for part, there in others.items():
        if there:
            raise UserError(f"context parallelism does not divide {part}: set context to 1")


class ContextAttention:
    """Attention of the positions that are here to all."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def __call__(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """(B, H, 2P, E) of q (B, H, 2P, E), k and v (B, K, 2P, E) of the same positions; `mask` (B|1, H|1, 2P, T)."""
        k, v = in_order(gather(torch.stack((k, v)), self.group))
        if mask is not None or not attention.causal:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=attention.scale, enable_gqa=attention.heads != attention.kv_heads
            )
        own = pieces(k.shape[2], self.group.rank(), self.group.size())
        spans = [(at, min(at + QUERIES, stop)) for start, stop in own for at in range(start, stop, QUERIES)]
        parts = q.split([stop - start for start, stop in spans], 2)  # type: ignore[no-untyped-call]
        return torch.cat([_causal(attention, q, k, v, *span) for q, span in zip(parts, spans, strict=True)], 2)


def in_order(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (B, K, T, E) in the order of their positions, of all processes' (R, 2, B, K, 2P, E)."""
    early, late = parts.chunk(2, 4)
    k, v = torch.cat((*early.unbind(0), *reversed(late.unbind(0))), 3).unbind(0)
    return k, v


def _causal(attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: int, stop: int) -> Tensor:
    """Causal attention of the queries at [start, stop) of a row to its keys and values (B, K, T, E)."""
    window = attention.window or stop
    first = max(0, start - window + 1)
    distances = torch.arange(first, stop, device=q.device) - torch.arange(start, stop, device=q.device)[:, None]
    mask = (distances <= 0) & (distances > -window)
    if attention.alibi_bias_max is not None:
        biases = attention.slopes(q.device)[:, None, None] * distances
        mask = biases.masked_fill(~mask, float("-inf")).to(q.dtype).unsqueeze(0)
    return F.scaled_dot_product_attention(
        q,
        k[:, :, first:stop],
        v[:, :, first:stop],
        attn_mask=mask,
        scale=attention.scale,
        enable_gqa=attention.heads != attention.kv_heads,
    )
