"""Cutting text into pieces: the same pieces as regular-expression engines give, with fixed Unicode classes."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from parlance.core.errors import UserError
from parlance.text.bpe.patterns import PATTERNS, PatternName, split
from parlance.text.bpe.unicode_classes import (
    BLANK,
    LETTER,
    LOWER,
    MARK,
    NEWLINE,
    NUMBER,
    OTHER,
    SPACE,
    UPPER,
    class_table,
)
from parlance.text.tokenizers import PATTERN

SCALARS = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]


def classes() -> np.ndarray:
    """The class of every code point."""
    class_of, block_of = class_table()
    return class_of.reshape(-1, 128)[block_of].reshape(-1)


def newer() -> set[str]:
    """Characters that the installed `regex` has as letters, marks or numbers, and Unicode 16.0 not yet."""
    found = regex.findall(r"[\p{L}\p{M}\p{N}]", "".join(map(chr, SCALARS)))
    table = classes()
    return {character for character in found if table[ord(character)] == OTHER}


NEWER = newer()
TRICKY = (
    "abzABZ   \n\r\t'''sdmtlvreSDMTLVRE019.,/_-(\"#éÉßſǅʰªäк中日ー"
    "\u0e48\u0301\u0651\u0657²½٣५\u00a0\u3000\u2028\x85\x1c\x1f\u200d🙂👩ﬆ\ufffd\x00"
)
TEXTS = st.one_of(
    st.text(st.sampled_from(TRICKY), max_size=30),
    st.text(st.characters(exclude_categories=["Cs"]).filter(lambda c: c not in NEWER), max_size=30),
    st.text(st.sampled_from(" \n\r\t\u00a0a1."), max_size=20),
)


def matches(expression: str, text: str) -> list[str]:
    return [match.group() for match in regex.finditer(expression, text)]


def test_classes_are_those_of_oniguruma() -> None:
    """Of all characters that were assigned in Unicode 16.0; a newer version may know more."""
    table = classes()
    for expression, members in {
        r"[\p{Lu}\p{Lt}]+": [UPPER],
        r"\p{Ll}+": [LOWER],
        r"[\p{Lm}\p{Lo}]+": [LETTER],
        r"\p{M}+": [MARK],
        r"\p{N}+": [NUMBER],
        r"\s+": [NEWLINE, BLANK, SPACE],
    }.items():
        matcher = pre_tokenizers.Split(Regex(expression), behavior="removed", invert=True)
        found = {
            ord(character)
            for start in range(0, len(SCALARS), 1 << 15)
            for run, _ in matcher.pre_tokenize_str("".join(map(chr, SCALARS[start : start + (1 << 15)])))
            for character in run
        }
        assert set(np.flatnonzero(np.isin(table, members))) == {code for code in found if table[code] != OTHER}


def test_classes_are_those_of_unicodedata_up_to_its_version() -> None:
    kinds = {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LETTER, "Lo": LETTER}
    table = classes()
    for code in SCALARS:
        category = unicodedata.category(chr(code))
        expected = kinds.get(category) or {"M": MARK, "N": NUMBER}.get(category[0])
        if expected is not None and table[code] != OTHER:
            assert table[code] == expected, hex(code)
        if category not in ("Cn", "Co", "Cs") and float(".".join(unicodedata.unidata_version.split(".")[:2])) <= 16.0:
            assert (expected or 0) == table[code] or table[code] in (NEWLINE, BLANK, SPACE), hex(code)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_pieces_are_those_of_the_expression(name: PatternName, text: str) -> None:
    assert split(text, name) == matches(PATTERNS[name].expression, text)


@pytest.mark.parametrize("name", ["gpt2", "llama3", "o200k", "parlance"])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_pieces_are_those_of_tokenizers(name: PatternName, text: str) -> None:
    matcher = pre_tokenizers.Split(Regex(PATTERNS[name].expression), behavior="isolated")
    assert split(text, name) == [piece for piece, _ in matcher.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PATTERNS)
def test_pieces_of_source_code(name: PatternName) -> None:
    sources = [Path(subprocess.__file__), *sorted(Path(subprocess.__file__).parent.glob("t*.py"))[:8]]
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert split(text, name) == matches(PATTERNS[name].expression, text)


@pytest.mark.data
@pytest.mark.parametrize("name", PATTERNS)
def test_pieces_of_many_languages(name: PatternName, data_folder: Path) -> None:
    checked = 0
    for path in sorted(data_folder.glob("*/*"))[:400]:
        if path.suffix in (".txt", ".jsonl", ".csv", ".tsv", ".md") and path.stat().st_size < 2_000_000:
            text = path.read_bytes()[:100_000].decode("utf-8", errors="replace")
            if not NEWER.intersection(text):
                assert split(text, name) == matches(PATTERNS[name].expression, text), path
                checked += 1
    assert checked >= 3


def test_the_own_pattern_is_that_of_the_tokenizers() -> None:
    assert PATTERNS["parlance"].expression == PATTERN


def test_lone_surrogates_count_as_replacement_characters() -> None:
    assert split("a\ud800b", "gpt2") == ["a", "\ufffd", "b"]


def test_no_text_has_no_pieces() -> None:
    assert split("", "gpt4") == []


def test_unknown_pattern() -> None:
    with pytest.raises(UserError, match=r"gpt5.*choose one of gpt2"):
        split("a", "gpt5")  # type: ignore[arg-type]


def test_importing_does_not_load_numba() -> None:
    code = (
        "import sys, parlance.text.bpe, parlance.text.bpe.encoding, parlance.text.bpe.training;"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
