"""Byte-pair training (Sennrich et al. 2016, arXiv:1508.07909): from counted pieces of text to merges.

The most frequent pair of neighbours becomes a token, again and again; of equally frequent pairs the one with the lowest
ids, as rustbpe does. Counts are 64 bits wide, and the pieces can have been counted anywhere (`counting`).

    tokens = train(texts, size=4096)           # 256 bytes, then up to 3840 joined tokens, in order of rank
    merges = train_merges(table, size=4096)    # (merges, 2): the ids that become 256, 257, ...

Not done here: special tokens, the choice of the pattern. Memory: about 36 bytes for each byte of different pieces.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.bpe.counting import PieceCounts, count_pieces
from parlance.text.bpe.patterns import PatternName

MAX_PLACES = (2**31 - 1) // 3
"""Bytes of different pieces, and the pieces themselves, that 32-bit places can number."""


def train(
    texts: Iterable[str], size: int, pattern: PatternName = "parlance", threads: int | None = None
) -> list[bytes]:
    """At most `size` tokens by rank: the 256 bytes, then those that merging adds. Two of them can have the same bytes.

    Fewer come out where `texts` have no more pairs. Raises UserError for `size` below 256 and no text at all.
    """
    table = count_pieces(texts, pattern, threads)
    if not len(table.counts):
        raise UserError("the tokenizer was given no text to train on")
    return tokens_of_merges(train_merges(table, size))


def train_merges(table: PieceCounts, size: int) -> NDArray[np.int64]:
    """Pairs of ids, shape (merges, 2), merges <= size - 256; row i becomes token 256 + i.

    Raises UserError for `size` below 256, counts that together reach 2^63, and too many different pieces.
    """
    from parlance.text.bpe.merge_kernels import lay_out
    from parlance.text.bpe.merge_kernels import train as train_places

    if size < 256:
        raise UserError(f"a vocabulary of {size} is too small; the bytes alone are 256")
    places_needed = len(table.data) + len(table.counts) + 1
    if places_needed > MAX_PLACES:
        raise UserError(
            f"the different pieces of the text have {len(table.data)} bytes, more than the {MAX_PLACES} that training "
            "can hold; leave out rare pieces or train on a part of the corpus"
        )
    if float(np.dot(table.counts.astype(np.float64), np.diff(table.offsets))) >= 2.0**63:
        raise UserError("the pieces have 2^63 bytes or more, which a 64-bit count cannot hold")
    size = min(size, 256 + len(table.data))  # every merge makes a piece shorter
    places = np.empty((places_needed, 3), dtype=np.int32)
    lay_out(table.data, table.offsets, places)
    merges = np.empty((size - 256, 2), dtype=np.int64)
    done = train_places(
        places,
        table.counts,
        merges,
        np.ones(size, dtype=np.int32),
        np.empty((3 * places_needed, 2), dtype=np.int32),
        np.zeros((2, size), dtype=np.int64),
        np.full((4, size), -1, dtype=np.int32),
        np.empty((2, size), dtype=np.int32),
        np.zeros((256, 256), dtype=np.int64),
        np.full((512, 256), -1, dtype=np.int32),
    )
    return merges[:done].copy()


def tokens_of_merges(merges: NDArray[np.int64]) -> list[bytes]:
    """The bytes of tokens 0 to 255 + len(merges)."""
    tokens = [bytes([value]) for value in range(256)]
    for left, right in merges.tolist():
        tokens.append(tokens[left] + tokens[right])
    return tokens
