"""Embeddings of the last n tokens: one table for each n, looked up exactly where it is large enough, else by a hash.

A small model spends most of its first steps on learning which tokens follow each other. A table of pairs, and hashed
ones of triples and quadruples, tell it at once; several sequences that share a row of a hashed table are told apart by
the other tables. The tables take no products, and a step touches as many of their rows as it has tokens
(`training/row_updates.py` updates no others). Before the beginning of a text stands one further symbol, so that
beginnings have rows of their own.

    tokens = torch.tensor([[5, 3, 8]])
    window = preceding(tokens, back=2, none=260)                   # (1, 3, 3): each token and the two before it
    ngram_rows(window, n=3, rows=16384, symbols=261)               # (1, 3), in 0..16383

A table is exact where symbols^n is at most its rows. Memory of the past is the last n - 1 tokens.

Shapes: B batch, T time, D width. Sources: Svenstrup et al. 2017 (hash embeddings); Mikolov et al. 2011, section 4
(hashed n-grams as inputs of a network).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MULTIPLIER = 0x2545F4914F6CDD1D
"""Odd, of Vigna 2016 (xorshift*): products are taken modulo 2^64."""
POSITIVE = 2**63 - 1


def preceding(tokens: Tensor, back: int, none: int, previous: Tensor | None = None) -> Tensor:
    """Each token and the `back` before it: (B, T, back + 1), the token itself first; `none` before the beginning.

    tokens: (B, T) int64. `previous` (B, T) int64: the index in its row of the token before each one, -1: none;
    None: the one to the left.
    """
    B, T = tokens.shape
    if previous is None:
        padded = F.pad(tokens, (back, 0), value=none)
        return padded.unfold(1, back + 1, 1).flip(-1)
    # Column T holds `none`, which is what stands before a beginning, and before that again.
    padded = F.pad(tokens, (0, 1), value=none)
    step = F.pad(torch.where(previous < 0, T, previous), (0, 1), value=T)
    at = torch.arange(T, device=tokens.device).expand(B, T)
    columns = [tokens]
    for _ in range(back):
        at = step.gather(1, at)
        columns.append(padded.gather(1, at))
    return torch.stack(columns, dim=-1)


def ngram_rows(window: Tensor, n: int, rows: int, symbols: int) -> Tensor:
    """The row (...) of 0..rows-1 for the first n entries of windows (..., at least n), the newest token first.

    Entries are in 0..symbols-1. Where symbols^n <= rows every n-gram has a row of its own: sum of w_k symbols^k.
    """
    exact = symbols**n <= rows
    index = torch.zeros_like(window[..., 0])
    for k in reversed(range(n)):
        if exact:
            index = index * symbols + window[..., k]
        else:
            # Multiply and fold, so that low bits, which choose the row, depend on all tokens.
            index = (index + window[..., k] + 1) * MULTIPLIER
            index = index ^ ((index >> 29) & (POSITIVE >> 28))
    return index if exact else (index & POSITIVE) % rows


class NGramEmbeddings(nn.Module):
    """The sum of one embedding for each (n, rows) of `tables`: (B, T, D) in the dtype of the weight.

    The tables lie below each other in one parameter, whose gradient is sparse over its rows. All begin at zero.
    """

    def __init__(self, tables: Sequence[tuple[int, int]], symbols: int, width: int) -> None:
        """`symbols`: the vocabulary and the one before the beginning."""
        super().__init__()
        self.tables, self.symbols = tuple(tables), symbols
        self.weight = nn.Parameter(torch.empty(sum(rows for _, rows in tables), width))

    def initialise(self) -> None:
        """Zeros, so that what was never seen adds nothing."""
        with torch.no_grad():
            self.weight.zero_()

    def forward(self, window: Tensor) -> Tensor:
        """`window` (B, T, at least the largest n), as `preceding` gives it."""
        places, first = [], 0
        for n, rows in self.tables:
            places.append(ngram_rows(window, n, rows, self.symbols) + first)
            first += rows
        found = torch.stack(places, dim=-1)  # (B, T, tables)
        sums = cast(Tensor, _RowSums.apply(found.flatten(0, 1), self.weight))  # type: ignore[no-untyped-call]
        return sums.view(*window.shape[:2], -1)


class _RowSums(torch.autograd.Function):
    """Sums (N, D) of the rows (N, K) of a table; its gradient holds each row that was read once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return F.embedding_bag(rows, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        (rows,) = ctx.saved_tensors
        ordered, order = rows.flatten().sort()
        read, times = ordered.unique_consecutive(return_counts=True)
        # The kernel that adds up rows adds up gradients too: those of the positions where a row was read.
        values = F.embedding_bag(order // rows.shape[1], grad.contiguous(), times.cumsum(0) - times, mode="sum")
        return None, torch.sparse_coo_tensor(read[None], values, ctx.shape, is_coalesced=True, check_invariants=False)
