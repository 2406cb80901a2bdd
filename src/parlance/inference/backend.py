"""What computes logits for the engine: a model with memory for many texts at once.

The memory holds what attention or a recurrent network must remember of the tokens it has read. It is divided into pages
of `page_size` positions; whoever calls keeps the books: which pages a text has, and how many of its tokens are in them.
Two texts may share the pages of a common beginning, which nobody writes to. A model whose memory cannot be divided (a
recurrent network) has pages that no text fills: one page is then the memory of one text.

    logits = backend.step([Piece(tokens=prompt, start=0, pages=[4, 7], wanted=1)])   # (1, V)
    logits = backend.step([Piece(tokens=[token], start=len(prompt), pages=[4, 7], wanted=1)])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UNDIVIDED = 1 << 62
"""`page_size` of a backend whose pages each hold the memory of a whole text."""


@dataclass(frozen=True)
class Piece:
    """Tokens of one text that are read in one step."""

    tokens: Sequence[int]
    """At least one."""
    start: int
    """How many tokens of the text are in the memory already; 0 begins a text. What stands behind is overwritten, so
    that a text in divided memory can be taken back to any earlier length."""
    pages: Sequence[int]
    """Its pages in order, enough for `start + len(tokens)` positions."""
    wanted: int
    """Of how many of the last tokens the logits are wanted; 0: of none, when a prompt is read in parts."""


class Backend(Protocol):
    """A model that continues many texts in one step."""

    vocab_size: int
    context_length: int | None
    """Most tokens of one text; None: no limit."""
    page_size: int
    """Positions a page, or `UNDIVIDED`."""
    pages: int
    """How many pages there are, numbered from 0."""

    def step(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """Read all pieces; logits (sum of `wanted`, V) in the order of the pieces.

        No page that one piece writes to belongs to another. Not for several threads at once.
        """
        ...
