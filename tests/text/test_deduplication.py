import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.text.deduplication import (
    BANDS,
    ROWS,
    MinHasher,
    NearDuplicates,
    best_of_clusters,
    collision_probability,
    content_hash,
    equal_rows_clusters,
    estimated_similarity,
    shingles,
    simplified_words,
)


def jaccard(first: str, second: str) -> float:
    """Of the sets of word 5-grams, by Python sets of tuples."""
    a, b = (
        {tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in map(simplified_words, (first, second))
    )
    return len(a & b) / len(a | b)


def hashed_pair(similarity: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of random hashes with `size` elements in their union and this Jaccard similarity."""
    union = np.random.default_rng(seed).integers(2**64, size=size, dtype=np.uint64, endpoint=False)
    common = round(similarity * size)
    rest = union[common:]
    half = len(rest) // 2
    return np.concatenate([union[:common], rest[:half]]), np.concatenate([union[:common], rest[half:]])


def test_simplified_words() -> None:
    assert simplified_words("Crème BRÛLÉE, 12.5 %\nfoo_bar") == ["creme", "brulee", "00", "0", "foo", "bar"]
    assert simplified_words("我爱Python") == ["我", "爱", "python"]
    assert simplified_words("") == []


@given(st.lists(st.sampled_from("abcde"), max_size=40), st.lists(st.sampled_from("abcde"), min_size=5, max_size=40))
def test_shingles_have_the_exact_jaccard_similarity(first: list[str], second: list[str]) -> None:
    a, b = shingles(" ".join(first)), shingles(" ".join(second))
    if len(first) < 5:
        assert len(a) == 0
        return
    exact = jaccard(" ".join(first), " ".join(second))
    assert len(np.intersect1d(a, b)) / len(np.union1d(a, b)) == pytest.approx(exact)


def test_permutations_are_bijections() -> None:
    # (a x + b) mod 2^64 with odd a; on the low 8 bits that is a permutation of 0..255 by itself.
    hasher = MinHasher(3)
    for a, b in zip(hasher._a.tolist(), hasher._b.tolist(), strict=True):
        assert len({(a * x + b) % 256 for x in range(256)}) == 256
    x = np.array([12345678901234567890, 1], dtype=np.uint64)
    expected = [
        min((a * v + b) % 2**64 for v in x.tolist())
        for a, b in zip(hasher._a.tolist(), hasher._b.tolist(), strict=True)
    ]
    assert hasher.signature(x).tolist() == expected


@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.9])
def test_signatures_agree_in_the_share_of_the_jaccard_similarity(similarity: float) -> None:
    agreements = []
    for seed in range(40):
        hasher = MinHasher(seed)
        first, second = hashed_pair(similarity, 400, seed)
        agreements.append((hasher.signature(first) == hasher.signature(second)).mean())
    # 40 x 112 Bernoulli draws: five standard errors.
    assert np.mean(agreements) == pytest.approx(similarity, abs=5 * np.sqrt(similarity * (1 - similarity) / 4480))


@pytest.mark.parametrize(
    ("similarity", "expected"), [(0.5, 0.053), (0.6, 0.211), (0.7, 0.565), (0.75, 0.772), (0.8, 0.924), (0.9, 0.9996)]
)
def test_collisions_follow_the_closed_form(similarity: float, expected: float) -> None:
    assert collision_probability(similarity) == pytest.approx(expected, abs=6e-4)
    trials = 1000
    caught = 0
    for seed in range(trials):
        hasher = MinHasher(seed)
        first, second = hashed_pair(similarity, 200, 1000 + seed)
        caught += bool((hasher.bands(first) == hasher.bands(second)).any())
    tolerance = 5 * np.sqrt(expected * (1 - expected) / trials) + 1 / trials
    assert caught / trials == pytest.approx(expected, abs=tolerance)


def test_finds_near_duplicates_and_keeps_the_longest() -> None:
    generator = np.random.default_rng(0)
    words = ["".join(letters) for letters in itertools.product("abcdefghijklmno", repeat=3)]
    base = list(generator.choice(words, 600))
    edited = [*base]
    edited[300] = "changed"
    texts = [" ".join(base), " ".join(edited) + " and more", " ".join(generator.choice(words, 600)), "short text", ""]
    assert jaccard(texts[0], texts[1]) > 0.95
    finder = NearDuplicates(seed=1)
    for text in [*texts, "short text", ""]:
        finder.add(text)
    clusters = finder.clusters()
    # Texts below five words have no signature and stay apart, even equal ones.
    assert clusters.tolist() == [0, 0, 2, 3, 4, 5, 6]
    assert best_of_clusters(clusters, [len(t) for t in [*texts, "", ""]], list("abcdefg")).tolist() == [
        1,
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    keys = finder.keys()
    assert estimated_similarity(keys[0], keys[1]) > 0.9
    assert estimated_similarity(keys[0], keys[2]) == 0
    assert estimated_similarity(keys[3], keys[4]) == 0


def test_estimated_similarity_is_the_root_of_the_share_of_bands() -> None:
    first = np.arange(1, BANDS + 1, dtype=np.uint64)
    second = first.copy()
    second[:7] += np.uint64(100)
    assert estimated_similarity(first, second) == pytest.approx(0.5 ** (1 / ROWS))
    assert estimated_similarity(first, first) == 1


@given(st.lists(st.sampled_from(["a b c d e f", "A b, c d e f", "g h i j k", "x", "", "g h i j k l m n"]), max_size=8))
def test_clusters_do_not_depend_on_the_order(texts: list[str]) -> None:
    def partition(order: tuple[int, ...]) -> set[frozenset[int]]:
        finder = NearDuplicates(seed=0)
        for index in order:
            finder.add(texts[index])
        roots = finder.clusters().tolist()
        return {frozenset(i for i, r in zip(order, roots, strict=True) if r == root) for root in roots}

    forward = tuple(range(len(texts)))
    assert partition(forward) == partition(forward[::-1])


@given(
    st.lists(st.binary(min_size=16, max_size=16).map(lambda b: bytes(x % 2 for x in b[:2]) + bytes(14)), max_size=12)
)
def test_equal_rows_clusters(digests: list[bytes]) -> None:
    assert equal_rows_clusters(b"".join(digests), 16).tolist() == [digests.index(d) for d in digests]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from("abc")), max_size=10))
def test_best_of_clusters_is_the_longest_then_the_smallest_id(rows: list[tuple[int, int, str]]) -> None:
    clusters, lengths, ids = ([row[i] for row in rows] for i in range(3))
    best = best_of_clusters(np.array(clusters, dtype=np.int64), lengths, ids).tolist()
    for i, j in itertools.product(range(len(rows)), repeat=2):
        if clusters[i] == clusters[j]:
            assert best[i] == best[j]
            assert (-lengths[best[i]], ids[best[i]]) <= (-lengths[j], ids[j])
            assert clusters[best[i]] == clusters[i]


def test_content_hash_ignores_white_space_only() -> None:
    assert content_hash("a  b\n") == content_hash(" a b")
    assert content_hash("a b") != content_hash("ab")
    assert content_hash("a b") != content_hash("A b")
