"""Texts as bytes, scored by an n-gram model of words, against Python's own cutting into lines and words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.models import ngram_words
from parlance.models.ngram import NGramModel
from parlance.models.ngram_words import score_sentences, word_table

WORDS = ["<unk>", "</s>", "a", "b", "ab", "ba", "é", "\u00a0x", "\udcff", *(f"w{i}" for i in range(50))]
MODEL = NGramModel.train([np.array([2, 3, 4, 2]), np.array([3, 5, 6]), np.array([2, 3])], len(WORDS), 3, 1)
TABLE = word_table(WORDS, unknown=0, end=1)


def reference(text: bytes) -> list[int]:
    """What white space separates, line by line, each line closed by </s>."""
    numbers = {word.encode(errors="surrogateescape"): number for number, word in enumerate(WORDS) if word != "</s>"}
    lines = text.split(b"\n")
    ids = []
    for number, line in enumerate(lines):
        words = line.replace(b"\0", b" ").split()
        if words or number < len(lines) - 1:
            ids += [*(numbers.get(word, 0) for word in words), 1]
    return ids


@settings(deadline=None, max_examples=300)
@given(
    text=st.lists(st.sampled_from([b"a", b"b", b"\n", b" ", b"\t", b"\0", b"\r", b"\xff", "é".encode()])).map(b"".join)
)
def test_words_and_lines_are_those_that_python_sees(text):
    ids, log_probs = score_sentences(text, TABLE, MODEL)
    assert ids.tolist() == reference(text)
    np.testing.assert_array_equal(log_probs, MODEL.log_probs(ids))


def test_special_words_of_a_text_are_text():
    text = b"a </s> b <s> <unk> \xc2\xa0x \xff w49 w50\n"
    ids, _ = score_sentences(text, TABLE, MODEL)
    assert ids.tolist() == [2, 0, 3, 0, 0, 7, 8, WORDS.index("w49"), 0, 1]


def test_parts_on_several_threads_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    text = b"".join(WORDS[i].encode(errors="surrogateescape") + b" \n"[i % 2 :][:1] for i in rng.integers(2, 58, 2000))
    whole = score_sentences(text, TABLE, MODEL)
    monkeypatch.setattr(ngram_words, "_BYTES_A_THREAD", 100)
    for cores in (2, 3, 7):
        monkeypatch.setattr(ngram_words, "usable_cores", lambda cores=cores: cores)
        assert len(ngram_words._parts(text, cores)) == cores + 1
        for one, other in zip(whole, score_sentences(text, TABLE, MODEL), strict=True):
            np.testing.assert_array_equal(one, other)
        assert score_sentences(b"a " * 300, TABLE, MODEL)[0].tolist() == [2] * 300 + [1], "one line has one part"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 1000, 5000])
def test_every_word_of_a_table_is_found(count):
    words = [f"word-{i}" for i in range(count)]
    table = word_table([*words, "</s>"], unknown=None, end=count)
    assert table.entries.shape[0] >= 2 * count, "so that a search ends"
    text = np.frombuffer(" ".join(reversed(words)).encode(), np.uint8)
    numbers = np.empty(text.size + 1, np.int32)
    assert ngram_words._number(text, table, numbers) == count + 1
    assert numbers[: count + 1].tolist() == [*reversed(range(count)), count]


def test_words_that_nothing_stands_for_are_named():
    table = word_table(WORDS[1:], unknown=None, end=0)
    model = NGramModel.train([np.array([1, 2, 3])], len(WORDS) - 1, 2, 0)
    assert score_sentences(b"a b\nba", table, model)[0].tolist() == [1, 2, 0, 4, 0]
    with pytest.raises(UserError, match="does not know the word 'neu', and has no <unk>"):
        score_sentences(b"a b\n\nb neu neuer\n", table, model)


def test_words_of_another_model_are_refused():
    table = word_table([*WORDS, "more"], unknown=0, end=1)
    assert score_sentences(b"a", table, MODEL)[0].tolist() == [2, 1]
    with pytest.raises(UserError, match="outside the vocabulary"):
        score_sentences(b"a more", table, MODEL)


@pytest.mark.parametrize("torn", ["a\fb", "\v", "a b", "a\t", "\0"])
def test_words_that_no_text_has_are_left_out(torn):
    table = word_table(["<unk>", "</s>", torn, "a", "b"], unknown=0, end=1)
    assert score_sentences(f"a {torn} b".encode(), table, MODEL)[0].tolist() == [
        *(3 if word == "a" else 4 for word in ["a", *torn.replace("\0", " ").split(), "b"]),
        1,
    ]


@pytest.mark.parametrize("bad", ["", "x\ny", "x\ny" * 9, "a"])
def test_vocabularies_that_text_cannot_spell_are_refused(bad):
    with pytest.raises(UserError, match="is empty, holds a line break or is there twice"):
        word_table(["</s>", "a", bad, "z"], unknown=None, end=0)
