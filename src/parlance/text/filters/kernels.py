"""The loops of the quality filters over the words of one text, compiled.

Symbols: R runs of the text without white space, W words in them, L lines. n-grams are compared by 64-bit hashes of
their words' hashes, so two different ones are taken for equal with a probability of about W^2 / 2^65.
"""

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.shingling import roll

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]

_FREE, _ONE, _S32 = np.uint64(0), np.uint64(1), np.uint64(32)  # no key is _FREE


@compiled
def gather(
    runs: Int32, firsts: Int32, all_hashes: UInt64, all_lengths: Int32, kinds: UInt8, hashes: UInt64, lengths: Int32
) -> tuple[int, int, int, int, int]:
    """Write hash and length of every word of the `runs` (R,) into (W,) arrays; returns the sums of `view.Totals`.

    The bits of `kinds` are those of `filters.table`; so they are in `count_sentences`.
    """
    count = proper = characters = with_letter = longest = 0
    for run in runs:
        length = 0
        for word in range(firsts[run], firsts[run + 1]):
            hashes[count] = all_hashes[word]
            lengths[count] = all_lengths[word]
            length += all_lengths[word]
            count += 1
            if kinds[word] & 1:
                proper += 1
                characters += all_lengths[word]
            if kinds[word] & 2:
                with_letter += 1
        longest = max(longest, length)
    return count, proper, characters, with_letter, longest


@compiled
def count_present(hashes: UInt64, wanted: UInt64) -> int:
    """How many of the `wanted` hashes (at most 64, all different) occur among `hashes` (W,)."""
    found = np.zeros(wanted.size, dtype=np.uint8)
    for present in hashes:
        for index in range(wanted.size):
            if present == wanted[index]:
                found[index] = 1
    return int(found.sum())


@compiled
def count_sentences(runs: Int32, line_ends: Int32, firsts: Int32, kinds: UInt8, enough: int) -> int:
    """Sentences of lines that end at `line_ends` (L,) in `runs` (R,); stops counting at `enough`.

    A sentence ends at a terminal mark and the punctuation that follows it, or where the line ends; every line has one.
    """
    sentences = 0
    run = 0
    for end in line_ends:
        is_ended = False
        while run < end:
            for word in range(firsts[runs[run]], firsts[runs[run] + 1]):
                if kinds[word] & 4:
                    is_ended = True
                elif is_ended and not kinds[word] & 8:
                    is_ended = False
                    sentences += 1
            run += 1
        sentences += 1
        if sentences >= enough:
            break
    return sentences


@compiled
def repeated_ngrams(
    hashes: UInt64,
    lengths: Int32,
    top_orders: Int64,
    duplicate_orders: Int64,
    single: bool,
    top: Int64,
    duplicate: Int64,
) -> None:
    """Characters in repeated n-grams of the words `hashes`, `lengths` (W,).

    `top[i]`: the most frequent n-gram of order `top_orders[i]`, the first of several: its length, with one space
    between words, times its count; 0 where none occurs twice, unless `single`. `duplicate[i]`: summed lengths, without
    spaces, of the n-grams of order `duplicate_orders[i]` that occurred before; the scan goes on behind each one that
    did.
    """
    W = hashes.size
    size = 16
    while size < 2 * W:
        size *= 2
    mask = np.uint64(size - 1)
    keys = np.empty(size, dtype=np.uint64)
    counts = np.empty(size, dtype=np.int32)
    places = np.empty(size, dtype=np.int32)
    grams = np.empty(W, dtype=np.uint64)
    unrepeated = 1 << 62  # n-grams of this order and above occur once
    for index in range(top_orders.size):
        n = top_orders[index]
        top[index] = 0
        best = best_place = 0
        if n < unrepeated:
            grams_count = roll(hashes, W, n, grams)
            keys[:] = _FREE
            for place in range(grams_count):
                key = max(grams[place], _ONE)
                slot = (key >> _S32) & mask
                while keys[slot] != key and keys[slot] != _FREE:
                    slot = (slot + _ONE) & mask
                if keys[slot] == _FREE:
                    keys[slot] = key
                    counts[slot] = 0
                    places[slot] = place
                counts[slot] += 1
                if counts[slot] > best or (counts[slot] == best and places[slot] < best_place):
                    best = counts[slot]
                    best_place = places[slot]
            if best < 2:
                unrepeated = n
        if best < 2:
            best = 1 if single and n <= W else 0
            best_place = 0
        if best:
            top[index] = best * (lengths[best_place : best_place + n].sum() + n - 1)
    for index in range(duplicate_orders.size):
        n = duplicate_orders[index]
        duplicate[index] = 0
        if n >= unrepeated:
            continue
        grams_count = roll(hashes, W, n, grams)
        keys[:] = _FREE
        place = 0
        while place < grams_count:
            key = max(grams[place], _ONE)
            slot = (key >> _S32) & mask
            while keys[slot] != key and keys[slot] != _FREE:
                slot = (slot + _ONE) & mask
            if keys[slot] == key:
                for offset in range(n):
                    duplicate[index] += lengths[place + offset]
                place += n
            else:
                keys[slot] = key
                place += 1
        if duplicate[index] == 0:
            unrepeated = n
