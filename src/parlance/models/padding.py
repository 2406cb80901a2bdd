"""Rows of unequal length as one tensor."""

from collections.abc import Sequence

import torch
from torch import Tensor

MULTIPLE = 32
"""Lengths are rounded up to this by default: every new shape makes the CPU's matrix library build and keep new code."""


def pad_right(rows: Sequence[Sequence[int]], value: int, multiple: int = MULTIPLE) -> Tensor:
    """Rows as one (B, T) int64 tensor, padded with `value` to the longest, rounded up to a `multiple`."""
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    out = torch.full((len(rows), length), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.tensor(list(row), dtype=torch.int64)
    return out
