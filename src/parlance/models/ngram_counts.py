"""Counting n-grams: documents of token ids -> every distinct n-gram up to an order, with Kneser-Ney's adjusted counts.

The n-grams form one trie in breadth-first order: the node of an n-gram is the child of its first n-1 words, the
children of a node are contiguous and sorted by word. Counting sorts no keys: it goes through the positions of the
text in the order of their words and drops each into the bucket of its context, once an order, which takes time linear
in the text. Nothing here smooths (see `ngram.py`) and nothing is written to disk; the text must fit in memory,
and counting takes some 80 bytes a token at order 5.

    counts = count_ngrams([np.array([5, 3, 5])], vocab_size=8, order=3, end_of_text=0)

Adjusted counts and discounts: S. Chen and J. Goodman, "An empirical study of smoothing techniques for language
modeling" (1998); K. Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from parlance.core.compiled import compiled
from parlance.core.config import Config
from parlance.core.errors import UserError

Integers = npt.NDArray[np.integer]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Discount(Config):
    """What is taken off the adjusted counts 1, 2 and 3-or-more of one order, and where the values come from."""

    values: tuple[float, float, float]
    """(D_1, D_2, D_3+); 0 < D_k <= k."""
    method: Literal["closed form", "absolute", "fixed"]
    """`closed form`: D_k = k - (k+1) Y t_{k+1}/t_k. `absolute`: Y for all three. `fixed`: (0.5, 1, 1.5)."""


@dataclass(frozen=True, eq=False)
class NGramCounts:
    """The distinct n-grams of orders 1..n as a trie of N nodes, of which the M below the highest order are contexts.

    Nodes 0..V-1 are the single tokens, seen or not; node V is the begin-of-document mark, which is a context and
    never a word. Then come the bigrams, sorted by (first word's node, second word), the trigrams, and so on.
    """

    level_starts: tuple[int, ...]
    """First node of each order, then N: order k (from 1) is nodes level_starts[k-1] to level_starts[k] - 1."""
    words: Int32
    """(N,) last word of each n-gram."""
    first_child: Int64
    """(M + 1,) the children of node i are nodes first_child[i] to first_child[i + 1] - 1."""
    suffixes: Int64
    """(N,) node of the n-gram without its first word; -1 for single tokens."""
    adjusted: Int64
    """(N,) occurrences, for the highest order and for n-grams that begin a document; else distinct left neighbours."""


def count_ngrams(
    documents: Iterable[Integers], vocab_size: int, order: int, end_of_text: int | None = None
) -> NGramCounts:
    """Count the n-grams of orders 1..`order` (at least 1) of `documents`, each a (T,) array of ids below `vocab_size`.

    No n-gram crosses documents. Every document is read as if a begin mark preceded it, and, where `end_of_text` is
    given, as ending with that token; an `end_of_text` inside a document ends it there and begins another.
    Raises UserError where there is nothing to count or an id lies outside the vocabulary.
    """
    tokens, lengths = _gather(documents, vocab_size)
    end = -1 if end_of_text is None else end_of_text
    stream = _lay_out(tokens, lengths, vocab_size, end)
    by_word = _positions_by_word(stream, vocab_size)
    if by_word.size == 0:
        raise UserError("the documents hold no tokens to count n-grams in: give documents with text in them")

    # One entry an order in each list. Ids are local to an order here; `begins` is the first id that starts with the
    # begin mark, which is the last token and so heads the last block of every order.
    occurrences = [np.bincount(stream, minlength=vocab_size + 1)]
    words = [np.arange(vocab_size + 1, dtype=np.int32)]
    suffixes: list[Int32] = [np.empty(0, np.int32)]
    children: list[Int64] = []
    begins = [vocab_size]
    ids = stream
    for level in range(1, order):
        offsets, level_words, level_occurrences, level_suffixes, ids = _extend(
            stream, by_word, ids, occurrences[-1].size
        )
        children.append(offsets)
        words.append(level_words)
        occurrences.append(level_occurrences)
        suffixes.append(level_suffixes)
        begins.append(int(offsets[begins[level - 1]]))

    adjusted = [
        _left_neighbours(suffixes[level + 1], occurrences[level], begins[level]) for level in range(order - 1)
    ] + [occurrences[-1]]
    adjusted[0][vocab_size] = 0  # the begin mark is never predicted
    starts = np.cumsum([0] + [level.size for level in words])
    return NGramCounts(
        level_starts=tuple(int(start) for start in starts),
        words=np.concatenate(words),
        first_child=np.concatenate(
            [offsets[:-1] + starts[level + 1] for level, offsets in enumerate(children)] + [starts[-1:]]
        ),
        suffixes=np.concatenate(
            [np.full(vocab_size + 1, -1, np.int64)]
            + [suffixes[level].astype(np.int64) + starts[level - 1] for level in range(1, order)]
        ),
        adjusted=np.concatenate(adjusted),
    )


def estimate_discount(adjusted: Int64) -> Discount:
    """Discounts of one order from its adjusted counts (zeros are passed over), by the first method that is possible.

    With t_k the number of n-grams of adjusted count k and Y = t_1 / (t_1 + 2 t_2): the closed form needs t_1, t_2,
    t_3 > 0 and every D_k > 0 (Chen and Goodman 1998, equation 26); the absolute discount Y needs t_1, t_2 > 0.
    Subword vocabularies have no rare unigrams and reach the fixed values.
    """
    t = [int(n) for n in np.bincount(np.minimum(adjusted, 5), minlength=5)]
    if t[1] and t[2]:
        y = t[1] / (t[1] + 2 * t[2])
        if t[3]:
            d1, d2, d3 = (k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
            if min(d1, d2, d3) > 0:
                return Discount(values=(d1, d2, d3), method="closed form")
        return Discount(values=(y, y, y), method="absolute")
    return Discount(values=(0.5, 1.0, 1.5), method="fixed")


def _gather(documents: Iterable[Integers], vocab_size: int) -> tuple[Int32, Int64]:
    """All tokens in one array and the length of each document, checked against the vocabulary."""
    arrays = [np.asarray(document) for document in documents]
    if not arrays:
        raise UserError("there are no documents to count n-grams in: give at least one")
    lengths = np.array([array.size for array in arrays], np.int64)
    filled = [array.reshape(-1) for array in arrays if array.size]
    if not filled:
        return np.empty(0, np.int32), lengths
    tokens = np.concatenate(filled)
    if tokens.size + 2 * len(arrays) >= 2**30:
        raise UserError(f"{tokens.size} tokens are more than n-gram counting takes (2^30): train on a part of them")
    return checked_tokens(tokens, vocab_size), lengths


def checked_tokens(tokens: Integers, vocab_size: int) -> Int32:
    """`tokens` as contiguous int32; raises UserError naming the first that is not an id of the vocabulary."""
    if tokens.size == 0:
        return np.empty(tokens.shape, np.int32)
    if tokens.dtype.kind not in "iu":
        raise UserError(f"token ids must be integers, but these are {tokens.dtype}: encode the text with a tokenizer")
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        raise UserError(
            f"token {bad} is outside the vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}): "
            "use the tokenizer that the model was made for"
        )
    return np.ascontiguousarray(tokens, np.int32)


def _left_neighbours(longer_suffixes: Int32, occurrences: Int64, begin: int) -> Int64:
    """Adjusted counts below the highest order: each distinct longer n-gram is one left neighbour of its suffix.

    What starts with the begin mark (ids from `begin`) has no left neighbour and keeps its occurrences.
    """
    adjusted = np.bincount(longer_suffixes, minlength=occurrences.size)
    adjusted[begin:] = occurrences[begin:]
    return adjusted


@compiled
def _lay_out(tokens: Int32, lengths: Int64, begin: int, end: int) -> Int32:
    """One stream: `begin`, the document, `end` (none where negative), for each document and each part between ends."""
    stream = np.empty(tokens.size + 2 * lengths.size + np.count_nonzero(tokens == end), np.int32)
    n = 0
    stop = 0
    for length in lengths:
        start, stop = stop, stop + length
        stream[n] = begin
        n += 1
        for i in range(start, stop):
            stream[n] = tokens[i]
            n += 1
            if tokens[i] == end and i + 1 < stop:
                stream[n] = begin
                n += 1
        if end >= 0 and (length == 0 or tokens[stop - 1] != end):
            stream[n] = end
            n += 1
    return stream[:n].copy()


@compiled
def _positions_by_word(stream: Int32, vocab_size: int) -> Int32:
    """Positions of all words (not of begin marks), sorted by word, then by position: a counting sort."""
    slots = np.zeros(vocab_size + 2, np.int64)
    for word in stream:
        slots[word + 1] += 1
    slots = np.cumsum(slots)
    positions = np.empty(slots[vocab_size], np.int32)
    for i in range(stream.size):
        word = stream[i]
        if word < vocab_size:
            positions[slots[word]] = i
            slots[word] += 1
    return positions


@compiled
def _extend(stream: Int32, by_word: Int32, ids: Int32, contexts: int) -> tuple[Int64, Int32, Int64, Int32, Int32]:
    """From the n-grams of one order to those of the next.

    ids[i], below `contexts`, is the id of the n-gram that ends at position i (-1: the document is too short there).
    Returns (offsets of each context's first extension, words, occurrences, suffix ids, the new `ids`).
    """
    # 1. How often each context is followed by a word, as the first slot of its bucket.
    buckets = np.zeros(contexts + 1, np.int64)
    for i in by_word:
        if ids[i - 1] >= 0:
            buckets[ids[i - 1] + 1] += 1
    buckets = np.cumsum(buckets)

    # 2. Positions sorted by (context, word): dropped into the buckets in the order of their words.
    positions = np.empty(buckets[contexts], np.int32)
    slots = buckets[:-1].copy()
    for i in by_word:
        context = ids[i - 1]
        if context >= 0:
            positions[slots[context]] = i
            slots[context] += 1

    # 3. Runs of the same word in a bucket are the occurrences of one n-gram.
    offsets = np.empty(contexts + 1, np.int64)
    words = np.empty(positions.size, np.int32)
    occurrences = np.zeros(positions.size, np.int64)
    suffixes = np.empty(positions.size, np.int32)
    extended = np.full(stream.size, -1, np.int32)
    n = 0
    for context in range(contexts):
        offsets[context] = n
        for slot in range(buckets[context], buckets[context + 1]):
            i = positions[slot]
            if n == offsets[context] or stream[i] != words[n - 1]:
                words[n] = stream[i]
                suffixes[n] = ids[i]
                n += 1
            occurrences[n - 1] += 1
            extended[i] = n - 1
    offsets[contexts] = n
    return offsets, words[:n].copy(), occurrences[:n].copy(), suffixes[:n].copy(), extended
