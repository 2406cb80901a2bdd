"""Shingles against a slow reference: the rules of the module's docstring, one character and one word at a time."""

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parlance.text.shingling import shingle_hashes, shingle_spans, word_hashes

MASK = 2**64 - 1

CHINESE_OR_JAPANESE = [
    (0x3005, 0x3007),
    (0x3031, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
]

# Words that end before, at and after the borders of blocks of eight bytes, and every kind of character of the rules.
ODD_WORDS = ["abcdefg", "abcdefgh", "abcdefghi", "abcdefé", "ABCDEFGÉ", "abcdefg爱", "ｶﾞ"]
ODD_CHARACTERS = "ＡßİΣςﬁ한각がーヴ々〇･निोक़²½٣𝟘𐐀𠀀@[`{/:_ \u0301\u00ad\u200b\u200d\ufeff\ud800\x00\U0002f800\U0010ffff"
ODD = st.sampled_from([*ODD_WORDS, *ODD_CHARACTERS])
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="aZ09 .é\u0301爱", max_size=60),
    st.text(alphabet=st.characters(codec="ascii"), max_size=60),
    st.lists(ODD, max_size=24).map("".join),
)


def simplified(character: str) -> str:
    """What becomes of one character: letters, nothing, or a space."""
    category = unicodedata.category(character)
    if category in ("Mn", "Me", "Cf"):
        return " " if character == "\u200b" else ""
    if category == "Nd":
        return "0"
    if category[0] not in "LN" and category != "Mc":
        return " "
    decomposed = unicodedata.normalize("NFD", character.lower()).replace("ς", "σ")
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Me"))


def simplified_words(text: str) -> list[tuple[str, int, int]]:
    """Words with their first character and the one after their last, marks included."""
    words: list[tuple[str, int, int]] = []
    is_open = False
    for position, character in enumerate(text):
        becomes = simplified(character)
        alone = len(becomes) == 1 and any(low <= ord(becomes) <= high for low, high in CHINESE_OR_JAPANESE)
        if becomes == " ":
            is_open = False
        elif becomes == "":
            if is_open:
                words[-1] = (words[-1][0], words[-1][1], position + 1)
        elif not is_open or alone or any(low <= ord(words[-1][0][0]) <= high for low, high in CHINESE_OR_JAPANESE):
            words.append((becomes, position, position + 1))
            is_open = True
        else:
            words[-1] = (words[-1][0] + becomes, words[-1][1], position + 1)
    return words


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def word_hash(word: str) -> int:
    data = word.encode("utf-8", "surrogatepass")
    state = 0x243F6A8885A308D3
    for at in range(0, len(data), 8):
        state = (state ^ int.from_bytes(data[at : at + 8], "little")) * 0xD6E8FEB86659FD93 & MASK
        state ^= state >> 32
    return mix(state)


def ngram_hash(words: list[str]) -> int:
    total = 0
    for word in words:
        total = total * 0x9E3779B97F4A7C13 + word_hash(word)
    return mix(total & MASK)


@settings(deadline=None)  # the first call compiles
@given(TEXTS)
@example("a" * 8 + "\u0301")
@example("abcdefg\u00adhijk,abcdefgh")
@example("ひらがな alphabet 爱b")
def test_words_and_their_places_are_those_of_the_reference(text: str) -> None:
    expected = simplified_words(text)
    words = word_hashes(text)
    assert words.starts.tolist() == [start for _, start, _ in expected]
    assert words.ends.tolist() == [end for _, _, end in expected]
    assert words.hashes.tolist() == [word_hash(word) for word, _, _ in expected]


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 13))
def test_shingles_are_those_of_the_reference(text: str, n: int) -> None:
    expected = simplified_words(text)
    places = range(len(expected) - n + 1)
    spans = shingle_spans(text, n)
    assert spans.hashes.tolist() == [ngram_hash([word for word, _, _ in expected[i : i + n]]) for i in places]
    assert shingle_hashes(text, n).tolist() == spans.hashes.tolist()
    assert spans.starts.tolist() == [expected[i][1] for i in places]
    assert spans.ends.tolist() == [expected[i + n - 1][2] for i in places]


def test_every_character_is_treated_as_the_rules_say() -> None:
    # Each between two letters, so that it joins them, separates them, adds a word or vanishes; 13 at a time.
    planes = [*range(0x3500), *range(0x9FF0, 0xAC10), *range(0xD7A0, 0x20010), *range(0x2F800, 0x2FA20)]
    characters = [chr(c) for c in planes]
    text = " ".join(f"a{c}b" for c in characters)
    expected = simplified_words(text)
    words = word_hashes(text)
    assert words.starts.tolist() == [start for _, start, _ in expected]
    known: dict[str, int] = {}
    hashes = [known[w] if w in known else known.setdefault(w, word_hash(w)) for w, _, _ in expected]
    assert words.hashes.tolist() == hashes


def test_what_makes_two_texts_the_same() -> None:
    a = word_hashes("Crème BRÛLÉE, 12.5 %\nfoo_bar Οδός").hashes.tolist()
    assert a == word_hashes("creme-brulee 34 7 Foo bar ΟΔΟΣ").hashes.tolist()
    assert len(word_hashes("我爱Python").hashes) == 3
    assert word_hashes("소리").hashes.tolist() == word_hashes(unicodedata.normalize("NFD", "소리")).hashes.tolist()
    assert len(word_hashes("हिन्दी में").hashes) == 2
    assert word_hashes("").hashes.tolist() == word_hashes(" .,\n").hashes.tolist() == []


def test_hashes_never_change() -> None:
    # Stored signatures and lists of decontamination are compared with new ones.
    assert shingle_hashes("The quick brown fox", 2).tolist() == [
        9258868599617856125,
        17202951264144765275,
        14134258856041088690,
    ]
    assert shingle_hashes("naïve 我", 1).tolist() == [ngram_hash(["naive"]), ngram_hash(["我"])]


def test_hashes_spread_and_know_the_order() -> None:
    # 2 x 10^5 distinct n-grams of few words: none collide, and every bit is set in half of them (5 standard errors).
    words = [chr(97 + i % 20) + chr(97 + i // 20) for i in range(400)]
    text = " ".join(np.random.default_rng(0).choice(words, 200_000).tolist())
    listed = [tuple(simplified_word) for simplified_word in zip(*(text.split()[i:] for i in range(3)), strict=False)]
    distinct = np.unique(shingle_hashes(text, 3))
    assert len(distinct) == len(set(listed))
    share = [(distinct >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(64)]
    assert np.abs(np.array(share) - 0.5).max() < 5 * 0.5 / len(distinct) ** 0.5
    assert shingle_hashes("a b", 2).tolist() != shingle_hashes("b a", 2).tolist()


def test_short_texts_have_no_shingle_and_none_is_below_one_word() -> None:
    assert shingle_hashes("one two three four", 5).shape == (0,)
    assert shingle_hashes("one two three four five", 5).shape == (1,)
    with pytest.raises(ValueError, match="at least one word"):
        shingle_hashes("a", 0)
