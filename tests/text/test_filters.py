"""The quality filters: every rule at its limit, repetition against a slow reference, and filters in a row."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from parlance.text.filters import (
    FILTER_NAMES,
    C4Config,
    FiltersConfig,
    FineWebConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
    Verdict,
    c4,
    c4_rules,
    fineweb,
    gopher_quality,
    gopher_repetition,
    judge,
)
from parlance.text.filters.kernels import repeated_ngrams
from parlance.text.filters.table import WordTable, word_hash
from parlance.text.filters.view import TextView
from parlance.text.filters.words import split_run

_FIVE_LETTERS = ["qx" + "".join(letters) for letters in product(ascii_lowercase, repeat=3)]
C4_OF_FINEWEB = FiltersConfig().c4


def prose(words: int) -> list[str]:
    """So many different words, two stop words first."""
    numbers = range(words - 2)
    more = [word if n < len(_FIVE_LETTERS) else "y" + word for n in numbers for word in [_FIVE_LETTERS[n % 17576]]]
    return ["the", "and", *more[: words - 2]]


def sentence(words: int, first: int = 0) -> str:
    """So many words, unlike those of other sentences, and a full stop."""
    return " ".join(_FIVE_LETTERS[first * 50 : first * 50 + words]) + "."


# --- Gopher quality ---------------------------------------------------------------------------------------------------


def test_published_limits() -> None:
    """The figures of the papers, so that none changes by accident."""
    quality, repetition, web = GopherQualityConfig(), GopherRepetitionConfig(), FineWebConfig()
    assert (quality.min_words, quality.max_words) == (50, 100_000)
    assert (quality.min_mean_word_length, quality.max_mean_word_length) == (3, 10)
    assert (quality.max_symbols_per_word, quality.max_bullet_lines, quality.max_ellipsis_lines) == (0.1, 0.9, 0.3)
    assert (quality.min_alphabetic_words, quality.min_stop_words) == (0.8, 2)
    assert quality.stop_words == ("the", "be", "to", "of", "and", "that", "have", "with")
    assert (repetition.max_duplicate_paragraphs, repetition.max_duplicate_paragraph_characters) == (0.3, 0.2)
    assert (repetition.max_duplicate_lines, repetition.max_duplicate_line_characters) == (0.3, 0.2)
    assert repetition.max_top_ngrams == {2: 0.20, 3: 0.18, 4: 0.16}
    assert repetition.max_duplicate_ngrams == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    assert (web.min_punctuated_lines, web.max_short_lines, web.short_line_length) == (0.12, 0.67, 30)
    assert (web.max_duplicate_line_characters, web.max_newlines_per_word) == (0.01, 0.3)
    assert (C4Config().max_word_length, C4Config().min_words_per_line, C4Config().min_sentences) == (1000, 3, 5)
    assert C4Config().terminal_punctuation
    assert not C4_OF_FINEWEB.terminal_punctuation


_LONG = " ".join(prose(60))
QUALITY_CASES = {
    "too few words": (" ".join(prose(50)), " ".join(prose(49)), 49, 50),
    "too many words": (" ".join(prose(100_000)), " ".join(prose(100_001)), 100_001, 100_000),
    "words too short": ("the and " + "abc " * 98, "the and ab " + "abc " * 97, 2.99, 3),
    "words too long": ("the and " + "a" * 24 + " " + "abcdefghij " * 97, None, None, None),
    "too many hash signs": (" ".join(prose(90) + ["#"] * 10), " ".join(prose(89) + ["#"] * 11), 0.11, 0.1),
    "too many ellipses": (
        " ".join(["...", "…"] * 5 + prose(90)),
        " ".join(["...", "…"] * 5 + ["..."] + prose(89)),
        0.11,
        0.1,
    ),
    "too many bullet lines": (
        "\n".join([" - and some dogs there"] * 5 + ["• the three women came"] * 13 + ["and the"] * 2),
        "\n".join([" - and some dogs there"] * 5 + ["• the three women came"] * 14 + ["and the"] * 1),
        0.95,
        0.9,
    ),
    "too many lines end in an ellipsis": (
        "\n".join([_LONG + "... ", _LONG + "...", _LONG + "…"] + [_LONG] * 7),
        "\n".join([_LONG + "...", _LONG + "...", _LONG + "…"] + [_LONG] * 6),
        1 / 3,
        0.3,
    ),
    "too few words with letters": (
        " ".join(prose(80) + ["12345"] * 20),
        " ".join(prose(79) + ["12345"] * 21),
        0.79,
        0.8,
    ),
    "too few stop words": (_LONG, _LONG.replace("the", "The"), 1, 2),
}


@pytest.mark.parametrize("rule", QUALITY_CASES)
def test_gopher_quality_at_the_limit(rule: str) -> None:
    kept, dropped, figure, limit = QUALITY_CASES[rule]
    if dropped is None:  # 100 words of 10 characters on average, and one character more
        kept = "the and " + "a" * 17 + " " + "b" * 17 + " " + "abcdefghij " * 96
        dropped, figure, limit = kept.replace("b" * 17, "b" * 18), 10.01, 10
    assert gopher_quality(kept) == Verdict()
    verdict = gopher_quality(dropped)
    assert verdict.reason == f"gopher-quality: {rule}"
    assert verdict.figure == pytest.approx(figure)
    assert verdict.limit == limit
    assert verdict.text is None


def test_punctuation_is_no_word_of_the_fifty() -> None:
    assert gopher_quality(" ".join(prose(49)) + " . , ! ( )").reason == "gopher-quality: too few words"


# --- Gopher repetition ------------------------------------------------------------------------------------------------

_UNITS = [sentence(30, first) for first in range(30)]


@pytest.mark.parametrize(("unit", "end"), [("paragraphs", "\n\n"), ("lines", "\n")])
def test_duplicate_parts_at_the_limit(unit: str, end: str) -> None:
    no_ngrams = {"max_top_ngrams": {}, "max_duplicate_ngrams": {}}
    if unit == "lines":
        no_ngrams |= {"max_duplicate_paragraphs": 1.0, "max_duplicate_paragraph_characters": 1.0}
    config = GopherRepetitionConfig(**no_ngrams)
    few = [*_UNITS[:6], "Again.", *["Again."] * 3]  # 3 of 10 occurred before
    assert gopher_repetition(end.join(few), config) == Verdict()
    many = [*_UNITS[:5], "Again.", *["Again."] * 4]
    verdict = gopher_repetition(end.join(many), config)
    assert (verdict.reason, verdict.figure) == (f"gopher-repetition: duplicate {unit}", 0.4)
    # 2 of 10 parts of equal length: their share of characters is a fifth but for the line ends.
    equal = ["x" * 99 + letter for letter in "abcdefgh"]
    text = end.join([*equal, equal[0], equal[1]])
    share = 200 / len(text)
    limits = {f"max_duplicate_{unit[:-1]}_characters": share}
    assert gopher_repetition(text, GopherRepetitionConfig(**(no_ngrams | limits))) == Verdict()
    limits = {f"max_duplicate_{unit[:-1]}_characters": float(np.nextafter(share, 0))}
    verdict = gopher_repetition(text, GopherRepetitionConfig(**(no_ngrams | limits)))
    assert verdict.reason == f"gopher-repetition: characters in duplicate {unit}"
    assert verdict.figure == share


def test_published_character_limit_of_duplicate_lines() -> None:
    config = GopherRepetitionConfig(max_top_ngrams={}, max_duplicate_ngrams={})
    lines = ["a" * 100, "b" * 100, "c" * 50, "d" * 47, "a" * 100]  # 100 of 397 + 4 characters
    assert gopher_repetition("\n".join(lines), config).reason == "gopher-repetition: characters in duplicate lines"
    lines[3] = "d" * 146  # 100 of 500
    assert gopher_repetition("\n".join(lines), config) == Verdict()


def slow_top(words: list[str], n: int, single: bool) -> int:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    most = max(counts.values(), default=0)
    if not counts or (most == 1 and not single):
        return 0
    first = next(gram for gram, count in counts.items() if count == most)  # in order of first occurrence
    return len(" ".join(first)) * most


def slow_duplicate(words: list[str], n: int) -> int:
    seen, at, characters = set(), 0, 0
    while at + n <= len(words):
        gram = tuple(words[at : at + n])
        if gram in seen:
            characters += len("".join(gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd"]), max_size=120)


@settings(deadline=None, max_examples=200)
@given(WORDS, st.booleans())
def test_repetition_is_what_the_slow_reference_finds(words: list[str], single: bool) -> None:
    top_orders, duplicate_orders = np.array([1, 2, 3, 4]), np.array([2, 3, 5, 6, 7, 8, 9, 10])
    top, duplicate = np.zeros(4, dtype=np.int64), np.zeros(8, dtype=np.int64)
    hashes = np.array([word_hash(word) for word in words], dtype=np.uint64)
    lengths = np.array([len(word) for word in words], dtype=np.int32)
    repeated_ngrams(hashes, lengths, top_orders, duplicate_orders, single, top, duplicate)
    assert top.tolist() == [slow_top(words, n, single) for n in top_orders]
    assert duplicate.tolist() == [slow_duplicate(words, n) for n in duplicate_orders]


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6, 7, 8, 9, 10])
def test_ngrams_at_the_limit(order: int) -> None:
    words = prose(60) + _FIVE_LETTERS[30:45] + _FIVE_LETTERS[500:530] + _FIVE_LETTERS[32:43]
    text = " ".join(words)
    kind = "top" if order < 5 else "duplicate"
    characters = slow_top(words, order, False) if order < 5 else slow_duplicate(words, order)
    share = characters / len(text)
    assert share > 0
    none = {"max_top_ngrams": {}, "max_duplicate_ngrams": {}}
    assert gopher_repetition(text, GopherRepetitionConfig(**(none | {f"max_{kind}_ngrams": {order: share}}))).keeps
    below = float(np.nextafter(share, 0))
    verdict = gopher_repetition(text, GopherRepetitionConfig(**(none | {f"max_{kind}_ngrams": {order: below}})))
    name = f"most frequent {order}-gram" if order < 5 else f"duplicate {order}-grams"
    assert verdict == Verdict(f"gopher-repetition: characters in {name}", share, below)


def test_an_ngram_that_occurs_once_counts_only_if_asked() -> None:
    text = "Prices rose sharply in Tokyo."
    assert gopher_repetition(text).keeps
    verdict = gopher_repetition(text, GopherRepetitionConfig(count_single_ngrams=True))
    assert verdict == Verdict("gopher-repetition: characters in most frequent 2-gram", 11 / 29, 0.2)


def test_orders_below_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="at least one word"):
        GopherRepetitionConfig(max_top_ngrams={0: 0.5})


# --- C4 ---------------------------------------------------------------------------------------------------------------

_FIVE = [sentence(3, n) for n in range(5)]


def c4_of(*lines: str, config: C4Config = C4_OF_FINEWEB) -> Verdict:
    """The verdict on five good lines and these."""
    return c4("\n".join([*_FIVE, *lines]), config)


def test_good_lines_stay_as_they_are() -> None:
    assert c4_of() == Verdict()


@pytest.mark.parametrize(
    ("line", "keeps"),
    [
        ("only two", False),
        ("now there three", True),
        (f"a long {'x' * 1000} word", True),
        (f"a long {'x' * 1001} word", False),
        ("you need JavaScript for this", False),
        ("we write java script apart", True),
        ("read our Terms of Use first", False),
        ("read our Privacy Policy first", False),
        ("read our cookie policy first", False),
        ("this site uses cookies all day", False),
        ("the use of cookies is fine", False),
        ("we use cookies for you", False),
        ("we bake cookies for you", True),
    ],
)
def test_c4_drops_lines(line: str, keeps: bool) -> None:
    assert c4_of(line).text == (None if keeps else "\n".join(_FIVE))


@pytest.mark.parametrize(
    ("end", "keeps"),
    [
        (".", True),
        ("?", True),
        ("!", True),
        ('"', True),
        ("'", True),
        ("...", False),
        ("", False),
        (":", False),
        ("”", False),
    ],
)
def test_c4_terminal_punctuation(end: str, keeps: bool) -> None:
    line = "these are five good words" + end
    assert c4_of(line, config=C4Config()).text == (None if keeps else "\n".join(_FIVE))
    assert c4_of(line).keeps


def test_c4_takes_out_citations_and_outer_space() -> None:
    verdict = c4_of("  as was said[12] and done [edit] by[citation needed] them[] [x] ")
    assert verdict.text == "\n".join([*_FIVE, "as was said and done  by them [x]"])
    kept = "as was said[12] by them"
    assert c4_of(kept, config=C4Config(remove_citations=False, terminal_punctuation=False)) == Verdict()


@pytest.mark.parametrize("line", ["some Lorem Ipsum text", "if (x) { return }"])
def test_c4_drops_the_text(line: str) -> None:
    rule = "c4: lorem ipsum" if "Lorem" in line else "c4: curly bracket"
    assert c4_of(line).reason == rule
    # Not where the line was dropped before: too few words, or script.
    assert c4_of("{ }").text == "\n".join(_FIVE)
    assert c4_of("javascript is { here }").text == "\n".join(_FIVE)
    assert c4_of("lorem ipsum").text == "\n".join(_FIVE)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One is here. Two is here. Three! Four? Five", 5),
        ("One is here. Two is here. Three! Four", 4),
        ('He said "One is." (Two.) Three... no. Four? Five', 5),
        ('She said (so we heard): "It goes on."', 1),
        ("Mr. Smith paid 3.50 to Dr. No. Then he left. Three! Four", 4),
        ("一句话。 两句话。 三句话。 四句话。 五句话", 5),
    ],
)
def test_c4_counts_sentences(line: str, sentences: int) -> None:
    verdict = c4(line, C4_OF_FINEWEB)
    assert verdict == (Verdict() if sentences >= 5 else Verdict("c4: too few sentences", sentences, 5))
    assert c4(line, C4Config(terminal_punctuation=False, min_sentences=sentences)).keeps
    over = C4Config(terminal_punctuation=False, min_sentences=sentences + 1)
    assert c4(line, over) == Verdict("c4: too few sentences", sentences, sentences + 1)


def test_every_line_is_a_sentence() -> None:
    assert c4("one two three\n" * 4, C4_OF_FINEWEB).reason == "c4: too few sentences"
    assert c4("one two three\n" * 5, C4_OF_FINEWEB).keeps


def test_mc4_wants_three_long_lines() -> None:
    config = C4Config(variant="mc4")
    assert c4("\n".join(["x" * 200] * 3 + ["short { lorem ipsum"]), config) == Verdict()
    verdict = c4("\n".join(["x" * 200] * 2 + ["x" * 199]), config)
    assert verdict == Verdict("c4: too few long lines", 2, 3)


@pytest.mark.parametrize(
    ("words", "within", "text", "keeps"),
    [
        (("darn",), False, "oh Darn it all", False),
        (("darn",), False, "they darned a sock", True),
        (("darn",), True, "they darned a sock", False),
        (("darn it", "c++"), False, "so (darn it) then", False),
        (("c++",), False, "we like c++ here", False),
        (("女の子",), True, "可愛い女の子です", False),
        (("女の子",), False, "可愛い女の子です", True),
    ],
)
def test_bad_words(words: tuple[str, ...], within: bool, text: str, keeps: bool) -> None:
    config = C4Config(terminal_punctuation=False, bad_words=words, bad_words_within_words=within)
    verdict = c4_of("now " + text + " and then", config=config)
    assert verdict == (Verdict() if keeps else Verdict("c4: bad word", 1, 0))


LINES = st.lists(st.text(st.sampled_from("ab .!?\"'-\t\r\x0b漢"), max_size=25), max_size=12)


@settings(deadline=None)
@given(LINES, st.booleans(), st.integers(0, 4), st.integers(0, 6))
def test_the_short_way_through_c4_is_the_long_one(
    lines: list[str], terminal: bool, least_words: int, sentences: int
) -> None:
    config = C4Config(terminal_punctuation=terminal, min_words_per_line=least_words, min_sentences=sentences)
    view = TextView("\n".join(lines), WordTable())
    assert c4_rules._is_plain(view, config)
    assert c4_rules._plain_lines(view, config) == c4_rules._lines(view, config)


# --- FineWeb ----------------------------------------------------------------------------------------------------------


def lines_of(number: int, end: str, length: int = 40) -> list[str]:
    """Different lines of so many characters."""
    return [f"{_FIVE_LETTERS[n]} {'so ' * 20}"[: length - len(end) - 1] + "x" + end for n in range(number)]


FINEWEB_CASES = {
    "too few lines end in punctuation": (
        lines_of(25, "")[:22] + lines_of(25, "؟")[22:],
        lines_of(25, "")[:23] + lines_of(25, ".")[23:],
        0.08,
    ),
    "too many short lines": (
        lines_of(100, ".", 30)[:67] + lines_of(100, ".", 31)[67:],
        lines_of(100, ".", 30)[:68] + lines_of(100, ".", 31)[68:],
        0.68,
    ),
    "characters in duplicate lines": (
        [*lines_of(99, "."), lines_of(1, ".")[0]],
        [*lines_of(98, "."), lines_of(1, ".")[0]],
        1 / 99,
    ),
}


@pytest.mark.parametrize("rule", FINEWEB_CASES)
def test_fineweb_at_the_limit(rule: str) -> None:
    kept, dropped, figure = FINEWEB_CASES[rule]
    assert fineweb(
        "\n \n".join(kept), FineWebConfig(max_newlines_per_word=9, max_duplicate_line_characters=0.011)
    ).keeps
    if "duplicate" in rule:  # 40 of 4000 characters
        assert fineweb("\n".join(kept)).keeps
    verdict = fineweb("\n".join(dropped))
    assert verdict.reason == f"fineweb: {rule}"
    assert verdict.figure == pytest.approx(figure)


def test_fineweb_counts_line_ends_per_word() -> None:
    line = "this is a long line of more than thirty characters"  # ten words
    text = f"\n\n\n{line}, one.\n{line}, two.\n\n\n\n\nand six."  # 13 + 13 + 3, full stops and commas counted
    assert text.count("\n") == 9
    assert fineweb(text) == Verdict("fineweb: too many line ends", 9 / 29, 0.3)
    assert fineweb(text + " Seven") == Verdict()


def test_fineweb_drops_blank_texts() -> None:
    assert fineweb(" \n\t\n").reason == "fineweb: no text"


# --- In a row ---------------------------------------------------------------------------------------------------------


def good_text() -> str:
    units = [" ".join([*_FIVE_LETTERS[n * 20 : n * 20 + 14], "the", "and"]) + "." for n in range(8)]
    return "\n".join(units)


def test_a_good_text_passes_all() -> None:
    assert judge(good_text(), FILTER_NAMES, FiltersConfig()) == Verdict()


def test_no_filter_keeps_everything() -> None:
    assert judge("", (), FiltersConfig()) == Verdict()


def test_the_first_filter_that_drops_decides() -> None:
    text = "x { y z\n" * 9
    reasons = [judge(text, (name,), FiltersConfig()).reason for name in FILTER_NAMES]
    assert all(reasons)
    assert judge(text, FILTER_NAMES, FiltersConfig()).reason == reasons[0]
    assert judge(text, FILTER_NAMES[::-1], FiltersConfig()).reason == reasons[3]


def test_each_filter_sees_what_the_one_before_left() -> None:
    menu = "\n".join(f"item {n}" for n in range(40))
    text = good_text() + "\n" + menu
    assert judge(text, ("fineweb",), FiltersConfig()).reason == "fineweb: too many short lines"
    assert judge(text, ("c4", "fineweb"), FiltersConfig()) == Verdict(text=good_text())


NOISE = st.text(
    st.sampled_from("aA the.,!?…-•#{}[1]'\"\n\n \t\r\x0b\x1c\u2028\u3000漢か。é\U0001f600\ud800"), max_size=400
)


@settings(deadline=None, max_examples=150)
@given(NOISE | st.text(max_size=100) | st.lists(st.sampled_from([*_FIVE, "\n", " "]), max_size=30).map("".join))
def test_no_text_breaks_a_filter(text: str) -> None:
    for terminal, single in product((False, True), repeat=2):
        config = FiltersConfig(
            c4=C4Config(terminal_punctuation=terminal),
            gopher_repetition=GopherRepetitionConfig(count_single_ngrams=single),
        )
        alone = [judge(text, (name,), config) for name in FILTER_NAMES]
        assert alone[0] == gopher_repetition(text, config.gopher_repetition)
        assert alone[1] == gopher_quality(text, config.gopher_quality)
        assert alone[2] == c4(text, config.c4)
        assert alone[3] == fineweb(text, config.fineweb)
        together = judge(text, FILTER_NAMES, config)
        assert together == judge(text, FILTER_NAMES, config)
        if together.reason:
            assert together.text is None
            assert together.figure is not None
            assert together.limit is not None


SEVERAL = [
    good_text(),
    good_text() * 2,
    "so it goes. " * 40,
    "x { y",
    " ".join(prose(60)),
    good_text() + "\nmenu",
    "漢字。" * 50,
]
IN_ANOTHER_PROCESS = """
import json, sys
from parlance.text.filters import FILTER_NAMES, FiltersConfig, judge
found = [judge(text, FILTER_NAMES, FiltersConfig()) for text in json.load(sys.stdin)]
print(json.dumps([[one.reason, one.figure, one.limit, one.text] for one in found]))
"""


def test_verdicts_do_not_depend_on_process_order_or_thread() -> None:
    def judged(texts: list[str]) -> list[list[object]]:
        found = [judge(text, FILTER_NAMES, FiltersConfig()) for text in texts]
        return [[one.reason, one.figure, one.limit, one.text] for one in found]

    here = judged(SEVERAL)
    assert judged(SEVERAL[::-1])[::-1] == here
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(judged, [SEVERAL] * 6)) == [here] * 6
    there = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        input=json.dumps(SEVERAL),
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(there.stdout) == here


# Relative paths, and what datatrove 0.10 says of the files.
FIXTURES = {
    "documents_line_deduplicated/doc3.txt": "gopher-repetition: characters in most frequent 4-gram",
    "documents_line_deduplicated/doc4.txt": "gopher-repetition: characters in most frequent 3-gram",
    "documents_line_deduplicated/doc5.txt": "gopher-repetition: characters in most frequent 3-gram",
    "documents_with_fuzzy_duplicates/pytorch_license.txt": "gopher-quality: too few words with letters",
    "documents_with_fuzzy_duplicates/rails_mit_license.txt": "fineweb: too few lines end in punctuation",
    "documents_with_fuzzy_duplicates/react_mit_license.txt": None,
    "documents_with_line_duplicates/doc1.txt": "gopher-repetition: characters in most frequent 4-gram",
    "documents_with_line_duplicates/doc2.txt": "gopher-repetition: characters in most frequent 4-gram",
    "documents_with_line_duplicates/doc3.txt": "gopher-repetition: characters in most frequent 4-gram",
    "documents_with_line_duplicates/doc4.txt": "gopher-repetition: characters in most frequent 4-gram",
    "documents_with_line_duplicates/doc5.txt": "gopher-repetition: characters in most frequent 3-gram",
    "high_quality_wiki_reference.txt": None,
    "low_quality_cc.txt": None,
    "moby_extracted.txt": "c4: too few sentences",
}


@pytest.mark.data
@pytest.mark.parametrize("name", FIXTURES)
def test_files_of_a_course_on_data(name: str, data_folder: Path) -> None:
    text = (data_folder / "data_filter_fixtures" / name).read_text(encoding="utf-8")
    config = FiltersConfig(gopher_repetition=GopherRepetitionConfig(count_single_ngrams=True))
    assert judge(text, FILTER_NAMES, config).reason == FIXTURES[name]


def test_words_of_the_tests_are_words() -> None:
    assert all(split_run(word) == [word] for word in prose(20_000))
