"""The simulated labeller's rule."""

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.alignment.labeller import LABELLER, form_only, length_only, rank, score, similarity, stem

SENTENCES = [
    "Return the absolute path of the given file.",
    "Wrap a single paragraph of text, returning a list of wrapped lines.",
    "Close the connection (if it is open) and release all buffers.",
    "Parse command line arguments into a namespace.",
    "Convert a string to a floating point number.",
]


def test_it_says_that_it_is_simulated():
    assert LABELLER.startswith("simulated")


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_authors_sentence_gets_everything(sentence):
    assert score(sentence, sentence, ended=True).total == pytest.approx(1.0)


def test_the_order_that_everybody_would_choose():
    reference = SENTENCES[0]
    responses = [
        (reference, True),
        ("Return the path of a file.", True),
        ("Return the value of the given object.", True),
        (reference[:25], False),
        ("Return the return the return the return.", True),
        ("", True),
    ]
    totals = [score(text, reference, ended).total for text, ended in responses]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    assert totals[-1] == 0.0
    assert totals[0] - totals[2] > 0.25


def test_similarity_by_hand():
    # Words: {open 1, the .2, file 1} and {open 1, a .2, door 1}: shared 1 of 2.2 + 2.2.
    words = 2 * 1.0 / 4.4
    # Trigrams of " open the file " (13) and " opens a door " (12): " op", "ope" and "pen" are shared.
    assert similarity("Open the file.", "Opens a door") == pytest.approx((words + 2 * 3 / (13 + 12)) / 2)


@pytest.mark.parametrize(
    "family",
    [
        ("return", "returns", "returned", "returning"),
        ("create", "creates", "created", "creating"),
        ("copy", "copies", "copying"),
        ("stop", "stops", "stopped", "stopping"),
        ("pass", "passes", "passed", "passing"),
        ("parse", "parses", "parsed", "parsing"),
        ("call", "calls", "called", "calling"),
        ("file", "files"),
    ],
)
def test_forms_of_a_word_have_one_stem(family):
    assert len({stem(word) for word in family}) == 1


def test_different_words_keep_different_stems():
    words = ["string", "stream", "class", "status", "this", "thing", "bring", "bed", "king", "red", "is", "as", "path"]
    assert len({stem(word) for word in words}) == len(words)


GOOD = "Return the absolute path of the file."


@pytest.mark.parametrize(
    ("worse", "ended", "factor"),
    [
        (GOOD, True, 1.0),
        (GOOD, False, 0.7),
        (GOOD.lower(), True, 0.85),
        (GOOD[:-1], True, 0.7),
        (GOOD + ".", True, 0.7),
        (GOOD[:-1] + "!", True, 0.7),
        ("Return the path. It is absolute.", True, 0.7),
        ("Return the absolute\npath of the file.", True, 0.85),
        ("Return the absolute (path of the file.", True, 0.9),
        ('Return the "absolute path of the file.', True, 0.9),
        ("Return the 'absolute path of the file.", True, 0.9),
        ("Return the the absolute path.", True, 0.5),
        ("Return the path.", True, 0.75),
        ("Return the old path or the new path or the old path.", True, 1 / 3),  # "the old path", "path or the"
        ("Return.", True, 0.25),
        (" ".join(["Word"] + [f"w{i}" for i in range(39)]) + ".", True, 0.5),
        ("  " + GOOD + "\n", True, 1.0),
        ("", True, 0.0),
        (" .?! ", True, 0.0),
    ],
)
def test_form_by_hand(worse, ended, factor):
    assert form_only(worse, ended) == pytest.approx(factor)


def test_apostrophes_are_no_quotes():
    for text in ("Return the file's name and the users' names.", "Don't call 'close' twice on it."):
        assert form_only(text, True) == pytest.approx(1.0)


def test_length_only():
    assert [length_only("w " * n) for n in (0, 1, 2, 3, 4, 20, 40)] == [0, 0.25, 0.5, 0.75, 1, 1, 0.5]


words = st.lists(st.sampled_from(["open", "file", "read", "parser", "the", "of", "node", "Return"]), max_size=12)


@given(words, words)
def test_similarity_is_symmetric_and_bounded(first, second):
    a, b = " ".join(first), " ".join(second)
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert 0.0 <= similarity(a, b) <= 1.0 + 1e-12
    if first:
        assert similarity(a, a) == pytest.approx(1.0)


@given(words.filter(bool), st.data())
def test_spoiling_a_word_never_helps(reference, data):
    """A word of the author's replaced by one that shares no letter lowers the similarity."""
    place = data.draw(st.integers(0, len(reference) - 1))
    spoilt = [*reference[:place], "zzqzz", *reference[place + 1 :]]
    again = [*spoilt]
    assert similarity(" ".join(spoilt), " ".join(reference)) < similarity(" ".join(reference), " ".join(reference))
    other = data.draw(st.integers(0, len(reference) - 1))
    again[other] = "zzqzz"
    before = similarity(" ".join(spoilt), " ".join(reference))
    assert similarity(" ".join(again), " ".join(reference)) <= before + 1e-12


@given(st.text(max_size=80), st.text(max_size=80), st.booleans())
def test_any_text_gets_a_score_between_0_and_1(response, reference, ended):
    result = score(response, reference, ended)
    for part in (result.total, result.similarity, result.form, length_only(response)):
        assert 0.0 <= part <= 1.0 + 1e-12
    assert result.total == pytest.approx((result.similarity + result.form) / 2)
    assert form_only(response, True) >= form_only(response, False)


def test_rank_by_hand():
    assert rank([0.1, 0.9, 0.85, 0.5], 0.1) == [3, 1, 1, 2]
    assert rank([0.3, 0.2, 0.1], 0.15) == [1, 1, 2]  # no chain of ties: 0.1 is too far from the best
    assert rank([0.5, 0.5, 0.4], 0.0) == [1, 1, 2]
    assert rank([], 0.1) == []


@given(st.lists(st.integers(0, 64).map(lambda n: n / 64), min_size=1, max_size=8), st.sampled_from([0, 0.125, 0.5, 2]))
def test_rank_is_a_weak_order_that_respects_scores(scores, margin):
    ranks = rank(scores, margin)
    assert set(ranks) == set(range(1, max(ranks) + 1))
    for i, j in combinations(range(len(scores)), 2):
        if ranks[i] < ranks[j]:
            assert scores[i] > scores[j]
        if ranks[i] == ranks[j]:
            assert math.fabs(scores[i] - scores[j]) <= margin
    bests = sorted((max(s for s, r in zip(scores, ranks, strict=True) if r == k) for k in set(ranks)), reverse=True)
    assert all(high - low > margin for high, low in pairwise(bests))
