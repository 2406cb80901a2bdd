"""Byte-pair training, compiled: the most frequent pair first, of equally frequent ones the pair with the lowest ids.

All pieces lie in one array of places, an empty place in front of each and behind the last. A place is the start of a
token, the last byte of one, both, or inside one. Three ideas keep a merge as cheap as the places it changes:

* Occurrences of a pair are a chain through a log that only grows, in ascending order of place. A chain is complete when
  its pair appears, because later merges only take occurrences away; those are recognised by the tokens at their place.
* A merge of (a, b) into n changes pairs (x, a), (b, y) and makes (x, n), (n, y). They are summed in arrays indexed by
  x and y, and the hash table of pairs is touched once for each different neighbour, not once for each occurrence.
* The heap holds counts that may have fallen since; an entry is compared with the table when it comes to the top.

This gives the merges of rustbpe (github.com/karpathy/rustbpe), which defines the order, with 64-bit counts.
"""

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled

Integers = NDArray[np.int64]
Places = NDArray[np.int32]

# Unsigned: numba takes it for granted that signed products never overflow, and LLVM builds on that.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio
_HALF = np.uint64(32)
_FIRST, _LAST, _PIECE = 0, 1, 2


@compiled
def pair_row(pairs: Integers, key: int) -> int:
    """Row of (key + 1, count) in the hash table of pairs: the one that has it, or the empty one where it belongs."""
    mixed = np.uint64(key) * _MULTIPLIER
    mixed = (mixed ^ mixed >> _HALF) * _MULTIPLIER
    row = int(np.int64(mixed >> _HALF)) & (len(pairs) - 1)
    while pairs[row, 0] != 0 and pairs[row, 0] != key + 1:
        row = (row + 1) & (len(pairs) - 1)
    return row


@compiled
def before(heap: Integers, i: int, count: int, key: int) -> bool:
    """Whether entry i of the heap is merged before (count, key)."""
    return bool(heap[i, 0] > count or (heap[i, 0] == count and heap[i, 1] < key))


@compiled
def lower(heap: Integers, size: int, count: int, key: int) -> None:
    """Put (count, key) in place of the top of a heap of `size` entries."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and before(heap, child + 1, heap[child, 0], heap[child, 1]):
            child += 1
        if not before(heap, child, count, key):
            break
        heap[hole, 0], heap[hole, 1] = heap[child, 0], heap[child, 1]
        hole = child
    heap[hole, 0], heap[hole, 1] = count, key


@compiled
def raise_up(heap: Integers, size: int, count: int, key: int) -> None:
    """Add (count, key) to a heap of `size` entries."""
    hole = size
    while hole > 0 and not before(heap, (hole - 1) >> 1, count, key):
        parent = (hole - 1) >> 1
        heap[hole, 0], heap[hole, 1] = heap[parent, 0], heap[parent, 1]
        hole = parent
    heap[hole, 0], heap[hole, 1] = count, key


@compiled
def lay_out(data: NDArray[np.uint8], offsets: Integers, places: Places) -> None:
    """Fill `places` (bytes + pieces + 1, 3): first token, last token, piece; -1 where no token starts or ends."""
    place = 0
    for piece in range(len(offsets) - 1):
        places[place, _FIRST] = places[place, _LAST] = places[place, _PIECE] = -1
        place += 1
        for at in range(offsets[piece], offsets[piece + 1]):
            places[place, _FIRST] = places[place, _LAST] = data[at]
            places[place, _PIECE] = piece
            place += 1
    places[place, _FIRST] = places[place, _LAST] = places[place, _PIECE] = -1


@compiled
def grown(rows: Integers) -> Integers:
    """The same rows in twice the space; the others are zeros."""
    larger = np.zeros((2 * len(rows), 2), dtype=np.int64)
    for row in range(len(rows)):
        larger[row, 0], larger[row, 1] = rows[row, 0], rows[row, 1]
    return larger


@compiled
def train(
    places: Places,
    counts: Integers,
    merges: Integers,
    lengths: Places,
    log: Places,
    sums: Integers,
    parts: Places,
    touched: Places,
    first_sums: Integers,
    first_parts: Places,
) -> int:
    """Fill `merges` (M, 2) with the pairs of ids that become 256, 257, ...; returns how many there are, at most M.

    The other arguments are working space: `lengths` (256 + M) of ones, bytes of each token; `log` (3 places, 2), the
    place of an occurrence and the next entry of its chain; and what one merge adds: on each side, by the neighbour's
    id, occurrences with their weights `sums` (2, 256 + M) of zeros, first and last entry of their chains `parts`
    (4, 256 + M) of -1, ids met `touched` (2, 256 + M); `first_sums` (256, 256) of zeros and `first_parts` (512, 256)
    of -1 are the same for all pairs of bytes.
    """
    logged = 0
    pairs = np.zeros((1 << 12, 2), dtype=np.int64)
    chains = np.zeros(1 << 12, dtype=np.int64)  # first entry of the chain of the pair in the same row
    in_use = 0
    heap = np.zeros((1 << 12, 2), dtype=np.int64)
    size = 0
    number = np.zeros(2, dtype=np.int64)

    # Step 0 fills the table with the pairs of bytes, one first byte a time; step n + 1 does merge n.
    for place in range(1, len(places) - 1):
        a, b = places[place, _FIRST], places[place + 1, _FIRST]
        if a >= 0 and b >= 0:
            first_sums[a, b] += counts[places[place, _PIECE]]
            log[logged, 0], log[logged, 1] = place, -1
            if first_parts[a, b] < 0:
                first_parts[a, b] = logged
            else:
                log[first_parts[256 + a, b], 1] = logged
            first_parts[256 + a, b] = logged
            logged += 1

    done = 0
    step = -256
    while done < len(merges):
        if step < 0:
            # Bytes: pairs (a, *) as if a were a new token with neighbours on its right.
            new = step + 256
            a = b = -1
            doubled = 0
            number[0] = number[1] = 0
            for y in range(256):
                if first_sums[new, y] > 0:
                    sums[1, y] = first_sums[new, y]
                    parts[1, y], parts[3, y] = first_parts[new, y], first_parts[256 + new, y]
                    touched[1, number[1]] = y
                    number[1] += 1
            step += 1
        else:
            if size == 0:
                break
            count, key = heap[0, 0], heap[0, 1]
            row = pair_row(pairs, key)
            current = pairs[row, 1]
            if current != count or current <= 0:
                if current > 0:
                    lower(heap, size, current, key)
                else:
                    size -= 1
                    lower(heap, size, heap[size, 0], heap[size, 1])
                continue
            size -= 1
            lower(heap, size, heap[size, 0], heap[size, 1])
            a, b = key >> 32, key & 0xFFFFFFFF
            new = 256 + done
            merges[done, 0], merges[done, 1] = a, b
            done += 1
            lengths[new] = lengths[a] + lengths[b]
            doubled = 0  # occurrences of (new, a) that became (new, new) within this merge
            number[0] = number[1] = 0
            entry = chains[row]
            while entry >= 0:
                place = log[entry, 0]
                entry = log[entry, 1]
                if places[place, _FIRST] != a:
                    continue
                middle = place + lengths[a]
                if places[middle, _FIRST] != b:
                    continue
                behind = middle + lengths[b]
                weight = counts[places[place, _PIECE]]
                x, y = places[place - 1, _LAST], places[behind, _FIRST]
                places[middle, _FIRST] = -1
                places[place, _FIRST] = new
                places[behind - 1, _LAST] = new
                for side in range(2):
                    neighbour = y if side else x
                    if neighbour < 0:
                        continue
                    if parts[side, neighbour] < 0:
                        touched[side, number[side]] = neighbour
                        number[side] += 1
                        parts[side, neighbour] = logged
                    else:
                        log[parts[2 + side, neighbour], 1] = logged
                    parts[2 + side, neighbour] = logged
                    sums[side, neighbour] += weight
                    log[logged, 0], log[logged, 1] = place if side else place - lengths[x], -1
                    logged += 1
                if x == new:
                    doubled += weight

        for side in range(2):
            for index in range(number[side]):
                neighbour = int(touched[side, index])
                weight = sums[side, neighbour]
                if a >= 0 and neighbour != new:
                    pairs[pair_row(pairs, b << 32 | neighbour if side else neighbour << 32 | a), 1] -= weight
                if side and neighbour == a:
                    weight -= doubled
                if weight > 0:
                    key = new << 32 | neighbour if side else neighbour << 32 | new
                    row = pair_row(pairs, key)
                    pairs[row, 0], pairs[row, 1] = key + 1, weight
                    chains[row] = parts[side, neighbour]
                    in_use += 1
                    if size == len(heap):
                        heap = grown(heap)
                    raise_up(heap, size, weight, key)
                    size += 1
                    if 2 * in_use > len(pairs):
                        old_pairs, old_chains = pairs, chains
                        pairs = np.zeros((2 * len(pairs), 2), dtype=np.int64)
                        chains = np.zeros(len(pairs), dtype=np.int64)
                        for old in range(len(old_pairs)):
                            if old_pairs[old, 0] != 0:
                                row = pair_row(pairs, old_pairs[old, 0] - 1)
                                pairs[row, 0], pairs[row, 1] = old_pairs[old, 0], old_pairs[old, 1]
                                chains[row] = old_chains[old]
                sums[side, neighbour] = 0
                parts[side, neighbour] = -1
        if a >= 0:
            pairs[pair_row(pairs, a << 32 | b), 1] = 0
    return done
