"""Duplicate documents: exact ones by a hash of their words, near ones by MinHash with locality-sensitive hashing.

Two documents with Jaccard similarity s of their sets of word 5-grams share at least one of 14 bands of 8 minima, and
are then joined, with probability 1 - (1 - s^8)^14: half of the pairs at s = 0.69, 5 % at s = 0.5, 99.96 % at s = 0.9.
Clusters are the connected components of the joined pairs; of each, the longest document stays.

Parameters are those of FineWeb (Penedo et al. 2024, arXiv:2406.17557); the method is Broder (1997). Unlike there, the
permutations of the 64-bit hashes are x -> (a x + b) mod 2^64 with odd a, which are bijections that numpy computes
without overflow errors, and words are found by a regular expression, each Chinese or Japanese character being a word.

Documents of fewer than 5 words have no 5-gram and never are near duplicates; the exact comparison still finds them.
Memory: 112 bytes a document.

    finder = NearDuplicates(seed=1)
    for text in texts: finder.add(text)
    finder.clusters()
"""

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NGRAM = 5
"""Words in a shingle."""
BANDS = 14
"""Groups of minima; sharing one whole group makes two documents near duplicates."""
ROWS = 8
"""Minima in a band."""

_WORD = re.compile(r"[一-鿿㐀-䶿぀-ヿ]|[^\W_一-鿿㐀-䶿぀-ヿ]+")
_NO_BAND = np.uint64(0)
_CHUNK = 4096


def content_hash(text: str) -> bytes:
    """16 bytes that are equal for texts that differ in white space only."""
    return hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def simplified_words(text: str) -> list[str]:
    """The words of `text` in lower case, without combining marks and punctuation, every digit a 0."""
    text = text.lower()
    if not text.isascii():
        decomposed = unicodedata.normalize("NFD", text)
        text = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    return _WORD.findall(re.sub(r"\d", "0", text))


def shingles(text: str) -> NDArray[np.uint64]:
    """Sorted distinct 64-bit hashes of the word 5-grams of `text`; empty below 5 words."""
    words = simplified_words(text)
    if len(words) < NGRAM:
        return np.empty(0, dtype=np.uint64)
    distinct = {word: index for index, word in enumerate(dict.fromkeys(words))}
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=8).digest() for word in distinct)
    hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)[[distinct[word] for word in words]]
    count = len(words) - NGRAM + 1
    combined = np.zeros(count, dtype=np.uint64)
    for position in range(NGRAM):
        combined = _mix(combined * np.uint64(0x9E3779B97F4A7C15) + hashes[position : position + count])
    return np.unique(combined)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64-bit integers that spreads every input bit (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class MinHasher:
    """Signatures of 14 x 8 minima under permutations drawn from `seed`."""

    def __init__(self, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        high = np.iinfo(np.uint64).max
        self._a = generator.integers(high, size=BANDS * ROWS, dtype=np.uint64, endpoint=True) | np.uint64(1)
        self._b = generator.integers(high, size=BANDS * ROWS, dtype=np.uint64, endpoint=True)

    def signature(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Minima of the permuted `hashes` (n,), n >= 1: shape (112,). Two sets agree in a share s of the places."""
        minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(hashes), _CHUNK):  # chunks keep the table of products in the processor's cache
            chunk = hashes[start : start + _CHUNK]
            np.minimum(minima, (self._a[:, None] * chunk[None, :] + self._b[:, None]).min(axis=1), out=minima)
        return minima

    def bands(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """One 64-bit key for each band, shape (14,); all 0, which means no key, where `hashes` is empty."""
        if not len(hashes):
            return np.full(BANDS, _NO_BAND, dtype=np.uint64)
        minima = self.signature(hashes).reshape(BANDS, ROWS)
        keys = np.arange(1, BANDS + 1, dtype=np.uint64)
        for row in range(ROWS):
            keys = _mix(keys * np.uint64(0x9E3779B97F4A7C15) + minima[:, row])
        return np.maximum(keys, np.uint64(1))


class NearDuplicates:
    """Collects the bands of documents, numbered 0, 1, ... in the order added, and clusters them."""

    def __init__(self, seed: int = 1) -> None:
        self._hasher = MinHasher(seed)
        self._keys = array("Q")

    def add(self, text: str) -> None:
        """Add the next document."""
        self._keys.frombytes(self._hasher.bands(shingles(text)).tobytes())

    def keys(self) -> NDArray[np.uint64]:
        """Bands of all documents, shape (documents, 14)."""
        return np.array(self._keys, dtype=np.uint64).reshape(-1, BANDS)

    def clusters(self) -> NDArray[np.int64]:
        """For each document the smallest number of a document in its cluster, shape (documents,)."""
        keys = self.keys()
        parent = list(range(len(keys)))
        for band in range(BANDS):
            for first, second in _equal_neighbours(keys[:, band]):
                _join(parent, first, second)
        return np.array([_root(parent, index) for index in range(len(parent))], dtype=np.int64)


def estimated_similarity(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Jaccard similarity guessed from the bands (14,) of two documents: (shared bands / 14)^(1/8), 0..1.

    One band in common is 0.72, all of them 1.0; 0.0 means that only other documents of the cluster link the two.
    """
    shared = int(((first == second) & (first != _NO_BAND)).sum())
    return float((shared / BANDS) ** (1 / ROWS))


def equal_rows_clusters(digests: bytes, size: int) -> NDArray[np.int64]:
    """For each of the concatenated digests of `size` bytes the number of the first equal one, shape (documents,)."""
    rows = np.frombuffer(digests, dtype=f"V{size}")
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def best_of_clusters(clusters: NDArray[np.int64], lengths: Sequence[int], ids: Sequence[str]) -> NDArray[np.int64]:
    """For each document the number of the one that stays in its cluster: the longest, then the smallest id."""
    best: dict[int, int] = {}
    for index, cluster in enumerate(clusters.tolist()):
        other = best.setdefault(cluster, index)
        if (-lengths[index], ids[index], index) < (-lengths[other], ids[other], other):
            best[cluster] = index
    return np.array([best[cluster] for cluster in clusters.tolist()], dtype=np.int64)


def collision_probability(similarity: float) -> float:
    """Probability that two documents of this Jaccard similarity share a band: 1 - (1 - s^8)^14."""
    return float(1.0 - (1.0 - similarity**ROWS) ** BANDS)


def _equal_neighbours(keys: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Pairs of document numbers with equal keys that link each set of equal keys into a chain."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != _NO_BAND))
    return list(zip(order[equal].tolist(), order[equal + 1].tolist(), strict=True))


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: list[int], first: int, second: int) -> None:
    """Union with the smaller number as root, so that the result does not depend on the order of the pairs."""
    low, high = sorted((_root(parent, first), _root(parent, second)))
    parent[high] = low
