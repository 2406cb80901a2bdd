"""The n-grams of a model as one compact trie: built from levels, walked by compiled code, mapped from files.

Nodes are numbered level by level: 0..V-1 the tokens, V the begin mark, then the bigrams sorted by (first word's node,
second word), the trigrams, and so on; N in all, of which the M below the highest order are contexts. A node costs 4
bytes for its log-probability and as many bits for its last word as the vocabulary needs; a context 8 bytes more, for
its children and its back-off weight.

The four arrays are `.npy` files that are mapped, not read: opening takes no time. Compiled code checks no indices, so
every index that it takes from a file is bounded where it is used: damage gives wrong probabilities, never a crash.

    trie = build_trie(parts, vocab_size=8, end_of_text=0)
    score_tokens(np.array([5, 3, 0], np.int32), trie)
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parlance.core.artifacts import os_errors
from parlance.core.compiled import compiled
from parlance.core.devices import usable_cores
from parlance.core.errors import UserError
from parlance.models.ngram_counts import Int32, Int64, Level
from parlance.models.ngram_smoothing import Smoothed

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

ARRAYS = ("words", "first_child", "log_values", "log_backoffs")
NOTHING = -1
"""In place of a token: before the begin mark."""
_BLOCK = 1024
"""Tokens that are scored together: what is known of them stays in the nearest cache."""
_TOKENS_A_THREAD = 1 << 16
"""Fewer are not worth a thread."""


class Trie(NamedTuple):
    """What the compiled functions read; arrays are read-only."""

    order: int
    """Longest n-gram."""
    begin: int
    """The begin mark, which is V; tokens are smaller."""
    end: int
    """`end_of_text`; -1 for none."""
    bits: int
    """Width of a word in `words`: the bits of V - 1, at least 1."""
    words: UInt32
    """Last words of the nodes from V + 1 on, `bits` each, from the lowest bit of the first element up; one more element
    than that fills, so that two can always be read."""
    first_child: UInt32
    """(M + 1,) the children of node i are nodes first_child[i] to first_child[i + 1] - 1."""
    log_values: Float32
    """(N,) log p(w | h) of the n-gram hw, in nats; -inf for the begin mark."""
    log_backoffs: Float32
    """(M,) log b(h): what scales the shorter context's probabilities where hw is not kept."""


def bits_of(vocab_size: int) -> int:
    """Bits of the largest token id."""
    return max(1, (vocab_size - 1).bit_length())


def packed_length(nodes: int, vocab_size: int) -> int:
    """Elements of `Trie.words` for N nodes."""
    return -(-(nodes - vocab_size - 1) * bits_of(vocab_size) // 32) + 1


def build_trie(
    parts: Sequence[tuple[Level, Smoothed]], vocab_size: int, end_of_text: int | None
) -> tuple[Trie, tuple[int, ...]]:
    """The kept n-grams of all levels; returns also how many there are of each order."""
    counts = tuple(int(np.count_nonzero(smoothed.kept)) for _, smoothed in parts)
    starts = np.cumsum((0, *counts))
    if starts[-1] >= 2**32:
        raise UserError(f"{starts[-1]} n-grams are more than a model holds (2^32): lower the order, or prune")
    first_child = np.empty(sum(counts[:-1]) + 1, np.uint32)
    log_values = np.empty(sum(counts), np.float32)
    log_backoffs = np.empty(sum(counts[:-1]), np.float32)
    bits = bits_of(vocab_size)
    words = np.zeros(packed_length(sum(counts), vocab_size), np.uint32)
    contexts_kept = np.ones(1, np.bool_)
    with np.errstate(divide="ignore"):  # log 0 of the begin mark, which is not predicted
        for k, (level, smoothed) in enumerate(parts):
            here, kept = slice(*starts[k : k + 2]), smoothed.kept
            everything = counts[k] == kept.size
            log_values[here] = np.log(smoothed.values if everything else smoothed.values[kept])
            if k > 0:
                before = level.offsets if everything else np.append(0, np.cumsum(kept))[level.offsets]
                above = slice(*starts[k - 1 : k + 1])
                whole = counts[k - 1] == contexts_kept.size
                first_child[above] = (before[:-1] if whole else before[:-1][contexts_kept]) + starts[k]
                log_backoffs[above] = np.log(smoothed.backoffs if whole else smoothed.backoffs[contexts_kept])
                _pack(level.words if everything else level.words[kept], int(starts[k]) - vocab_size - 1, bits, words)
            contexts_kept = kept
    first_child[-1] = starts[-1]
    return trie_of(len(parts), vocab_size, end_of_text, words, first_child, log_values, log_backoffs), counts


def trie_of(
    order: int,
    vocab_size: int,
    end_of_text: int | None,
    words: UInt32,
    first_child: UInt32,
    log_values: Float32,
    log_backoffs: Float32,
) -> Trie:
    """The arrays made read-only: they are shared, and one kind of array needs one compilation."""
    for array in (words, first_child, log_values, log_backoffs):
        array.flags.writeable = False
    end = NOTHING if end_of_text is None else end_of_text
    return Trie(order, vocab_size, end, bits_of(vocab_size), words, first_child, log_values, log_backoffs)


def save_arrays(trie: Trie, folder: Path) -> int:
    """Write one `.npy` file an array into an existing folder; returns the checksum that `open_arrays` takes."""
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        with os_errors("write", path):
            np.save(path, getattr(trie, name), allow_pickle=False)
    return _checksum([getattr(trie, name) for name in ARRAYS])


def open_arrays(folder: Path, vocab_size: int, counts: Sequence[int], checksum: int, check_up_to: int) -> list[Any]:
    """Map the arrays of a folder, in the order of `ARRAYS`.

    Raises UserError where a file is missing, is not an array, or has not the type and size that the numbers of n-grams
    ask for; and, where all are together at most `check_up_to` bytes, where their checksum is another. Larger ones are
    not read through.
    """
    nodes, contexts = sum(counts), sum(counts[:-1])
    expected = {
        "words": ("uint32", packed_length(nodes, vocab_size)),
        "first_child": ("uint32", contexts + 1),
        "log_values": ("float32", nodes),
        "log_backoffs": ("float32", contexts),
    }
    arrays = [_open_array(folder / f"{name}.npy") for name in ARRAYS]
    fits = all((a.dtype.name, *a.shape) == expected[name] for name, a in zip(ARRAYS, arrays, strict=True))
    small = sum(array.nbytes for array in arrays) <= check_up_to
    if not fits or (small and _checksum(arrays) != checksum):
        raise UserError(f"the arrays in {folder} do not fit its config.json: copy the folder again, or train again")
    return arrays


def _checksum(arrays: Sequence[npt.NDArray[Any]]) -> int:
    """CRC-32 of all bytes."""
    value = 0
    for array in arrays:
        value = zlib.crc32(array.data, value)
    return value


def _open_array(path: Path) -> npt.NDArray[Any]:
    try:
        # np.asarray sheds the memmap subclass, not the mapping.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}): copy the model's folder again, or train again") from error


def unpacked_words(trie: Trie) -> Int32:
    """(N,) last word of each node."""
    words = np.empty(trie.log_values.size, np.int32)
    _unpack(trie, words)
    return words


def score_tokens(tokens: Int32, trie: Trie) -> Float64:
    """(T,) log p of each token, in nats, of documents with `end_of_text` between them, from the beginning of one.

    Long streams are cut into one part a core: a token depends on no more than the order - 1 tokens before it.
    """
    scores = np.empty(tokens.size, np.float64)
    parts = max(1, min(usable_cores(), tokens.size // _TOKENS_A_THREAD))
    if parts == 1:
        _score(tokens, 0, tokens.size, trie, scores)
    else:
        bounds = [tokens.size * part // parts for part in range(parts + 1)]
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(lambda start, stop: _score(tokens, start, stop, trie, scores), bounds[:-1], bounds[1:]))
    return scores


def score_in_one_part(tokens: Int32, trie: Trie) -> Float64:
    """`score_tokens` on this thread alone."""
    scores = np.empty(tokens.size, np.float64)
    _score(tokens, 0, tokens.size, trie, scores)
    return scores


def fill_log_probs(before: Int64, tokens: Int64, trie: Trie, out: Float32) -> None:
    """Log-probabilities of every next token after each of `tokens` (B, T), preceded by `before` (B, order - 1), into
    `out` (B, T, V). Work per position: V, and the number of words seen after each of its contexts."""
    _fill(before, tokens, trie, out)


@compiled
def _pack(values: Int32, start: int, bits: int, words: UInt32) -> None:
    """Write `values` into `words`, zero so far, from element `start` on, `bits` each."""
    for j in range(values.size):
        bit = (start + j) * bits
        value = np.uint64(values[j]) << np.uint64(bit & 31)
        words[bit >> 5] |= np.uint32(value & np.uint64(0xFFFFFFFF))
        words[(bit >> 5) + 1] |= np.uint32(value >> np.uint64(32))


@compiled
def _word(node: int, trie: Trie) -> int:
    """Last word of a node beyond the begin mark."""
    bit = (node - trie.begin - 1) * trie.bits
    low = np.uint64(trie.words[bit >> 5])
    high = np.uint64(trie.words[(bit >> 5) + 1])
    both = (low | (high << np.uint64(32))) >> np.uint64(bit & 31)
    return int(both & ((np.uint64(1) << np.uint64(trie.bits)) - np.uint64(1)))


@compiled
def _unpack(trie: Trie, words: Int32) -> None:
    for node in range(words.size):
        words[node] = node if node <= trie.begin else _word(node, trie)


@compiled
def _children(context: int, trie: Trie) -> tuple[int, int]:
    """The first of a context's children and the first beyond them, within the trie whatever the file says."""
    start = max(int(trie.first_child[context]), trie.begin + 1)
    return start, min(int(trie.first_child[context + 1]), trie.log_values.size)


@compiled
def _search(low: int, left: int, word: int, trie: Trie) -> int:
    """Which of the `left` > 0 siblings from node `low` on has `word`, or -1.

    A binary search without branches but for its length: what is looked up next need not wait for a wrong guess.
    """
    while left > 1:
        half = left >> 1
        low += half if _word(low + half, trie) <= word else 0
        left -= half
    return low if _word(low, trie) == word else -1


@compiled
def _find(context: int, word: int, limit: int, trie: Trie) -> int:
    """The child of `context` with `word`, or -1. Nodes from `limit` on are not looked at."""
    low, stop = _children(context, trie)
    left = min(stop, limit) - low
    return _search(low, left, word, trie) if left > 0 else -1


@compiled
def _advance(contexts: Int64, depth: int, token: int, trie: Trie) -> tuple[int, float]:
    """Read one token: returns the new depth and log p(token | contexts), and updates `contexts` in place.

    contexts[k], 1 <= k <= depth < order, is the node of the last k tokens. A suffix of an n-gram is an n-gram, so the
    first length without a match ends the search. The begin mark and what precedes it (negative) have no probability.
    """
    if token < 0 or token == trie.begin:
        contexts[min(1, trie.order - 1)] = trie.begin
        return (0 if token < 0 else min(1, trie.order - 1)), 0.0
    node = token
    score = 0.0
    length = depth + 1  # of the longest n-gram that ends in `token`
    for k in range(1, depth + 1):
        context = contexts[k]
        contexts[k] = node
        # What is found must be a context itself, but for the highest order.
        child = _find(context, token, trie.log_values.size if k + 1 == trie.order else trie.log_backoffs.size, trie)
        if child < 0:
            score += trie.log_backoffs[context]
            for longer in range(k + 1, depth + 1):
                score += trie.log_backoffs[contexts[longer]]
            length = k
            break
        node = child
    score += trie.log_values[node]
    if length < trie.order:
        contexts[length] = node
    depth = min(length, trie.order - 1)
    if token == trie.end and trie.order > 1:
        contexts[1] = trie.begin
        depth = 1
    return depth, score


@compiled
def _score(tokens: Int32, start: int, stop: int, trie: Trie, scores: Float64) -> None:
    """Log-probabilities of tokens[start:stop] into the same places of `scores`; the first is a document's first.

    Does what `_advance` does, but order by order for a block of tokens: the searches of one order do not depend on each
    other, so the processor has many of them under way while memory answers.
    """
    order = trie.order
    stream = np.empty(2 * (_BLOCK + order), np.int64)  # with begin marks
    places = np.empty(stream.size, np.int64)  # in `tokens`; -1 for what is only context
    nodes = np.empty((order + 1, stream.size), np.int64)  # of the last k tokens, -1 where they are no n-gram
    lows, sizes, middles = np.empty_like(stream), np.empty_like(stream), np.empty_like(stream)
    for first in range(start, stop, _BLOCK):
        # 1. The block and the order - 1 tokens before it.
        n = 0
        for t in range(max(first - order + 1, 0), min(first + _BLOCK, stop)):
            if t == 0 or tokens[t - 1] == trie.end:
                stream[n], places[n] = trie.begin, -1
                n += 1
            stream[n], places[n] = tokens[t], t if t >= first else -1
            n += 1
        # 2. Nodes; what is found must be a context itself, but for the highest order.
        for i in range(n):
            nodes[1, i] = stream[i]
        for k in range(2, order + 1):
            limit = trie.log_values.size if k == order else trie.log_backoffs.size
            sizes[0] = 0
            for i in range(1, n):
                sizes[i] = 0
                if stream[i] != trie.begin and nodes[k - 1, i] >= 0 and nodes[k - 1, i - 1] >= 0:
                    lows[i], after = _children(nodes[k - 1, i - 1], trie)
                    sizes[i] = min(after, limit) - lows[i]
            for i in range(n):
                if sizes[i] > 0:
                    middles[i] = _word(lows[i] + (sizes[i] >> 1), trie)
            for i in range(n):
                nodes[k, i] = -1
                if sizes[i] == 1:
                    nodes[k, i] = lows[i] if middles[i] == stream[i] else -1
                elif sizes[i] > 1:
                    half = sizes[i] >> 1
                    low = lows[i] + (half if middles[i] <= stream[i] else 0)
                    nodes[k, i] = _search(low, half if low == lows[i] else sizes[i] - half, stream[i], trie)
        # 3. The value of the longest n-gram, and the weights of the contexts that are longer than its own.
        for i in range(n):
            if places[i] >= 0:
                length = 1
                while length < order and nodes[length + 1, i] >= 0:
                    length += 1
                score = 0.0
                if i > 0:
                    for k in range(length, order):
                        if nodes[k, i - 1] < 0:
                            break
                        score += trie.log_backoffs[nodes[k, i - 1]]
                scores[places[i]] = score + trie.log_values[nodes[length, i]]


@compiled
def _fill(before: Int64, tokens: Int64, trie: Trie, out: Float32) -> None:
    contexts = np.empty(trie.order, np.int64)
    for row in range(tokens.shape[0]):
        depth = 0
        for t in range(before.shape[1]):
            depth, _ = _advance(contexts, depth, before[row, t], trie)
        for t in range(tokens.shape[1]):
            depth, _ = _advance(contexts, depth, tokens[row, t], trie)
            # From the unigrams up: the words seen after a longer context replace what it would back off to.
            backoff = 0.0
            for k in range(1, depth + 1):
                backoff += trie.log_backoffs[contexts[k]]
            for word in range(trie.begin):
                out[row, t, word] = backoff + trie.log_values[word]
            for k in range(1, depth + 1):
                backoff -= trie.log_backoffs[contexts[k]]
                start, stop = _children(contexts[k], trie)
                for node in range(start, stop):
                    word = _word(node, trie)
                    if word < trie.begin:
                        out[row, t, word] = backoff + trie.log_values[node]
