"""Every kind that is trained here: the same ids as `transformers` and `tokenizers`, what is lossless, what is lost."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.chat_template import CHAT_TEMPLATE
from parlance.text.tokenizers import PATTERNS, SPECIAL_TOKENS, UNKNOWN, Tokenizer, train_tokenizer
from parlance.text.tokenizers.patterns import WORD_PATTERN

ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
"""Characters of Python's Unicode version; the regular-expression engines may disagree on newer ones."""
PIECES = st.sampled_from([
    "\n", "    ", "\t", "\r\n", "def ", "(x):", "self.", "123", "_a", "é", "😀", "👨\u200d👩\u200d👧", "it's",
    "IT'S", " the", "\n\n  ", "<unk>", "日本", "\u093c", "ſ",
])  # fmt: skip
TEXT = st.one_of(st.text(ASSIGNED), st.lists(PIECES | st.text(ASSIGNED, max_size=3)).map("".join))
INVALID = st.text(st.characters() | st.characters(categories=("Cs",)))

KINDS: dict[str, Callable[[list[str]], Tokenizer]] = {
    "byte": lambda texts: train_tokenizer(texts, "byte"),
    "char": lambda texts: train_tokenizer(texts, "char"),
    "word": lambda texts: train_tokenizer(texts, "word", 700),
    "parlance": lambda texts: train_tokenizer(texts, "bpe", 400),
    "gpt2": lambda texts: train_tokenizer(texts, "bpe", 400, "gpt2"),
    "gpt4": lambda texts: train_tokenizer(texts, "bpe", 400, "gpt4"),
    "o200k": lambda texts: train_tokenizer(texts, "bpe", 400, "o200k"),
}
LOSSLESS = ("byte", "parlance", "gpt2", "gpt4", "o200k")


@pytest.fixture(scope="module", params=KINDS)
def kind(
    request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tokenizer, Path]:
    """(name, tokenizer, folder it is saved in)."""
    tokenizer = KINDS[request.param](texts)
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save(folder)
    return request.param, tokenizer, folder


@pytest.fixture(scope="module")
def word(texts: list[str]) -> Tokenizer:
    return KINDS["word"](texts)


@pytest.fixture(scope="module")
def char(texts: list[str]) -> Tokenizer:
    return KINDS["char"](texts)


def test_all_libraries_give_identical_ids(kind: tuple[str, Tokenizer, Path]) -> None:
    _, tokenizer, folder = kind
    theirs = Backend.from_file(str(folder / "tokenizer.json"))
    transformers = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    loaded = Tokenizer.load(folder)
    assert len(transformers) == tokenizer.vocab_size == loaded.vocab_size
    assert transformers.eos_token_id == tokenizer.end_of_text
    assert transformers.pad_token_id == tokenizer.pad
    assert transformers.unk_token_id == tokenizer.unknown
    assert transformers.chat_template == CHAT_TEMPLATE

    @settings(deadline=None, max_examples=60)
    @given(TEXT | INVALID)
    @example("")
    @example("a\ud800b \udfff")
    def identical(text: str) -> None:
        assume("<|" not in text and UNKNOWN not in text)  # they take names of special tokens for special tokens
        ids = tokenizer.encode(text)
        assert loaded.encode(text) == tokenizer.encode_batch([text])[0] == ids
        valid = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)  # the only texts they take
        assert theirs.encode(valid, add_special_tokens=False).ids == ids
        assert transformers(valid)["input_ids"] == ids
        assert transformers.decode(ids) == tokenizer.decode(ids)

    identical()


def test_decoding_and_bytes(kind: tuple[str, Tokenizer, Path]) -> None:
    name, tokenizer, _ = kind
    specials = set(tokenizer.special_tokens.values()) - {tokenizer.unknown}

    @settings(deadline=None, max_examples=60)
    @given(TEXT)
    @example("<|endoftext|></s><unk><|pad|><|im_start|>")
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert not specials & set(ids)
        known = tokenizer.unknown not in ids
        assert known or name not in LOSSLESS
        length = int(tokenizer.token_byte_lengths[np.array(ids, dtype=int)].sum())
        if known:
            assert tokenizer.decode(ids) == text
            assert tokenizer.decode_bytes(ids) == b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
            assert length == len(text.encode())
        else:
            assert UNKNOWN in tokenizer.decode(ids)
            assert length < len(text.encode())

    check()


@pytest.mark.parametrize("name", PATTERNS)
def test_every_engine_cuts_the_same_pieces(name: Any) -> None:
    splitter = pre_tokenizers.Split(Regex(PATTERNS[name]), behavior="isolated")
    theirs = regex.compile(PATTERNS[name].replace(r"\z", r"\Z"))

    @settings(deadline=None, max_examples=60)
    @given(TEXT)
    @example("it's IT'LL we'Ve 'ſ x'D  \n\n  ")
    def check(text: str) -> None:
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)]
        assert pieces == theirs.findall(text)
        assert "".join(pieces) == text

    check()


def test_patterns_are_those_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expressions in its source, where only the spelling differs, cut the same pieces."""
    pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    originals = {"gpt2": openai_public.r50k_base, "gpt4": openai_public.cl100k_base, "o200k": openai_public.o200k_base}
    pairs = [
        (regex.compile(PATTERNS[name].replace(r"\z", r"\Z")), regex.compile(make()["pat_str"].replace("$", r"\Z")))
        for name, make in originals.items()  # type: ignore[index]
    ]

    @settings(deadline=None, max_examples=150)
    @given(TEXT)
    @example("it'S a \n\n  b1234 \n\n  ")
    def check(text: str) -> None:
        for ours, original in pairs:
            assert ours.findall(text) == original.findall(text)

    check()


def test_characters_by_frequency(char: Tokenizer, texts: list[str]) -> None:
    counts = Counter("".join(texts))
    order = sorted(counts, key=lambda c: (-counts[c], c))
    assert [char.token_bytes(i).decode() for i in range(len(order))] == order
    assert char.vocab_size == len(order) + 1 + len(SPECIAL_TOKENS)
    assert char.unknown == char.special_id(UNKNOWN) == len(order)
    assert char.encode_batch(texts) == [[order.index(c) for c in text] for text in texts]
    assert char.decode(char.encode("a😀😀b")) == "a<unk><unk>b"
    assert int(char.token_byte_lengths[char.encode("a😀b")].sum()) == 2


def test_words_by_frequency(word: Tokenizer, texts: list[str]) -> None:
    counts = Counter(piece for text in texts for piece in regex.findall(WORD_PATTERN, text))
    order = sorted(counts, key=lambda w: (-counts[w], w))[: 700 - 5]
    assert [word.token_bytes(i).decode() for i in range(len(order))] == order
    number = {piece: i for i, piece in enumerate(order)}
    expected = [[number.get(p, word.unknown) for p in regex.findall(WORD_PATTERN, text)] for text in texts]
    assert word.encode_batch(texts) == expected


def test_word_pieces() -> None:
    assert regex.findall(WORD_PATTERN, "It's  2 naïve_x, don’t\n\tstop!! O'Neil's") == [
        "It's", " ", " 2", " naïve_x", ",", " don’t", "\n", "\t", "stop", "!", "!", " O'Neil's",
    ]  # fmt: skip


def test_only_the_spelling_of_unknown_words_is_lost(word: Tokenizer) -> None:
    text = "def frobnicate(self):\n    return zyzzyva + 17"
    assert word.decode(word.encode(text)) == "def<unk>(self):\n    return<unk> + 17"
    assert word.encode("<unk>", allowed_special={UNKNOWN}) == [word.unknown]
    assert word.unknown not in word.encode("<")


def test_special_names_in_user_text_are_text(kind: tuple[str, Tokenizer, Path]) -> None:
    _, tokenizer, _ = kind
    for name in (*SPECIAL_TOKENS, "</s>", "<s>", UNKNOWN):
        ids = tokenizer.encode(f"x{name}x")
        assert not set(ids) & (set(tokenizer.special_tokens.values()) - {tokenizer.unknown})
        assert len(ids) > 3
    assert tokenizer.end_of_text in tokenizer.encode("x<|endoftext|>", allowed_special={"<|endoftext|>"})


def test_kind_and_configuration(kind: tuple[str, Tokenizer, Path]) -> None:
    name, tokenizer, folder = kind
    config = json.loads((folder / "tokenizer_config.json").read_text())
    expected = {"format": 1, "kind": name} if name in ("byte", "char", "word") else {"format": 1, "kind": "bpe"}
    assert config["parlance"] == expected | ({"pattern": name} if name in PATTERNS else {})
    assert Tokenizer.load(folder).kind == tokenizer.kind == expected["kind"]
    assert tokenizer.has_chat_template
    with pytest.raises(IndexError):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(IndexError):
        tokenizer.token_bytes(-1)


def test_training_is_deterministic(kind: tuple[str, Tokenizer, Path], texts: list[str]) -> None:
    name, tokenizer, _ = kind
    assert KINDS[name](texts).sha256 == tokenizer.sha256


def test_vocabularies_that_are_too_small_or_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has 3 different characters, which with 5 special tokens make 8; ask for"):
        train_tokenizer(["abc"], "char", 7)
    assert train_tokenizer(["abc"], "char", 8).vocab_size == 8
    with pytest.raises(UserError, match="a vocabulary of 5 is too small"):
        train_tokenizer(["abc"], "word", 5)
    assert train_tokenizer(["a b c"], "word", 6).vocab_size == 6
    with pytest.raises(UserError, match="bytes and special tokens alone are 260"):
        train_tokenizer(["abc"], "bpe", 259)
    capsys.readouterr()
    train_tokenizer(["a b a"], "word", 8)
    assert "instead of" not in capsys.readouterr().err
    train_tokenizer(["a b a"], "word", 9)
    assert "8 tokens instead of the 9 asked for: the text has no more different words" in capsys.readouterr().err
    train_tokenizer(["ab ab"], "bpe", 300)
    assert "262 tokens instead of the 300 asked for: the text has no more pairs" in capsys.readouterr().err
    for kind in ("bpe", "char", "word"):
        for nothing in ([], [""]):
            with pytest.raises(UserError, match="no text to train on"):
                train_tokenizer(nothing, kind)  # type: ignore[arg-type]
