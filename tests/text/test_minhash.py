"""MinHash against closed forms, exact sets, Python integers and a slow union-find."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.text.minhash import (
    MinHasher,
    collision_probability,
    connected,
    equal_keys,
    estimated_similarity,
    similarity_of_bands,
)
from parlance.text.shingling import shingle_hashes

UNION_SIZES = [1, 7, 60, 70, 300, 2000]  # mostly empty places, the border of two loops, none empty


def hashed_pair(similarity: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Two sets of random hashes with `size` elements in their union, and their exact Jaccard similarity."""
    union = np.random.default_rng(seed).integers(2**64, size=size, dtype=np.uint64, endpoint=False)
    common = round(similarity * size)
    rest = union[common:]
    half = len(rest) // 2
    first, second = np.concatenate([union[:common], rest[:half]]), np.concatenate([union[:common], rest[half:]])
    return first, second, common / size


def signature_by_the_rules(hasher: MinHasher, hashes: list[int]) -> list[int]:
    """The docstring of the module in Python integers."""
    factors, shifts = hasher._factors.tolist(), hasher._shifts.tolist()
    scatter = int(hasher._scatter[0])
    ranks: dict[int, int] = {}
    for x in hashes:
        product = x * scatter % 2**64
        place = product % 2**32 * len(factors) >> 32
        ranks[place] = min(ranks.get(place, 2**32), product >> 32)
    return [
        ranks[place] if place in ranks else min(((x >> 32) * factors[place] + shifts[place]) % 2**32 for x in hashes)
        for place in range(len(factors))
    ]


@pytest.mark.parametrize("size", UNION_SIZES)
@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (3, 5)])
def test_signatures_follow_the_rules(size: int, bands: int, rows: int) -> None:
    hashes = np.random.default_rng(size).integers(2**64, size=size, dtype=np.uint64, endpoint=False)
    hasher = MinHasher(7, bands, rows)
    assert hasher.signature(hashes).tolist() == signature_by_the_rules(hasher, hashes.tolist())
    # A set: neither order nor repetition matters.
    assert hasher.signature(np.concatenate([hashes[::-1], hashes])).tolist() == hasher.signature(hashes).tolist()


@pytest.mark.parametrize("size", UNION_SIZES)
@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.9])
def test_the_estimate_is_unbiased_and_no_wider_than_classic_minhash(similarity: float, size: int) -> None:
    estimates = []
    for seed in range(300):
        first, second, exact = hashed_pair(similarity, size, seed)
        if len(first) and len(second):
            hasher = MinHasher(seed)
            estimates.append(estimated_similarity(hasher.signature(first), hasher.signature(second)))
    if not estimates:
        return
    deviation = np.sqrt(exact * (1 - exact) / 112)  # of 112 independent draws
    assert np.mean(estimates) == pytest.approx(exact, abs=5 * deviation / np.sqrt(len(estimates)) + 1e-9)
    # The sample variance of 300 estimates stays within five of its standard errors, sqrt(2 / 299).
    assert np.var(estimates) <= deviation**2 * (1 + 5 * np.sqrt(2 / 299)) + 1e-12


@pytest.mark.parametrize(
    ("similarity", "expected"), [(0.5, 0.053), (0.6, 0.211), (0.7, 0.565), (0.75, 0.772), (0.8, 0.924), (0.9, 0.9996)]
)
@pytest.mark.parametrize("size", [200, 1000])
def test_collisions_follow_the_closed_form(similarity: float, expected: float, size: int) -> None:
    assert collision_probability(similarity) == pytest.approx(expected, abs=6e-4)
    trials = 1000
    caught = 0
    for seed in range(trials):
        hasher = MinHasher(seed)
        first, second, _ = hashed_pair(similarity, size, 1000 + seed)
        caught += bool((hasher.bands(first) == hasher.bands(second)).any())
    tolerance = 5 * np.sqrt(expected * (1 - expected) / trials) + 1 / trials
    assert caught / trials == pytest.approx(expected, abs=tolerance)


def test_signatures_never_change() -> None:
    hashes = shingle_hashes("the same text gives the same signature on every machine", 2)
    assert MinHasher(1, 2, 2).signature(hashes).tolist() == [1322490347, 2053268101, 329895196, 1250800990]
    assert MinHasher(1, 2, 2).bands(hashes).tolist() == [10891906083637046090, 219306394543864721]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(alphabet="ab é爱.", max_size=40), max_size=8), st.integers(1, 6))
def test_batches_are_the_texts_one_by_one(texts: list[str], n: int) -> None:
    hasher = MinHasher(3, 4, 2)
    keys = hasher.bands_of_texts(texts, n)
    assert keys.shape == (len(texts), 4)
    assert keys.tolist() == [hasher.bands(shingle_hashes(text, n)).tolist() for text in texts]
    sets = [shingle_hashes(text, n) for text in texts]
    offsets = np.cumsum([0, *map(len, sets)])
    signatures = hasher.signatures(np.concatenate([np.empty(0, np.uint64), *sets]), offsets)
    for hashes, signature in zip(sets, signatures, strict=True):
        assert signature.tolist() == (hasher.signature(hashes).tolist() if len(hashes) else [2**32 - 1] * 8)


def test_parts_of_a_buffer_are_read_as_arrow_keeps_them() -> None:
    texts = ["a b c d e f", "", "爱 b c d e f g"]
    encoded = [text.encode() for text in texts]
    buffer = np.frombuffer(b"xy" + b"".join(encoded), dtype=np.uint8).copy()
    offsets = np.cumsum([2, *map(len, encoded)]).astype(np.int32)
    hasher = MinHasher()
    assert (hasher.bands_of_utf8(buffer, offsets) == hasher.bands_of_texts(texts)).all()
    for wrong in ([0, 99], [-1, 2], [3, 2], []):
        with pytest.raises(ValueError, match="the offsets must ascend"):
            hasher.bands_of_utf8(buffer, np.array(wrong, dtype=np.int64))
        with pytest.raises(ValueError, match="the offsets must ascend"):
            hasher.signatures(np.zeros(5, dtype=np.uint64), np.array(wrong, dtype=np.int64))


def test_threads_give_the_same_keys() -> None:
    words = np.random.default_rng(0).choice([a + b for a in "abcdefghij" for b in "klmnopqrst"], 40_000).tolist()
    texts = [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)]
    hasher = MinHasher()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(hasher.bands_of_texts, [texts[i : i + 100] for i in range(0, len(texts), 100)]))
    assert (np.concatenate(parts) == hasher.bands_of_texts(texts)).all()


def test_bands_are_equal_where_all_their_places_are() -> None:
    hasher = MinHasher(5)
    first, second, _ = hashed_pair(0.8, 500, 1)
    equal_places = (hasher.signature(first) == hasher.signature(second)).reshape(14, 8).all(axis=1)
    assert 0 < equal_places.sum() < 14
    assert (hasher.bands(first) == hasher.bands(second)).tolist() == equal_places.tolist()
    assert similarity_of_bands(hasher.bands(first), hasher.bands(second)) == pytest.approx(
        (equal_places.sum() / 14) ** (1 / 8)
    )
    assert similarity_of_bands(hasher.bands(first), hasher.bands(first)) == 1


def test_short_texts_are_never_near_duplicates() -> None:
    keys = MinHasher().bands_of_texts(["four words and no", "four words and no", "", "now these are five words"])
    assert not keys[:3].any()
    assert keys[3].all()
    assert similarity_of_bands(keys[0], keys[1]) == 0
    assert connected(*equal_keys(keys), 4).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no signature"):
        MinHasher().signature(np.empty(0, dtype=np.uint64))


def test_no_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one band"):
        MinHasher(1, 0, 8)


EDGES = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=14)


@settings(deadline=None)
@given(EDGES, st.randoms(use_true_random=False))
def test_components_are_those_of_a_slow_search(edges: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    expected = list(range(12))
    for _ in range(12):
        for a, b in edges:
            expected[a] = expected[b] = min(expected[a], expected[b])
    random.shuffle(edges)
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    assert connected(ends[:, 0], ends[:, 1], 12).tolist() == expected
    assert connected(ends[:, 1], ends[:, 0], 12).tolist() == expected


def test_components_refuse_unknown_nodes() -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        connected(np.array([0]), np.array([3]), 3)
    with pytest.raises(ValueError, match="second ones"):
        connected(np.array([0]), np.array([1, 2]), 3)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=10))
def test_equal_keys_link_documents_with_a_common_key(rows: list[tuple[int, int]]) -> None:
    keys = np.array(rows, dtype=np.uint64).reshape(-1, 2)
    linked = connected(*equal_keys(keys), len(rows))
    pairs = [
        (i, j)
        for i, j in itertools.combinations(range(len(rows)), 2)
        if any(a == b != 0 for a, b in zip(rows[i], rows[j], strict=True))
    ]
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    assert linked.tolist() == connected(ends[:, 0], ends[:, 1], len(rows)).tolist()


@pytest.mark.data
def test_near_duplicates_of_the_newswire_are_found(data_folder: Path) -> None:
    # Real near-duplicates; exact similarities over all pairs are measured in benchmarks/minhash.py.
    import gzip
    import re

    text = gzip.decompress((data_folder / "reuters21578" / "reut2-000.sgm.gz").read_bytes()).decode("latin-1")
    texts = re.findall(r"<BODY>(.*?)</BODY>", text, flags=re.DOTALL)
    keys = MinHasher().bands_of_texts(texts)
    first, second = equal_keys(keys)
    sets = [set(shingle_hashes(t, 5).tolist()) for t in texts]
    similarities = [
        len(sets[a] & sets[b]) / len(sets[a] | sets[b]) for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert len(similarities) > 0
    assert np.mean(np.array(similarities) > 0.5) > 0.9
