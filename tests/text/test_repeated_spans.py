"""Repeated spans against the definition, window by window, and what their removal leaves of texts."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlance.text.repeated_spans import (
    PieceNumbering,
    candidates,
    fingerprints,
    pieces,
    repeated_fingerprints,
    repeated_spans,
    repeated_spans_of_texts,
    without_spans,
)

DOCUMENTS = st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=5)
TEXTS = st.lists(
    st.one_of(
        st.text(alphabet="ab A,.\n\té\u0301爱が\u200b\ufeff-", max_size=20),
        st.text(max_size=12),
    ),
    max_size=4,
)


def spans_of(documents: list[list[int]], length: int) -> list[list[list[int]]]:
    """For each document its spans, as `repeated_spans` finds them."""
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.array([token for document in documents for token in document], dtype=np.uint32)
    spans = repeated_spans(tokens, offsets, length)
    return [spans.of(document).tolist() for document in range(len(documents))]


def marked(documents: list[list[int]], length: int) -> list[set[int]]:
    """The definition: tokens of windows of which an equal one begins at least a window earlier."""
    first: dict[tuple[int, ...], int] = {}
    places: list[set[int]] = []
    start = 0
    for document in documents:
        removed: set[int] = set()
        for at in range(len(document) - length + 1):
            window = tuple(document[at : at + length])
            if start + at - first.setdefault(window, start + at) >= length:
                removed.update(range(at, at + length))
        places.append(removed)
        start += len(document)
    return places


def cut(text: str, spans: list[list[int]], starts: np.ndarray) -> str:
    return without_spans(text, starts, np.array(spans, dtype=np.int64).reshape(-1, 2))


@settings(deadline=None, max_examples=300)
@given(DOCUMENTS, st.integers(1, 5))
@example([[0] * 14], 3)
@example([[0, 1, 0, 1, 0, 1, 0, 1]], 3)
@example([[0, 1, 2], [], [0, 1, 2], [1, 2]], 2)
def test_spans_are_the_windows_of_the_definition(documents: list[list[int]], length: int) -> None:
    found = spans_of(documents, length)
    assert [{i for a, b in spans for i in range(a, b)} for spans in found] == marked(documents, length)
    for spans in found:
        assert all(b < a for (_, b), (a, _) in itertools.pairwise(spans))  # they do not touch


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 5))
def test_nothing_repeats_in_what_remains(documents: list[list[int]], length: int) -> None:
    # With every cut a border; each removed span has all its windows elsewhere, and the first occurrence is whole.
    segments = []
    for document, spans in zip(documents, spans_of(documents, length), strict=True):
        borders = [0, *(edge for span in spans for edge in span), len(document)]
        segments += [document[a:b] for a, b in zip(borders[::2], borders[1::2], strict=True)]
    assert not any(spans_of(segments, length))
    assert {token for document in documents for token in document} == {t for segment in segments for t in segment}


def test_overlapping_repetitions_keep_their_first_window() -> None:
    assert spans_of([[7] * 1000], 50) == [[[50, 1000]]]
    assert spans_of([[7] * 99], 50) == [[]]
    assert spans_of([[1, 2, 3] * 40], 50) == [[[51, 120]]]
    # The first in the order of documents stays, and windows do not cross them.
    words = list(range(60))
    assert spans_of([words, [99, *words, 98], words[:40], words[40:]], 50) == [[], [[1, 61]], [], []]


def test_wrong_offsets_are_refused() -> None:
    tokens = np.arange(5)
    for offsets in ([0, 4], [1, 5], [0, 3, 2, 5], []):
        with pytest.raises(ValueError, match="the offsets must ascend"):
            repeated_spans(tokens, np.array(offsets, dtype=np.int64))
    with pytest.raises(ValueError, match="at least one token"):
        repeated_spans(tokens, np.array([0, 5]), 0)
    assert len(repeated_spans(np.empty(0, dtype=np.uint32), np.array([0, 0])).starts) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\u3000", []),
        ("Don't stop, e.g. at 12.5%", ["Don", "'", "t", "stop", ",", "e", ".", "g", ".", "at", "12", ".", "5", "%"]),
        ("cre\u0301me crème", ["cre\u0301me", "crème"]),
        ("我爱Python!!", ["我", "爱", "Python", "!", "!"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("a_b\u200bc", ["a", "_", "b", "\u200b", "c"]),
        ("👩\u200d🔬x", ["👩\u200d", "🔬", "x"]),
    ],
)
def test_pieces_by_example(text: str, expected: list[str]) -> None:
    numbering = PieceNumbering()
    found = pieces(text)
    assert [text[a:b].rstrip() for a, b in zip(found.starts, [*found.starts[1:], len(text)], strict=False)] == expected
    distinct = list(dict.fromkeys(expected))
    assert numbering.ids(found.hashes).tolist() == [distinct.index(piece) for piece in expected]
    assert len(numbering) == len(distinct)


@settings(deadline=None)
@given(TEXTS)
def test_pieces_cover_all_but_white_space_and_are_equal_where_their_ids_are(texts: list[str]) -> None:
    numbering = PieceNumbering()
    known: dict[int, str] = {}
    for text in texts:
        found = pieces(text)
        starts = found.starts.tolist()
        assert starts == sorted(set(starts))
        assert text[: starts[0] if starts else None].strip() == ""
        for number, a, b in zip(numbering.ids(found.hashes).tolist(), starts, [*starts[1:], len(text)], strict=False):
            piece = text[a:b].rstrip()
            assert piece == "".join(piece.split())
            assert piece
            assert known.setdefault(number, piece) == piece
    assert sorted(known) == list(range(len(numbering)))
    assert len(set(known.values())) == len(known)


def test_the_numbering_grows() -> None:
    numbering = PieceNumbering()
    hashes = pieces(" ".join(f"w{i}" for i in range(50_000))).hashes
    for _ in range(2):
        assert numbering.ids(hashes).tolist() == list(range(50_000))
    assert numbering.ids(pieces("w7 new w49999").hashes).tolist() == [7, 50_000, 49_999]
    assert numbering.ids(np.array([0, 0], dtype=np.uint64)).tolist() == [50_001, 50_001]  # the mark of a free place


@pytest.mark.parametrize(
    ("text", "span", "expected"),
    [
        ("one two three four", [1, 2], "one three four"),
        ("one two three four", [0, 2], "three four"),
        ("one two three\n", [1, 3], "one\n"),
        ("  one two\n", [0, 2], "  "),
        ("keep this. Cut this.\n\nNext", [3, 6], "keep this.\n\nNext"),
        ("keep\n\ncut this. Next", [1, 4], "keep\n\nNext"),
        ("one(two)three", [1, 4], "one three"),
        ("one (two)three", [1, 4], "one three"),
        ("我爱你们", [1, 3], "我 们"),
    ],
)
def test_cuts_join_no_words_and_keep_line_breaks(text: str, span: list[int], expected: str) -> None:
    assert cut(text, [span], pieces(text).starts) == expected


@settings(deadline=None)
@given(TEXTS, st.sets(st.integers(0, 30)))
def test_what_is_left_has_the_pieces_that_are_left(texts: list[str], removed: set[int]) -> None:
    for text in texts:
        found = pieces(text)
        gone = [i in removed for i in range(len(found.hashes))]
        edges = np.flatnonzero(np.diff([False, *gone, False])).reshape(-1, 2).tolist()
        left = pieces(cut(text, edges, found.starts)).hashes.tolist()
        assert left == [each for each, is_gone in zip(found.hashes.tolist(), gone, strict=True) if not is_gone]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(alphabet="ab c", max_size=30), max_size=5), st.integers(1, 7))
def test_spans_of_texts_are_those_of_all_their_tokens(texts: list[str], length: int) -> None:
    numbering = PieceNumbering()
    documents = [numbering.ids(pieces(text).hashes).tolist() for text in texts]
    spans = repeated_spans_of_texts(lambda: iter(texts), length)
    assert [spans.of(document).tolist() for document in range(len(texts))] == spans_of(documents, length)


def test_only_windows_whose_fingerprint_repeats_are_candidates() -> None:
    words = [f"w{i}" for i in range(2000)]
    texts = [" ".join(words[:1000]), " ".join(words[1000:1500] + words[300:370] + words[1500:])]
    hashes = [pieces(text).hashes for text in texts]
    prints = [fingerprints(each) for each in hashes]
    assert 1000 / 13 * 0.7 < len(prints[0]) < 1000 / 13 * 1.4  # 2 / (26 + 1) of them are expected
    spans = candidates(hashes[1], repeated_fingerprints(np.concatenate(prints)))
    assert spans.shape == (1, 2)
    assert 430 <= spans[0, 0] <= 500 < 570 <= spans[0, 1] <= 640
    assert repeated_spans_of_texts(lambda: iter(texts)).of(1).tolist() == [[500, 570]]
    assert len(candidates(hashes[1], np.empty(0, dtype=np.uint64))) == 0
    assert len(fingerprints(hashes[0][:49])) == 0


@pytest.mark.data
def test_a_second_pass_over_the_newswire_finds_nothing(data_folder: Path) -> None:
    import gzip

    raw = gzip.decompress((data_folder / "reuters21578" / "reut2-000.sgm.gz").read_bytes()).decode("latin-1")
    texts = re.findall(r"<BODY>(.*?)</BODY>", raw, flags=re.DOTALL)
    removed = []
    for _ in range(2):
        numbering = PieceNumbering()
        found = [pieces(text) for text in texts]
        offsets = np.cumsum([0, *(len(each.hashes) for each in found)])
        spans = repeated_spans(np.concatenate([numbering.ids(each.hashes) for each in found]), offsets)
        less = repeated_spans_of_texts(lambda texts=texts: iter(texts))
        assert np.array_equal(less.documents, spans.documents)
        assert np.array_equal(less.starts, spans.starts)
        assert np.array_equal(less.ends, spans.ends)
        removed.append(int((spans.ends - spans.starts).sum()))
        texts = [without_spans(t, f.starts, spans.of(d)) for d, (t, f) in enumerate(zip(texts, found, strict=True))]
    assert removed[0] > 1000
    assert removed[1] == 0
