"""Counting n-grams: documents of token ids -> every distinct n-gram up to an order, with Kneser-Ney's adjusted counts.

The n-grams form one trie, told level by level: the n-grams of one order, sorted by (their first n-1 words, last word),
so that the extensions of one context are contiguous. Counting sorts no keys: it goes through the positions of the
text in the order of their words and drops each into the bucket of its context, once an order, which takes time linear
in the text. Nothing here smooths (`ngram_smoothing.py`) and nothing is written to disk; the text must fit in memory,
and counting takes some 50 bytes a token.

    for level in count_ngrams([np.array([5, 3, 5])], vocab_size=8, order=3, end_of_text=0): ...

Adjusted counts: S. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling" (1998);
K. Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parlance.core.compiled import compiled
from parlance.core.errors import UserError

Integers = npt.NDArray[np.integer]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Level:
    """The n distinct n-grams of one order, numbered by (context's number, last word).

    Order 1 holds the single tokens 0..V-1, seen or not, and V, the begin-of-document mark, which is a context and never
    a word.
    """

    words: Int32
    """(n,) last word of each n-gram."""
    offsets: Int64
    """(m + 1,) n-grams offsets[c] to offsets[c + 1] - 1 extend n-gram c of the order below, of m; order 1: (0, n)."""
    suffixes: Int32
    """(n,) each n-gram without its first word, as a number of the order below; order 1: zeros."""
    occurrences: Int64
    """(n,) how often each occurs; of the begin mark: how many documents there are."""
    adjusted: Int64
    """(n,) occurrences, at the highest order and for n-grams that begin a document; else distinct left neighbours."""
    begin: int
    """First n-gram that begins with the begin mark; all that follow do too."""


def count_ngrams(
    documents: Iterable[Integers], vocab_size: int, order: int, end_of_text: int | None = None
) -> Iterator[Level]:
    """Count the n-grams of orders 1..`order` (at least 1) of `documents`, each a (T,) array of ids below `vocab_size`.

    Yields the levels from order 1 on, each as soon as it is known, so that it may be worked on while the next is
    counted. No n-gram crosses documents. Every document is read as if a begin mark preceded it, and, where
    `end_of_text` is given, as ending with that token; an `end_of_text` inside a document ends it there and begins
    another. Raises UserError where there is nothing to count or an id lies outside the vocabulary.
    """
    tokens, lengths = _gather(documents, vocab_size)
    stream = _lay_out(tokens, lengths, vocab_size, -1 if end_of_text is None else end_of_text)
    del tokens
    by_word = _positions_by_word(stream, vocab_size)
    if by_word.size == 0:
        raise UserError("the documents hold no tokens to count n-grams in: give documents with text in them")
    words = np.arange(vocab_size + 1, dtype=np.int32)
    offsets = np.array([0, words.size])
    suffixes = np.zeros(words.size, np.int32)
    occurrences = np.bincount(stream, minlength=words.size)
    begin, ids = vocab_size, stream
    for k in range(1, order + 1):
        # 1. The next order, whose n-grams are the left neighbours of this one's.
        if k < order:
            longer = _extend(stream, by_word, ids, occurrences.size)
            adjusted = _left_neighbours(longer[3], occurrences, begin)
        else:
            adjusted = occurrences
        if k == 1:
            adjusted[vocab_size] = 0  # the begin mark is never predicted
        yield Level(words, offsets, suffixes, occurrences, adjusted, begin)
        # 2. Go on with it. What begins with the mark, the last token, is the last of every order.
        if k < order:
            offsets, words, occurrences, suffixes, ids = longer
            begin = int(offsets[begin])


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

    ids[i], below `contexts`, is the number of the n-gram that ends at position i (-1: the document is too short there).
    Returns (offsets of each context's extensions, words, occurrences, suffixes, the new `ids`).
    """
    # 1. How often each context is followed by a word, as the first slot of its bucket.
    before = np.empty(by_word.size, np.int32)  # gathered once: reading `ids` out of order is what takes time
    buckets = np.zeros(contexts + 1, np.int32)
    for j in range(by_word.size):
        context = ids[by_word[j] - 1]
        before[j] = context
        if context >= 0:
            buckets[context + 1] += 1
    distinct = 0
    for context in range(contexts):
        buckets[context + 1] += buckets[context]

    # 2. Positions sorted by (context, word): dropped into the buckets in the order of their words.
    positions = np.empty(buckets[contexts], np.int32)
    for j in range(by_word.size):
        context = before[j]
        if context >= 0:
            positions[buckets[context]] = by_word[j]
            buckets[context] += 1  # from here on the bucket's end, which is the next one's start

    # 3. Runs of the same suffix in a bucket, which is of the same word, are the occurrences of one n-gram.
    offsets = np.empty(contexts + 1, np.int64)
    suffixes = before  # no longer needed, and long enough
    words = np.empty(positions.size, np.int32)
    occurrences = np.zeros(positions.size, np.int64)
    extended = np.full(stream.size, -1, np.int32)
    slot = 0
    for context in range(contexts):
        offsets[context] = distinct
        while slot < buckets[context]:
            i = positions[slot]
            slot += 1
            if distinct == offsets[context] or ids[i] != suffixes[distinct - 1]:
                words[distinct] = stream[i]
                suffixes[distinct] = ids[i]
                distinct += 1
            occurrences[distinct - 1] += 1
            extended[i] = distinct - 1
    offsets[contexts] = distinct
    return (
        offsets,
        words[:distinct].copy(),
        occurrences[:distinct].copy(),
        suffixes[:distinct].copy(),
        extended,
    )
