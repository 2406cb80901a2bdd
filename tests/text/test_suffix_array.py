"""Suffix arrays against naive sorting, on sequences of every shape that the recursion treats apart."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlance.text.suffix_array import common_prefixes, lcp_array, longest_match, occurrences, suffix_array

# Few symbols make long common prefixes; repeated blocks make the recursion deep; large ids are renumbered.
SEQUENCES = st.one_of(
    st.lists(st.integers(0, 1), max_size=60),
    st.lists(st.integers(0, 3), max_size=60),
    st.lists(st.sampled_from([0, 1, 255]), max_size=40),
    st.tuples(st.lists(st.integers(0, 2), max_size=7), st.integers(1, 12)).map(lambda pair: pair[0] * pair[1]),
)


def naive(tokens: list[int]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda start: tokens[start:])


def common(first: list[int], second: list[int]) -> int:
    length = 0
    while length < min(len(first), len(second)) and first[length] == second[length]:
        length += 1
    return length


@settings(deadline=None, max_examples=300)
@given(SEQUENCES, st.sampled_from([np.uint8, np.int64]))
@example([], np.uint8)
@example([0], np.uint8)
@example([5] * 50, np.uint8)
@example([0, 1] * 25, np.uint8)
@example(list(range(50)), np.uint8)
@example(list(range(50, 0, -1)), np.uint8)
def test_suffixes_and_common_prefixes_are_those_of_naive_sorting(tokens: list[int], dtype: type) -> None:
    array = np.array(tokens, dtype=dtype)
    order = suffix_array(array)
    expected = naive(tokens)
    assert order.tolist() == expected
    assert order.dtype == np.int32
    lcp = [0] + [common(tokens[a:], tokens[b:]) for a, b in itertools.pairwise(expected)]
    assert lcp_array(array, order).tolist() == lcp[: len(tokens)]
    assert common_prefixes(array, order)[order].tolist() == lcp[: len(tokens)]


def test_the_type_of_the_ids_does_not_matter() -> None:
    values = np.random.default_rng(0).integers(0, 100, 500)
    expected = suffix_array(values.astype(np.uint8)).tolist()
    for dtype in (np.uint16, np.int32, np.uint64):
        assert suffix_array(values.astype(dtype)).tolist() == expected
    assert suffix_array(values.astype(np.uint64) * np.uint64(2**56)).tolist() == expected  # renumbered
    assert suffix_array(np.repeat(values, 2)[::2]).tolist() == expected  # no contiguous memory


def test_the_fibonacci_word_is_sorted() -> None:
    # Its substrings repeat more than those of any other text, at every level of the recursion.
    first, second = [0], [0, 1]
    while len(second) < 3000:
        first, second = second, second + first
    assert suffix_array(np.array(second, dtype=np.uint8)).tolist() == naive(second)


def test_int64_sorts_alike() -> None:
    # The kernels for 2^31 tokens and more, on fewer.
    from parlance.text.suffix_array import _sort

    tokens = np.random.default_rng(1).integers(0, 3, 400).astype(np.uint8)
    order = np.empty(400, dtype=np.int64)
    _sort(tokens, 3, order)
    assert order.tolist() == naive(tokens.tolist())


@settings(deadline=None)
@given(SEQUENCES, st.lists(st.integers(0, 3), max_size=6), st.sampled_from([np.uint8, np.int64]))
def test_occurrences_and_longest_match_are_those_of_a_search(
    tokens: list[int], pattern: list[int], dtype: type
) -> None:
    array, wanted = np.array(tokens, dtype=np.uint8), np.array(pattern, dtype=dtype)
    order = suffix_array(array)
    first, last = occurrences(array, order, wanted)
    starts = [i for i in range(len(tokens)) if tokens[i : i + len(pattern)] == pattern]
    assert sorted(order[first:last].tolist()) == starts
    match = longest_match(array, order, wanted)
    assert match.length == max((common(tokens[i:], pattern) for i in range(len(tokens))), default=0)
    assert (match.first, match.last) == occurrences(array, order, wanted[: match.length])


def test_ids_outside_the_type_of_the_tokens_occur_nowhere() -> None:
    tokens = np.array([1, 255, 1], dtype=np.uint8)
    order = suffix_array(tokens)
    for absent in (np.array([257]), np.array([2**64 - 1], dtype=np.uint64), np.array([-1])):
        first, last = occurrences(tokens, order, absent)
        assert first == last
        assert longest_match(tokens, order, absent).length == 0


def test_what_are_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        suffix_array(np.array([1, -1]))
    with pytest.raises(ValueError, match="one-dimensional array of integers"):
        suffix_array(np.array([[1, 2]]))
    with pytest.raises(ValueError, match="one-dimensional array of integers"):
        suffix_array(np.array([1.5]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not that of these"):
        occurrences(np.array([1, 2, 3]), np.array([0, 1], dtype=np.int32), np.array([1]))


@pytest.mark.data
def test_suffixes_of_a_real_text_ascend(data_folder: Path) -> None:
    text = (data_folder / "tinyshakespeare" / "input.txt").read_bytes()
    tokens = np.frombuffer(text, dtype=np.uint8)
    order = suffix_array(tokens)
    assert np.bincount(order, minlength=len(text)).max() == 1
    assert all(
        text[a : a + 500] <= text[b : b + 500]
        for a, b in zip(order[:-1:7].tolist(), order[1::7].tolist(), strict=False)
    )
    first, last = occurrences(tokens, order, np.frombuffer(b"the king", dtype=np.uint8))
    assert last - first == text.count(b"the king") > 0
