"""Text -> ids of byte-level BPE, by compiled loops over many texts at once, without a Python object for each piece.

The rule is tiktoken's: a piece that is a token is that token; otherwise its bytes are joined, of all neighbours whose
joined bytes are a token the one with the lowest rank first, the leftmost of equals. A token's id is its rank. Programs
that follow a list of merges instead (`tokenizers`) give the same ids for every vocabulary that byte-pair training made,
GPT-2's and GPT-4's among them. They can
differ where a token's bytes also come together from neighbours that are not its merge, as in lists made by hand: with
the merges b+c, a+b and ab+c, in this order, "abc" inside a piece is a, bc by the list and abc by rank.

Every thread remembers the ids of the pieces it met (at most `_CACHE_ROWS` / 2, then it starts afresh), which changes
speed and never ids. A piece of n bytes takes n log n steps at worst. Special tokens are not this module's business:
their names are ordinary text here. A lone surrogate becomes U+FFFD.

    encoder = Encoder(tokens, "gpt4")
    ids, offsets = encoder.encode_batch(["some text", "more"])     # ids[offsets[i] : offsets[i + 1]] is text i
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.text.bpe.counting import PieceCounts, PieceTable
from parlance.text.bpe.parallel import chunks_of, in_order
from parlance.text.bpe.patterns import PatternName, Utf8, pattern_named, scan_arguments, unaligned_words, utf8

MAX_IDS = 1 << 28
"""The cache holds ids of 28 bits."""
_CACHE_ROWS = 1 << 18
_CACHE_STORE = 1 << 21
_ENDS = 1 << 16
_NONE = 2**31 - 1  # as in table_kernels


class Batch(NamedTuple):
    """Ids of several texts."""

    ids: NDArray[np.uint32]
    """Of all texts, one behind the other."""
    offsets: NDArray[np.int64]
    """Text i has `ids[offsets[i] : offsets[i + 1]]`: shape (texts + 1,)."""


class _Worker:
    """What one thread needs: its cache and buffers."""

    def __init__(self) -> None:
        self.cache = np.zeros((_CACHE_ROWS, 4), dtype=np.int64)
        self.store = unaligned_words(np.zeros(_CACHE_STORE, dtype=np.uint8))
        self.cached_ids = np.empty(_CACHE_STORE, dtype=np.uint32)
        self.state = np.zeros(6, dtype=np.int64)
        self.scratch = np.empty((3, 65), dtype=np.int32)
        self.ends = np.empty(_ENDS, dtype=np.int32)


class Encoder:
    """Encodes with one vocabulary and one pattern; may be used by several threads at once."""

    def __init__(self, ranks: Sequence[bytes], pattern: PatternName) -> None:
        """`ranks`: the bytes of token 0, 1, ...; b"" for ids that no text may give, such as special tokens.

        Raises UserError where one of the 256 bytes is missing or two tokens have the same bytes.
        """
        self._arguments = scan_arguments(pattern_named(pattern))
        rank_of = {token: rank for rank, token in enumerate(ranks) if token}
        if len(ranks) > MAX_IDS:
            raise UserError(f"a vocabulary of {len(ranks)} tokens is too large; at most {MAX_IDS} are possible")
        missing = [value for value in range(256) if bytes([value]) not in rank_of]
        if missing:
            raise UserError(f"a byte-level vocabulary needs all 256 bytes; this one has no token for byte {missing[0]}")
        if len(rank_of) < sum(map(bool, ranks)):
            first = next(token for rank, token in enumerate(ranks) if token and rank_of[token] != rank)
            raise UserError(f"two tokens of the vocabulary have the same bytes, {first!r}")
        self._longest = max(map(len, rank_of))
        table = PieceTable()
        table.add_counts(PieceCounts.of((token, rank + 1) for token, rank in rank_of.items()))
        self._table, self._store = table.rows, table.store
        # Ranks of two bytes by their value, then of single bytes.
        self._byte_pairs = np.full(65536 + 256, _NONE, dtype=np.int32)
        for token, rank in rank_of.items():
            if len(token) <= 2:
                self._byte_pairs[65536 + token[0] if len(token) == 1 else token[0] << 8 | token[1]] = rank
        self._free = [_Worker()]

    def encode(self, text: str) -> list[int]:
        """Ids of one text."""
        ids: list[int] = self._encoded(utf8([text])).ids.tolist()
        return ids

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> Batch:
        """Ids of all texts; `threads`: the processor's cores by default."""
        parts = list(self.encode_stream(texts, threads))
        ids = np.concatenate([np.empty(0, dtype=np.uint32), *(part.ids for part in parts)])
        offsets = np.zeros(len(texts) + 1, dtype=np.int64)
        done, before = 0, 0
        for part in parts:
            offsets[done + 1 : done + len(part.offsets)] = part.offsets[1:] + before
            done, before = done + len(part.offsets) - 1, before + len(part.ids)
        return Batch(ids, offsets)

    def encode_stream(self, texts: Iterable[str], threads: int | None = None) -> Iterator[Batch]:
        """The same in parts, in order, each of several texts; reads a few megabytes ahead."""
        return in_order(lambda chunk: self._encoded(utf8(chunk)), chunks_of(texts), threads)

    def _encoded(self, texts: Utf8) -> Batch:
        from parlance.text.bpe.scan_kernels import scan
        from parlance.text.bpe.table_kernels import INLINE, encode

        try:
            worker = self._free.pop()
        except IndexError:  # all are at work in other threads
            worker = _Worker()
        out = np.empty(texts.bounds[-1] + INLINE, dtype=np.uint32)
        offsets = np.zeros(len(texts.bounds), dtype=np.int64)
        cursor = np.zeros(2, dtype=np.int64)
        worker.state[3:] = 0
        while count := scan(texts.words, texts.bounds, cursor, worker.ends, *self._arguments):
            encode(
                texts.words,
                texts.bounds,
                worker.ends,
                count,
                self._table,
                self._store,
                self._longest,
                self._byte_pairs,
                worker.cache,
                worker.store,
                worker.cached_ids,
                worker.state,
                worker.scratch,
                out,
                offsets,
            )
        document, _, written = worker.state[3:].tolist()
        self._free.append(worker)
        offsets[document + 1 :] = written
        return Batch(out[:written].copy(), offsets)
