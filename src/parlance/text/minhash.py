"""MinHash with locality-sensitive hashing: sets of hashes -> signatures -> band keys -> clusters of near duplicates.

Two sets with Jaccard similarity s agree in each place of their signatures with probability s, and share at least one of
b bands of r places with probability 1 - (1 - s^r)^b. With FineWeb's 14 bands of 8 places (Penedo et al. 2024,
arXiv:2406.17557), the default, that is 5 % at s = 0.5, half at s = 0.69 and 99.96 % at s = 0.9.

A signature is made in one pass, not one for each place (one-permutation hashing, Li, Owen and Zhang 2012): one
multiplication x -> a * x modulo 2^64 gives each hash a place, from its low half, and a rank, from its high half; each
place keeps the smallest rank. A place that no hash chose takes the minimum over all hashes of its own permutation
a_i * x + c_i modulo 2^32, as in classic MinHash (Broder 1997). Every place thereby orders all hashes in an order of its
own, the same for all sets, so that the estimate is unbiased for sets of any size (cf. Dahlgaard, Knudsen, Thorup 2017).
The hashes must be well mixed, as those of `shingling` are. Constants come from `seed` by SplitMix64 alone: signatures
are the same on every machine and with every library version.

A text of fewer words than an n-gram has no shingle and no signature: its band keys are 0, which means none, and it is
never a near duplicate. An exact comparison is left to find such texts. Nothing here decides which document to keep.

    keys = MinHasher(seed=1).bands_of_texts(texts)            # (documents, 14); other threads may run meanwhile
    clusters = connected(*equal_keys(keys), len(texts))       # (documents,)

Memory: 8 bytes a band and document; `bands_of_texts` also 16 for each byte of the longest text.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.shingling import character_table, hash_words, mix, roll

UInt8 = NDArray[np.uint8]
UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

NGRAM = 5
"""Words in a shingle."""
BANDS = 14
"""Groups of places; sharing one whole group makes two documents near duplicates."""
ROWS = 8
"""Places in a band."""

_LOW_HALF = np.uint64(0xFFFFFFFF)
_EMPTY = np.uint32(0xFFFFFFFF)
_HIGHEST = np.uint64(0xFFFFFFFFFFFFFFFF)
_ZERO, _ONE, _S32 = np.uint64(0), np.uint64(1), np.uint64(32)
_LANES = 16
_FEW = 64
_STEP = 0x9E3779B97F4A7C15


class MinHasher:
    """Signatures of `bands` x `rows` places with constants drawn from `seed`."""

    def __init__(self, seed: int = 1, bands: int = BANDS, rows: int = ROWS) -> None:
        if bands < 1 or rows < 1:
            raise ValueError(f"at least one band of one row, not {bands} of {rows}")
        places = bands * rows
        constants = _constants(seed, 2 * places + rows + 2)
        self._bands = bands
        self._scatter = constants[:1] | _ONE
        self._factors = (constants[1 : places + 1] >> _S32).astype(np.uint32) | np.uint32(1)
        self._shifts = (constants[places + 1 : 2 * places + 1] >> _S32).astype(np.uint32)
        self._rows = constants[2 * places + 1 :] | _ONE

    def signature(self, hashes: UInt64) -> UInt32:
        """Signature of the set of `hashes` (n,), n >= 1, repeated ones counting once: shape (bands * rows,)."""
        if not len(hashes):
            raise ValueError("an empty set has no signature")
        signature: UInt32 = self.signatures(hashes, np.array([0, len(hashes)]))[0]
        return signature

    def signatures(self, hashes: UInt64, offsets: Int64) -> UInt32:
        """Signatures of D sets, the d-th of them hashes[offsets[d]:offsets[d + 1]]: shape (D, bands * rows).

        An empty set has 2^32 - 1 in all places.
        """
        offsets = _checked(offsets, len(hashes))
        signatures = np.empty((len(offsets) - 1, len(self._factors)), dtype=np.uint32)
        _sign_sets(hashes, offsets, self._scatter[0], self._factors, self._shifts, signatures)
        return signatures

    def bands(self, hashes: UInt64) -> UInt64:
        """One 64-bit key for each band, shape (bands,); all 0, which means none, where `hashes` is empty."""
        keys = np.zeros(self._bands, dtype=np.uint64)
        if len(hashes):
            _key_bands(self.signature(hashes), self._rows, keys)
        return keys

    def bands_of_texts(self, texts: Sequence[str], n: int = NGRAM) -> UInt64:
        """Band keys of the word `n`-grams of each of D texts, shape (D, bands); 0 for texts of fewer than n words."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)), out=offsets[1:])
        return self.bands_of_utf8(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets, n)

    def bands_of_utf8(self, buffer: UInt8, offsets: Int64, n: int = NGRAM) -> UInt64:
        """As `bands_of_texts`, of UTF-8 texts buffer[offsets[d]:offsets[d + 1]], as Arrow keeps them: (D, bands)."""
        if n < 1:
            raise ValueError(f"an n-gram has at least one word, not {n}")
        offsets = _checked(offsets, len(buffer))
        buffer = buffer.view()
        buffer.flags.writeable = False  # as the bytes of Python and Arrow are: the other kind would be compiled anew
        keys = np.zeros((len(offsets) - 1, self._bands), dtype=np.uint64)
        table, expansions = character_table(bool((buffer < 0x80).all()))
        _key_texts(
            buffer, offsets, n, table, expansions, self._scatter[0], self._factors, self._shifts, self._rows, keys
        )
        return keys


def estimated_similarity(first: UInt32, second: UInt32) -> float:
    """Unbiased estimate of the Jaccard similarity of two signatures of the same hasher: the share of equal places."""
    return float((first == second).mean())


def similarity_of_bands(first: UInt64, second: UInt64, rows: int = ROWS) -> float:
    """Jaccard similarity guessed from band keys (bands,): (share of equal ones)^(1 / rows), 0..1.

    One of 14 bands in common is 0.72, all of them 1.0, none 0.0.
    """
    return float((((first == second) & (first != 0)).mean()) ** (1 / rows))


def collision_probability(similarity: float, bands: int = BANDS, rows: int = ROWS) -> float:
    """Probability that two sets of this Jaccard similarity share a band: 1 - (1 - s^rows)^bands."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def equal_keys(keys: UInt64) -> tuple[Int64, Int64]:
    """Pairs of documents that link all with an equal key in one of the columns of `keys` (D, bands) into chains.

    Keys of 0 are equal to nothing. At most D - 1 pairs a band, of int64 numbers, the smaller first.
    """
    pairs: list[tuple[Int64, Int64]] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))]
    for column in range(keys.shape[1]):
        order = np.argsort(keys[:, column], kind="stable")
        ordered = keys[order, column]
        equal = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
        pairs.append((order[equal], order[equal + 1]))
    return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])


def connected(first: Int64, second: Int64, count: int) -> Int64:
    """For each of `count` nodes the smallest number in its component of the graph with edges first[i] - second[i].

    Shape (count,); does not depend on the order of the edges. Raises ValueError where a node is not in 0..count-1.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} first ends of edges and {len(second)} second ones")
    if len(first) and (min(first.min(), second.min()) < 0 or max(first.max(), second.max()) >= count):
        raise ValueError(f"an edge leads to a node outside 0..{count - 1}")
    roots = np.arange(count, dtype=np.int64)
    _unite(np.ascontiguousarray(first, dtype=np.int64), np.ascontiguousarray(second, dtype=np.int64), roots)
    return roots


def _checked(offsets: Int64, size: int) -> Int64:
    """Offsets as int64, or ValueError where they lead outside an array of `size`."""
    bounds = np.ascontiguousarray(offsets, dtype=np.int64)
    if not len(bounds) or bounds[0] < 0 or bounds[-1] > size or (np.diff(bounds) < 0).any():
        raise ValueError(f"the offsets must ascend within 0..{size}")
    return bounds


def _constants(seed: int, count: int) -> UInt64:
    """The first `count` numbers of SplitMix64 from `seed`."""
    states = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(seed % 2**64)
    states = (states ^ (states >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    states = (states ^ (states >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return states ^ (states >> np.uint64(31))


@compiled
def _sign(
    hashes: UInt64,
    begin: int,
    end: int,
    scatter: np.uint64,
    factors: UInt32,
    shifts: UInt32,
    best: UInt64,
    halves: UInt32,
    signature: UInt32,
) -> None:
    """Signature of the set hashes[begin:end]; `best` (places,) and `halves` (end - begin + lanes,) are scratch."""
    places = np.uint64(signature.size)
    best[:] = _HIGHEST
    for index in range(np.uint64(begin), np.uint64(end)):
        ranked = hashes[index] * scatter
        place = ((ranked & _LOW_HALF) * places) >> _S32
        lowest = best[place]
        best[place] = ranked if ranked < lowest else lowest  # no branch: which is smaller cannot be foreseen
    empty = 0
    for index in range(signature.size):
        signature[index] = best[index] >> _S32
        empty += signature[index] == _EMPTY
    if empty == 0 or begin == end:
        return
    count = end - begin
    for index in range(count):
        halves[index] = hashes[begin + index] >> _S32
    while count % _LANES:  # whole vectors: the last hash again does not change the minimum
        halves[count] = halves[count - 1]
        count += 1
    if count <= _FEW:
        minima = np.full(signature.size, _EMPTY)
        _minima(halves, count, factors, shifts, minima)
        for index in range(signature.size):
            if signature[index] == _EMPTY:
                signature[index] = minima[index]
        return
    for index in range(signature.size):
        if signature[index] == _EMPTY:
            signature[index] = _minimum(halves, count, factors[index], shifts[index])


@compiled
def _minimum(halves: UInt32, count: int, factor: np.uint32, shift: np.uint32) -> np.uint32:
    lowest = _EMPTY
    for index in range(np.uint64(count)):
        value = np.uint32(halves[index] * factor + shift)
        lowest = value if value < lowest else lowest
    return lowest


@compiled
def _minima(halves: UInt32, count: int, factors: UInt32, shifts: UInt32, lowest: UInt32) -> None:
    """`_minimum` of all places, four hashes at a time: quicker for few hashes, which leave most places empty."""
    for index in range(0, count, 4):
        a, b, c, d = halves[index], halves[index + 1], halves[index + 2], halves[index + 3]
        for place in range(np.uint64(factors.size)):
            factor, shift = factors[place], shifts[place]
            low = min(np.uint32(a * factor + shift), np.uint32(b * factor + shift))
            low = min(low, min(np.uint32(c * factor + shift), np.uint32(d * factor + shift)))
            lowest[place] = min(lowest[place], low)


@compiled
def _sign_sets(
    hashes: UInt64, offsets: Int64, scatter: np.uint64, factors: UInt32, shifts: UInt32, signatures: UInt32
) -> None:
    longest = 0
    for index in range(offsets.size - 1):
        longest = max(longest, offsets[index + 1] - offsets[index])
    best = np.empty(factors.size, dtype=np.uint64)
    halves = np.empty(longest + _LANES, dtype=np.uint32)
    for index in range(offsets.size - 1):
        begin, end = offsets[index], offsets[index + 1]
        _sign(hashes, begin, end, scatter, factors, shifts, best, halves, signatures[index])


@compiled
def _key_bands(signature: UInt32, rows: UInt64, keys: UInt64) -> None:
    """Keys of the bands: rows[r] * place_r summed modulo 2^64, mixed, never 0; `rows` has one more, added to all."""
    height = rows.size - 1
    for band in range(keys.size):
        total = rows[height]
        for row in range(height):
            total += rows[row] * np.uint64(signature[band * height + row])
        key = mix(total)
        keys[band] = key if key else _ONE


@compiled
def _key_texts(
    buffer: UInt8,
    offsets: Int64,
    n: int,
    table: Int32,
    expansions: Int32,
    scatter: np.uint64,
    factors: UInt32,
    shifts: UInt32,
    rows: UInt64,
    keys: UInt64,
) -> None:
    longest = 0
    for index in range(offsets.size - 1):
        longest = max(longest, offsets[index + 1] - offsets[index])
    most = longest // 2 + 1
    words = np.empty(most, dtype=np.uint64)
    starts = np.empty(most, dtype=np.int64)
    ends = np.empty(most, dtype=np.int64)
    hashes = np.empty(most, dtype=np.uint64)
    halves = np.empty(most + _LANES, dtype=np.uint32)
    best = np.empty(factors.size, dtype=np.uint64)
    signature = np.empty(factors.size, dtype=np.uint32)
    for index in range(offsets.size - 1):
        count = hash_words(buffer, offsets[index], offsets[index + 1], table, expansions, words, starts, ends)
        count = roll(words, count, n, hashes)
        if count:
            _sign(hashes, 0, count, scatter, factors, shifts, best, halves, signature)
            _key_bands(signature, rows, keys[index])


@compiled
def _unite(first: Int64, second: Int64, roots: Int64) -> None:
    """Union-find with the smaller number as root and path halving, then every node to its root."""
    for index in range(first.size):
        a, b = first[index], second[index]
        while roots[a] != a:
            roots[a] = roots[roots[a]]
            a = roots[a]
        while roots[b] != b:
            roots[b] = roots[roots[b]]
            b = roots[b]
        if a < b:
            roots[b] = a
        else:
            roots[a] = b
    for index in range(roots.size):
        roots[index] = roots[roots[index]]  # a root is smaller than its nodes, so it is done already
