"""Hash tables from byte strings to numbers, and encoding with them, compiled.

A table is int64 (capacity, 4), capacity a power of two, with open addressing and linear probing; a row is

    low    the first 8 bytes of a short key (at most 15 bytes);   of a long key a 64-bit hash of its bytes
    high   its other 7 bytes, and its length in the top byte;     its length, and the top bit set
    two values; with a long key the second one is the place of its bytes in `store`. high = 0 marks an empty row.

Two keys are equal where both first columns are, and for long keys the stored bytes too, so no collision of hashes ever
gives a wrong answer. Keys are read in whole words: `words[i]` is the 64-bit integer at byte i (unaligned), and every
buffer has 16 bytes more than its content. `state` is [rows in use, bytes of `store` in use, ...].

All functions are in this one file because numba's cache on disk notices changes of a kernel's own file only.
"""

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.bpe.inlining import inlined

Integers = NDArray[np.int64]
Places = NDArray[np.int32]
Ids = NDArray[np.uint32]

SHORT = 15
"""Bytes of the longest key that is held in its row."""
NONE = 2**31 - 1
"""In place of a rank: no such token."""
INLINE = 4
"""Ids that a row of the cache holds itself."""
CACHED = 256
"""Bytes of the longest piece that the cache keeps."""

_LOW = np.array([0] + [(1 << 8 * min(n, 8)) - 1 for n in range(1, 16)], dtype=np.uint64).view(np.int64)
_HIGH = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(16)], dtype=np.int64)
_LONG = -(2**63)
# Unsigned: numba takes it for granted that signed products and sums never overflow, and LLVM builds on that.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_OTHER_MULTIPLIER = np.uint64(0xC2B2AE3D27D4EB4F)  # from xxHash
_HALF = np.uint64(32)


@inlined
def slot_of(low: int, high: int, capacity: int) -> int:
    """Where the search for a key begins."""
    mixed = np.uint64(low) * _MULTIPLIER + np.uint64(high) * _OTHER_MULTIPLIER
    mixed = (mixed ^ mixed >> _HALF) * _MULTIPLIER
    return int(np.int64(mixed >> _HALF) & (capacity - 1))


@inlined
def long_low(words: Integers, at: int, length: int) -> int:
    """64-bit hash of a long key."""
    mixed = np.uint64(length) * _OTHER_MULTIPLIER
    for place in range(at, at + length - 8, 8):
        mixed = (mixed ^ np.uint64(words[place])) * _MULTIPLIER
        mixed ^= mixed >> _HALF
    mixed = (mixed ^ np.uint64(words[at + length - 8])) * _MULTIPLIER
    return int(np.int64(mixed ^ mixed >> _HALF))


@inlined
def same(words: Integers, at: int, others: Integers, other_at: int, length: int) -> bool:
    """Whether two long keys have the same bytes."""
    for offset in range(0, length - 8, 8):
        if words[at + offset] != others[other_at + offset]:
            return False
    return bool(words[at + length - 8] == others[other_at + length - 8])


@inlined
def find(table: Integers, store: Integers, words: Integers, at: int, length: int) -> tuple[int, int, int]:
    """(row, low, high) of the key at `at`: the row that holds it, or the empty one where it belongs."""
    if length <= SHORT:
        low = words[at] & _LOW[length]
        high = (words[at + 8] & _HIGH[length]) | length << 56
    else:
        low = long_low(words, at, length)
        high = length | _LONG
    row = slot_of(low, high, len(table))
    while True:
        found = table[row, 1]
        if found == 0:
            break
        if (
            found == high
            and table[row, 0] == low
            and (length <= SHORT or same(words, at, store, table[row, 3], length))
        ):
            break
        row = (row + 1) & (len(table) - 1)
    return row, low, high


@inlined
def keep(store: Integers, used: int, words: Integers, at: int, length: int) -> None:
    """Copy the bytes of a long key to `store`."""
    for offset in range(0, length - 8, 8):
        store[used + offset] = words[at + offset]
    store[used + length - 8] = words[at + length - 8]


@compiled
def tally(
    words: Integers,
    start: int,
    ends: Places,
    first: int,
    count: int,
    weights: Integers,
    step: int,
    table: Integers,
    store: Integers,
    state: Integers,
) -> int:
    """Add to the value of the pieces `first` to `count` - 1, which lie one behind the other from `start` on.

    Piece i counts `weights[i * step]`. Returns the first piece that was not added because the table (half full) or
    the store must grow first; `count` when all are done. `start` is where piece `first` starts.
    """
    at = int(start)
    for index in range(first, count):
        end = int(ends[index])
        length = end - at
        row, low, high = find(table, store, words, at, length)
        if table[row, 1] == 0:
            if 2 * state[0] >= len(table) or state[1] + length > len(store):
                return index
            table[row, 0] = low
            table[row, 1] = high
            if length > SHORT:
                table[row, 3] = state[1]
                keep(store, state[1], words, at, length)
                state[1] += length
            state[0] += 1
        table[row, 2] += weights[index * step]
        at = end
    return count


@compiled
def rehash(old: Integers, new: Integers) -> None:
    """Move all rows to an empty table."""
    for source in range(len(old)):
        if old[source, 1] != 0:
            row = slot_of(old[source, 0], old[source, 1], len(new))
            while new[row, 1] != 0:
                row = (row + 1) & (len(new) - 1)
            for column in range(4):
                new[row, column] = old[source, column]


@inlined
def rank_of(table: Integers, store: Integers, longest: int, words: Integers, at: int, length: int) -> int:
    """Rank of a token by its bytes, NONE where there is no such token."""
    if length > longest:
        return NONE
    row, _, _ = find(table, store, words, at, length)
    return table[row, 2] - 1 if table[row, 1] != 0 else NONE


@compiled
def merge_short(
    words: Integers,
    at: int,
    length: int,
    table: Integers,
    store: Integers,
    longest: int,
    byte_pairs: Places,
    scratch: Places,
    out: Ids,
    written: int,
) -> int:
    """Byte-pair encode a piece of at most 64 bytes: the lowest rank first, the leftmost of equals.


    Returns how many ids. `scratch` (3, 65): start, id and rank (together with its right neighbour) of each part.
    """
    starts, ids, ranks = scratch[0], scratch[1], scratch[2]
    byte = words[at] & 255
    for index in range(length):
        following = words[at + index + 1] & 255
        starts[index] = index
        ids[index] = byte_pairs[65536 + byte]
        ranks[index] = byte_pairs[byte << 8 | following]
        byte = following
    starts[length] = length
    parts = length
    while True:
        best, lowest = 0, NONE
        for index in range(parts - 1):
            if ranks[index] < lowest:
                best, lowest = index, ranks[index]
        if lowest == NONE:
            break
        ids[best] = lowest
        parts -= 1
        for index in range(best + 1, parts):
            starts[index] = starts[index + 1]
            ids[index] = ids[index + 1]
            ranks[index] = ranks[index + 1]
        starts[parts] = length
        for index in range(max(best - 1, 0), best + 1):
            if index + 1 < parts:
                joined = starts[index + 2] - starts[index]
                ranks[index] = rank_of(table, store, longest, words, at + starts[index], joined)
    for index in range(parts):
        out[written + index] = ids[index]
    return parts


@inlined
def sift_down(heap: Integers, size: int, key: int) -> None:
    """Put `key` in place of the smallest entry of a binary heap."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = key


@inlined
def sift_up(heap: Integers, size: int, key: int) -> None:
    """Add `key` to a binary heap of `size` entries."""
    hole = size
    while hole > 0 and heap[(hole - 1) >> 1] > key:
        heap[hole] = heap[(hole - 1) >> 1]
        hole = (hole - 1) >> 1
    heap[hole] = key


@compiled
def merge_long(
    words: Integers,
    at: int,
    length: int,
    table: Integers,
    store: Integers,
    longest: int,
    byte_pairs: Places,
    out: Ids,
    written: int,
) -> int:
    """As `merge_short` for any length: a linked list of parts, a heap of (rank, start). n log n."""
    following = np.empty(length + 1, dtype=np.int32)
    preceding = np.empty(length + 1, dtype=np.int32)
    ids = np.empty(length, dtype=np.int32)
    ranks = np.empty(length, dtype=np.int32)
    heap = np.empty(3 * length, dtype=np.int64)
    size = 0
    byte = words[at] & 255
    for index in range(length):
        next_byte = words[at + index + 1] & 255
        following[index], preceding[index] = index + 1, index - 1
        ids[index] = byte_pairs[65536 + byte]
        ranks[index] = byte_pairs[byte << 8 | next_byte] if index + 1 < length else NONE
        if ranks[index] != NONE:
            sift_up(heap, size, int(ranks[index]) << 32 | index)
            size += 1
        byte = next_byte
    while size > 0:
        left = heap[0] & 0xFFFFFFFF
        rank = heap[0] >> 32
        size -= 1
        sift_down(heap, size, heap[size])
        # A part that has changed since has another rank: one rank from one start is always the same two parts.
        if ranks[left] != rank:
            continue
        right = int(following[left])
        behind = int(following[right])
        ids[left], ranks[right] = rank, NONE
        following[left] = behind
        preceding[behind] = left
        for turn in range(2):
            start = int(preceding[left]) if turn else left
            if start < 0 or following[start] == length:
                if start >= 0:
                    ranks[start] = NONE
                continue
            joined = int(following[following[start]]) - start
            ranks[start] = rank_of(table, store, longest, words, at + start, joined)
            if ranks[start] != NONE:
                sift_up(heap, size, int(ranks[start]) << 32 | start)
                size += 1
    count = 0
    index = 0
    while index < length:
        out[written + count] = ids[index]
        count += 1
        index = int(following[index])
    return count


@compiled
def encode(
    words: Integers,
    bounds: Integers,
    ends: Places,
    count: int,
    table: Integers,
    store: Integers,
    longest: int,
    byte_pairs: Places,
    cache: Integers,
    cache_store: Integers,
    cached_ids: Ids,
    state: Integers,
    scratch: Places,
    out: Ids,
    offsets: Integers,
) -> None:
    """Write the ids of the next `count` pieces to `out`, and to `offsets` where the ids of each document end.

    `state` is [rows of the cache, its bytes, its ids, document, place in the text, ids written] and moves along.
    `out` has room for one id a byte and `INLINE` more. `cached_ids` has as many places as `cache_store` has bytes.
    """
    document, at, written = state[3], state[4], state[5]
    for index in range(count):
        end = int(ends[index])
        length = end - at
        while bounds[document + 1] <= at:
            offsets[document + 1] = written
            document += 1
        row, low, high = find(cache, cache_store, words, at, length)
        if cache[row, 1] != 0:
            first, second = cache[row, 2], cache[row, 3]
            if length <= SHORT and second >= 0:
                # Four ids of 28 bits in two words, and how many count in the top bits.
                out[written] = first & 0xFFFFFFFF
                out[written + 1] = first >> 32
                out[written + 2] = second & 0xFFFFFFFF
                out[written + 3] = (second >> 32) & 0xFFFFFFF
                written += second >> 60
            else:
                for offset in range(first & 0xFFFF):
                    out[written + offset] = cached_ids[(first >> 16) + offset]
                written += first & 0xFFFF
            at = end
            continue
        rank = rank_of(table, store, longest, words, at, length)
        if rank != NONE:
            out[written] = rank
            parts = 1
        elif length <= 64:
            parts = merge_short(words, at, length, table, store, longest, byte_pairs, scratch, out, written)
        else:
            parts = merge_long(words, at, length, table, store, longest, byte_pairs, out, written)
        if length <= CACHED:
            if 2 * state[0] >= len(cache) or state[1] + length > len(cache_store) or state[2] + parts > len(cached_ids):
                cache[:] = 0
                state[:3] = 0
                row = slot_of(low, high, len(cache))
            cache[row, 0] = low
            cache[row, 1] = high
            if length <= SHORT and parts <= INLINE:
                for offset in range(parts, INLINE):
                    out[written + offset] = 0
                cache[row, 2] = np.int64(out[written]) | np.int64(out[written + 1]) << 32
                cache[row, 3] = np.int64(out[written + 2]) | np.int64(out[written + 3]) << 32 | int(parts) << 60
            else:
                cache[row, 2] = state[2] << 16 | parts
                for offset in range(parts):
                    cached_ids[state[2] + offset] = out[written + offset]
                state[2] += parts
                cache[row, 3] = -1
                if length > SHORT:
                    cache[row, 3] = state[1]
                    keep(cache_store, state[1], words, at, length)
                    state[1] += length
            state[0] += 1
        written += parts
        at = end
    state[3], state[4], state[5] = document, at, written
