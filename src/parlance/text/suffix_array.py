"""Suffix arrays of token sequences in linear time: all suffixes in order, their common prefixes, and pattern search.

Tokens are integers of any alphabet: bytes, or ids of a tokenizer. The suffix array lists the starts of all suffixes in
ascending order, a suffix before all that it begins; the occurrences of a pattern are then one contiguous run of it,
which two binary searches find. One such index serves exact-substring deduplication, searches for memorised text, and
counts of n-grams of any length.

Sorting is SA-IS (Nong, Zhang and Chan 2009): suffixes smaller than their successor whose predecessor is larger are
sorted by recursion, and the order of all others is induced from theirs in two scans. Common prefixes are computed in
text order by the Phi method (Kärkkäinen, Manzini, Puglisi 2009). Nothing here knows of documents or is kept on disk.

    tokens = np.frombuffer(b"banana", dtype=np.uint8)
    order = suffix_array(tokens)                                            # 5 3 1 0 4 2
    occurrences(tokens, order, np.frombuffer(b"an", dtype=np.uint8))        # (1, 3): suffixes order[1:3]

Memory beside the tokens: the array itself, 4 bytes a token (8 from 2^31 - 1 tokens on), and while sorting 8 (16) bytes
for each symbol of the alphabet or of one level of the recursion: some 2 bytes a token for text, 4 (8) at worst.
`lcp_array` takes 8 (16) bytes a token, of which it returns half. Ids that are large for the number of tokens are first
renumbered, which takes another 20 bytes a token; ids of 8 bytes are copied to 4.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled

Tokens = NDArray[np.integer[Any]]
Order = NDArray[np.signedinteger[Any]]
"""int32 below 2^31 - 1 tokens, int64 from there on."""

_SPARSE = 2  # renumber ids where the alphabet is so many times larger than the sequence is long


@dataclass(frozen=True)
class Match:
    """The longest beginning of a query that occurs in the tokens, and where."""

    length: int
    """Tokens of the query that match; 0 where not even the first occurs."""
    first: int
    """Its occurrences are the suffixes order[first:last]; all of them where the length is 0."""
    last: int
    """One past the last of them."""


def suffix_array(tokens: Tokens) -> Order:
    """Starts of the suffixes of `tokens` (n,), integers of any type in 0..2^63 - 1, in ascending order: shape (n,).

    Raises ValueError where `tokens` is no one-dimensional array of such integers.
    """
    _check(tokens)
    count = len(tokens)
    order: Order = np.empty(count, dtype=np.int32) if count < 2**31 - 1 else np.empty(count, dtype=np.int64)
    if not count:
        return order
    largest = int(tokens.max())
    if largest >= _SPARSE * count + 2**16:
        tokens = np.unique(tokens, return_inverse=True)[1]
        largest = int(tokens.max())
    if tokens.itemsize == 8 and largest < 2**32:
        tokens = tokens.astype(np.uint32)
    _sort(as_unsigned(tokens), largest + 1, order)
    return order


def lcp_array(tokens: Tokens, order: Order) -> Order:
    """Common prefixes of neighbours in the suffix array: [i] is that of order[i - 1] and order[i], [0] is 0."""
    common = common_prefixes(tokens, order)
    return np.take(common, order)


def common_prefixes(tokens: Tokens, order: Order) -> Order:
    """As `lcp_array` but in text order: [p] is the common prefix of suffix p and of the one before it in `order`."""
    _check(tokens)
    _check_order(tokens, order)
    common = np.empty(len(order), dtype=order.dtype)
    if len(order):
        _common_prefixes(as_unsigned(tokens), order, common)
    return common


def occurrences(tokens: Tokens, order: Order, pattern: Tokens) -> tuple[int, int]:
    """The run of suffixes order[first:last] that begin with `pattern`; empty, where it would stand, if there are none.

    The number of occurrences is last - first, their places are order[first:last], in no order of the text. An empty
    pattern begins every suffix. Time grows with len(pattern) * log(n).
    """
    first, last = 0, len(order)
    wanted = _as_integers(tokens, order, pattern)
    if len(wanted):
        first, last = _run(as_unsigned(tokens), order, wanted)
    return int(first), int(last)


def longest_match(tokens: Tokens, order: Order, query: Tokens) -> Match:
    """The longest beginning of `query` that occurs anywhere in `tokens`. Time grows with its length * log(n)."""
    wanted = _as_integers(tokens, order, query)
    if not len(wanted) or not len(order):
        return Match(0, 0, len(order))
    length = int(_longest(as_unsigned(tokens), order, wanted))
    first, last = occurrences(tokens, order, query[:length])
    return Match(length, first, last)


def _check(tokens: Tokens) -> None:
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens are a one-dimensional array of integers, not {tokens.ndim} dimensions {tokens.dtype}")
    if np.issubdtype(tokens.dtype, np.signedinteger) and len(tokens) and int(tokens.min()) < 0:
        raise ValueError(f"tokens are not negative, but one is {int(tokens.min())}")
    if tokens.dtype == np.uint64 and len(tokens) and int(tokens.max()) >= 2**63:
        raise ValueError(f"tokens are below 2^63, but one is {int(tokens.max())}")


def as_unsigned(tokens: Tokens) -> Tokens:
    """The same memory as read-only unsigned integers: each type of array that a kernel meets is compiled anew."""
    contiguous = np.ascontiguousarray(tokens)
    view: Tokens = contiguous.view(f"u{contiguous.itemsize}")
    view.flags.writeable = False
    return view


def _check_order(tokens: Tokens, order: Order) -> None:
    if len(tokens) != len(order):
        raise ValueError(f"the suffix array of {len(order)} suffixes is not that of these {len(tokens)} tokens")


def _as_integers(tokens: Tokens, order: Order, pattern: Tokens) -> NDArray[np.int64]:
    """The pattern as int64, so that its type need not be that of the tokens."""
    _check_order(tokens, order)
    wide = np.asarray(pattern)
    if wide.dtype == np.uint64:
        wide = np.minimum(wide, np.uint64(2**63 - 1))
    return np.ascontiguousarray(wide, dtype=np.int64)


def _sort(tokens: Tokens, alphabet: int, order: Order) -> None:
    """SA-IS: the suffix array of tokens (n,) < alphabet, into `order` (n,), in whose free parts the recursion works."""
    # 1. Sort the LMS substrings: put their starts at the ends of their buckets in any order, and induce.
    sizes, bounds = _buckets(tokens, alphabet, order)
    _place_unsorted(tokens, sizes, bounds, order)
    _induce(tokens, sizes, bounds, order, False)
    del sizes, bounds  # counted again below, so that only one level of the recursion holds memory of its own
    # 2. Name them by rank; the names in text order are a sequence of at most half the length.
    number, names = _name(tokens, order)
    reduced = order[len(tokens) - number :]
    ranks = order[:number]
    # 3. Its suffix array orders the suffixes that begin at these starts.
    if names < number:
        _sort(as_unsigned(reduced), names, ranks)
    else:
        _invert(reduced, ranks)
    # 4. Put them at the ends of their buckets in this order, and induce all the others.
    sizes, bounds = _buckets(tokens, alphabet, order)
    _place_sorted(tokens, sizes, bounds, order, number)
    _induce(tokens, sizes, bounds, order, True)


def _buckets(tokens: Tokens, alphabet: int, order: Order) -> tuple[Order, Order]:
    """Occurrences of each symbol, and as many unset numbers."""
    sizes = np.zeros(alphabet, dtype=order.dtype)
    _count(tokens, sizes)
    return sizes, np.empty_like(sizes)


@compiled
def _count(tokens: Tokens, sizes: Order) -> None:
    for index in range(tokens.size):
        sizes[tokens[index]] += 1


@compiled
def _ends(sizes: Order, bounds: Order) -> None:
    total = 0
    for symbol in range(sizes.size):
        total += sizes[symbol]
        bounds[symbol] = total


@compiled
def _place_unsorted(tokens: Tokens, sizes: Order, bounds: Order, order: Order) -> None:
    """The LMS starts (an S suffix after an L suffix) at the ends of their buckets, 0 elsewhere."""
    order[:] = 0
    _ends(sizes, bounds)
    is_smaller = False  # S type; the last suffix is larger than the empty one after it
    for index in range(tokens.size - 2, -1, -1):
        if tokens[index] < tokens[index + 1]:
            is_smaller = True
        elif tokens[index] > tokens[index + 1]:
            if is_smaller:
                symbol = tokens[index + 1]
                bounds[symbol] -= 1
                order[bounds[symbol]] = index + 1
            is_smaller = False


@compiled
def _induce(tokens: Tokens, sizes: Order, bounds: Order, order: Order, is_last: bool) -> None:
    """From sorted LMS starts at the ends of their buckets, place all L suffixes and then all S suffixes.

    An entry v > 0 says that suffix v - 1 is to be placed by the scan under way; ~v < 0 that it is for the other.
    Which of the two is known from the token before when v itself is placed, so that no array of types is needed.
    After the last induction all suffixes are in order; before, only the LMS starts remain, as ~v.
    """
    count = tokens.size
    total = 0
    for symbol in range(sizes.size):
        bounds[symbol] = total
        total += sizes[symbol]
    suffix = count - 1
    symbol = tokens[suffix]
    order[bounds[symbol]] = ~suffix if suffix > 0 and tokens[suffix - 1] < symbol else suffix
    bounds[symbol] += 1
    for index in range(count):
        entry = order[index]
        if entry > 0:
            suffix = entry - 1
            symbol = tokens[suffix]
            place = bounds[symbol]
            bounds[symbol] = place + 1
            order[place] = ~suffix if suffix > 0 and tokens[suffix - 1] < symbol else suffix
            order[index] = ~entry if is_last else 0
        elif entry < 0:
            order[index] = ~entry
    _ends(sizes, bounds)
    for index in range(count - 1, -1, -1):
        entry = order[index]
        if entry > 0:
            suffix = entry - 1
            symbol = tokens[suffix]
            place = bounds[symbol] - 1
            bounds[symbol] = place
            order[place] = ~suffix if suffix > 0 and tokens[suffix - 1] > symbol else suffix
            if not is_last:
                order[index] = 0
        elif entry < 0 and is_last:
            order[index] = ~entry


@compiled
def _name(tokens: Tokens, order: Order) -> tuple[int, int]:
    """Gather the sorted LMS starts in front, and write the ranks of their substrings, in text order, at the end.

    Returns how many starts there are and how many distinct substrings.
    """
    count = tokens.size
    number = 0
    for index in range(count):
        entry = order[index]
        if entry < 0:
            order[number] = ~entry
            number += 1
    order[number:] = 0
    # Lengths of the substrings, up to and with the next start. Two starts are never neighbours: half the places do.
    is_smaller = False
    end = count
    for index in range(count - 2, -1, -1):
        if tokens[index] < tokens[index + 1]:
            is_smaller = True
        elif tokens[index] > tokens[index + 1]:
            if is_smaller:
                order[number + ((index + 1) >> 1)] = end - index
                end = index + 1
            is_smaller = False
    names = 0
    previous, previous_length = 0, 0
    for index in range(number):
        start = order[index]
        length = order[number + (start >> 1)]
        # The last substring ends with the end of the text, which no other does.
        is_new = length != previous_length or start + length > count or previous + length > count
        if not is_new:
            for offset in range(length):
                if tokens[start + offset] != tokens[previous + offset]:
                    is_new = True
                    break
        names += is_new
        order[number + (start >> 1)] = names
        previous, previous_length = start, length
    free = count
    for index in range(count - 1, number - 1, -1):
        if order[index] > 0:
            free -= 1
            order[free] = order[index] - 1
    return number, names


@compiled
def _invert(reduced: Order, ranks: Order) -> None:
    for index in range(reduced.size):
        ranks[reduced[index]] = index


@compiled
def _place_sorted(tokens: Tokens, sizes: Order, bounds: Order, order: Order, number: int) -> None:
    """From the order of the `number` LMS suffixes in front of `order`: their starts at the ends of their buckets."""
    count = tokens.size
    free = count
    is_smaller = False
    for index in range(count - 2, -1, -1):
        if tokens[index] < tokens[index + 1]:
            is_smaller = True
        elif tokens[index] > tokens[index + 1]:
            if is_smaller:
                free -= 1
                order[free] = index + 1
            is_smaller = False
    for index in range(number):
        order[index] = order[count - number + order[index]]
    order[number:] = 0
    _ends(sizes, bounds)
    for index in range(number - 1, -1, -1):
        start = order[index]
        order[index] = 0
        symbol = tokens[start]
        bounds[symbol] -= 1
        order[bounds[symbol]] = start


@compiled
def _common_prefixes(tokens: Tokens, order: Order, common: Order) -> None:
    """The neighbour before each suffix is written first, then replaced by the length that they share."""
    count = tokens.size
    common[order[0]] = -1
    for index in range(1, count):
        common[order[index]] = order[index - 1]
    length = 0
    for start in range(count):
        other = common[start]
        if other < 0:
            length = 0
        else:
            most = count - max(start, other)
            while length < most and tokens[start + length] == tokens[other + length]:
                length += 1
        common[start] = length
        length = max(length - 1, 0)


@compiled
def _is_below(tokens: Tokens, start: int, wanted: NDArray[np.int64], or_equal: bool) -> bool:
    """Whether the suffix at `start`, cut to the length of `wanted`, is smaller than it (or equal to it)."""
    for offset in range(wanted.size):
        if start + offset == tokens.size:
            return True
        token = np.int64(tokens[start + offset])
        if token != wanted[offset]:
            return bool(token < wanted[offset])
    return or_equal


@compiled
def _run(tokens: Tokens, order: Order, wanted: NDArray[np.int64]) -> tuple[int, int]:
    low, high = 0, order.size
    while low < high:
        middle = (low + high) >> 1
        if _is_below(tokens, order[middle], wanted, False):
            low = middle + 1
        else:
            high = middle
    first = low
    high = order.size
    while low < high:
        middle = (low + high) >> 1
        if _is_below(tokens, order[middle], wanted, True):
            low = middle + 1
        else:
            high = middle
    return first, low


@compiled
def _longest(tokens: Tokens, order: Order, wanted: NDArray[np.int64]) -> int:
    """Where the query would stand, one of its two neighbours shares the longest beginning with it."""
    low, _ = _run(tokens, order, wanted)
    longest = 0
    for neighbour in range(max(low - 1, 0), min(low + 1, order.size)):
        start = order[neighbour]
        length = 0
        while length < wanted.size and start + length < tokens.size:
            if np.int64(tokens[start + length]) != wanted[length]:
                break
            length += 1
        longest = max(longest, length)
    return longest
