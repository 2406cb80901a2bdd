"""What a Transformer remembers of the sequences it reads: keys and values, and of an encoder-decoder, the source.

state = model.new_state(batch=2, capacity=64)
model.hidden(tokens, state)                 # fills it
state = state.select(torch.tensor([1]))     # go on with the second row alone
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor


@dataclass
class Memory:
    """An encoder's output as a decoder reads it. B batch, K key/value heads, S source tokens, E head width."""

    keys: list[Tensor]
    """Per decoder block (B, K, S, E)."""
    values: list[Tensor]
    """Per decoder block (B, K, S, E)."""
    mask: Tensor | None
    """(B, S) bool: which source positions are tokens; None: all."""

    def select(self, rows: Tensor) -> "Memory":
        """The memory of some rows (int64 indices)."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory([key[rows] for key in self.keys], [value[rows] for value in self.values], mask)


@dataclass
class KeyValueCache:
    """What a Transformer remembers of each sequence of a batch. Rows may differ in length."""

    keys: list[Tensor]
    """Per layer (B, K, capacity, E)."""
    values: list[Tensor]
    """Per layer (B, K, capacity, E)."""
    lengths: Tensor
    """(B,) int64: how many positions of each row are filled."""
    memory: Memory | None = None
    """What the decoder of an encoder-decoder attends to besides."""
    tokens: Tensor | None = None
    """(B, capacity) int64: what was read, where embeddings depend on the tokens before."""

    @property
    def capacity(self) -> int:
        """Positions that fit before the tensors must grow."""
        if self.tokens is not None:
            return self.tokens.shape[1]
        return self.keys[0].shape[2] if self.keys else 0

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` positions."""
        extra = capacity - self.capacity
        if extra > 0:
            self.keys = [F.pad(key, (0, 0, 0, extra)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, extra)) for value in self.values]
            self.tokens = None if self.tokens is None else F.pad(self.tokens, (0, extra))

    def select(self, rows: Tensor) -> "KeyValueCache":
        """The cache of some rows (int64 indices), e.g. of the sequences that still run."""
        return replace(
            self,
            keys=[key[rows] for key in self.keys],
            values=[value[rows] for value in self.values],
            lengths=self.lengths[rows],
            memory=None if self.memory is None else self.memory.select(rows),
            tokens=None if self.tokens is None else self.tokens[rows],
        )


@dataclass
class CacheSlots:
    """Where one forward call reads and writes the cache; the same for every layer."""

    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, T)
    longest: int  # S
    continued: bool  # whether the new tokens see earlier ones: attention then reads the cache
