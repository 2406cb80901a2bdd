"""Encoding: the rule written out; the ids of tokenizers and tiktoken for trained, GPT-2's and GPT-4's vocabularies."""

import base64
import gzip
import itertools
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from parlance.core.errors import UserError
from parlance.text.bpe import encoding
from parlance.text.bpe.counting import count_pieces
from parlance.text.bpe.encoding import Encoder
from parlance.text.bpe.patterns import PATTERNS, PatternName, split
from parlance.text.bpe.training import tokens_of_merges, train, train_merges

BYTES = [bytes([value]) for value in range(256)]
SAMPLE = "def f(x):\n    return x + 1000  # naïve 🙂🙂 'll 'S\n\n\n\tИтак, 日本語のテキスト   \r\n  " * 3
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text(st.sampled_from("abet hnr  \n'.é1"), max_size=120),
)


def by_the_rule(tokens: Sequence[bytes], pattern: PatternName, text: str) -> list[int]:
    """The rule of the module's docstring, word for word."""
    rank_of = {token: rank for rank, token in enumerate(tokens) if token}
    ids: list[int] = []
    for piece in split(text, pattern):
        raw = piece.encode()
        parts = [raw] if raw in rank_of else [raw[i : i + 1] for i in range(len(raw))]
        while True:
            ranks = [rank_of.get(a + b, 1 << 40) for a, b in itertools.pairwise(parts)]
            if not ranks or min(ranks) == 1 << 40:
                break
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [rank_of[part] for part in parts]
    return ids


@cache
def trained(pattern: PatternName) -> tuple[list[bytes], np.ndarray]:
    source = Path(os.__file__).read_text(encoding="utf-8") + "".join(map(chr, range(0x400, 0x460))) * 3
    merges = train_merges(count_pieces([source, SAMPLE], pattern), 900)
    return tokens_of_merges(merges), merges


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_ids_follow_the_rule(pattern: PatternName, texts: list[str]) -> None:
    tokens, _ = trained(pattern)
    encoder = encoder_of(pattern)
    ids, offsets = encoder.encode_batch(texts, threads=1)
    assert len(offsets) == len(texts) + 1
    for index, text in enumerate(texts):
        expected = by_the_rule(tokens, pattern, text)
        assert ids[offsets[index] : offsets[index + 1]].tolist() == expected
        assert encoder.encode(text) == expected


@cache
def encoder_of(pattern: PatternName) -> Encoder:
    return Encoder(trained(pattern)[0], pattern)


def characters() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "o200k", "parlance"])
def test_ids_are_those_of_tokenizers(pattern: PatternName) -> None:
    tokens, merges = trained(pattern)
    letters = characters()
    names = ["".join(letters[byte] for byte in token) for token in tokens]
    backend = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[(names[a], names[b]) for a, b in merges.tolist()],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern].expression), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    for path in sorted(Path(os.__file__).parent.glob("c*.py")):
        text = path.read_text(encoding="utf-8") + SAMPLE
        assert encoder_of(pattern).encode(text) == backend.encode(text).ids


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 66, 255, 256, 257, 700])
@pytest.mark.parametrize("letters", ["a", "ab", "the", " ", "\n "])
def test_pieces_of_every_length(letters: str, length: int) -> None:
    """The layouts of the tables and the two ways of joining change at these lengths."""
    tokens, _ = trained("gpt2")
    text = (letters * length)[:length]
    encoder = Encoder(tokens, "gpt2")
    assert encoder.encode(text) == encoder.encode(text) == by_the_rule(tokens, "gpt2", text)


@pytest.mark.parametrize("letter", [" ", "a", "é", "(", "\n"])
def test_a_megabyte_in_one_piece(letter: str) -> None:
    tokens = [*BYTES, *((letter * (2 << power)).encode() for power in range(8))]
    if letter == "é":
        tokens.insert(256, b"\xc3\xa9")
    text = letter * (1 << 20)
    ids = Encoder(tokens, "gpt4").encode(text)
    assert b"".join(tokens[i] for i in ids) == text.encode()
    assert len(ids) == 1 << 12


def test_threads_and_batches_do_not_show() -> None:
    texts = [f"{SAMPLE} {i} " * (i % 50) for i in range(300)] + ["", "x" * 2_000_000, ""]
    encoder = encoder_of("parlance")
    one, two = encoder.encode_batch(texts, threads=1), encoder.encode_batch(texts, threads=3)
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.offsets, two.offsets)
    assert one.ids.dtype == np.uint32
    assert one.offsets.dtype == np.int64
    for index in (0, 7, 299, 300, 302):
        assert one.ids[one.offsets[index] : one.offsets[index + 1]].tolist() == encoder.encode(texts[index])
    streamed = list(encoder.encode_stream(iter(texts), threads=2))
    assert np.array_equal(np.concatenate([part.ids for part in streamed]), one.ids)
    assert sum(len(part.offsets) - 1 for part in streamed) == len(texts)


def test_a_full_cache_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CACHE_ROWS", 16)
    monkeypatch.setattr(encoding, "_CACHE_STORE", 600)
    tokens, _ = trained("gpt2")
    text = " ".join(f"word{i} and{'n' * (i % 40)}" for i in range(300)) + " the" * 20
    assert Encoder(tokens, "gpt2").encode(text) == by_the_rule(tokens, "gpt2", text)


def test_no_texts() -> None:
    encoder = Encoder(BYTES, "gpt2")
    assert encoder.encode("") == []
    assert encoder.encode_batch([]).offsets.tolist() == [0]
    assert encoder.encode_batch(["", ""]).offsets.tolist() == [0, 0, 0]
    assert encoder.encode_batch(["", "é", "", "a"]).offsets.tolist() == [0, 0, 2, 2, 3]


def test_lone_surrogates_become_replacement_characters() -> None:
    assert bytes(Encoder(BYTES, "gpt2").encode("a\ud800b")).decode() == "a\ufffdb"


def test_ids_that_no_text_gives() -> None:
    tokens = [b"", *BYTES, b"", b"ab"]
    assert Encoder(tokens, "gpt2").encode("abc") == [258, 1 + ord("c")]


def test_tokens_without_a_merge_of_their_own() -> None:
    """Where the order of ranks is not one of merges, joined bytes decide: (a, bc) and (ab, c) both make abc."""
    tokens = [*BYTES, b"ab", b"bc", b"abc", b"cd", b"abcd"]
    encoder = Encoder(tokens, "gpt2")
    for text in ("abc", "abcx", "xabc", "bcd", "abcdcd", "aabcbcd"):
        assert encoder.encode(text) == by_the_rule(tokens, "gpt2", text)


def test_bad_vocabularies() -> None:
    with pytest.raises(UserError, match="byte 255"):
        Encoder(BYTES[:255], "gpt2")
    with pytest.raises(UserError, match="b'ab'"):
        Encoder([*BYTES, b"ab", b"ab"], "gpt2")
    with pytest.raises(UserError, match="choose one of"):
        Encoder(BYTES, "gpt5")  # type: ignore[arg-type]


def gpt2_ranks(folder: Path) -> list[bytes]:
    byte_of = {letter: byte for byte, letter in characters().items()}
    with gzip.open(folder / "gpt2_bpe" / "encoder.json.gz") as file:
        vocabulary = json.load(file)
    ranks = [b""] * len(vocabulary)
    for name, index in vocabulary.items():
        ranks[index] = b"" if name == "<|endoftext|>" else bytes(byte_of[letter] for letter in name)
    return ranks


def gpt4_ranks(folder: Path) -> list[bytes]:
    with gzip.open(folder / "cl100k_tiktoken" / "cl100k_base.tiktoken.gz") as file:
        rows = [line.split() for line in file if line.strip()]
    ranks = [b""] * len(rows)
    for token, rank in rows:
        ranks[int(rank)] = base64.b64decode(token)
    return ranks


def real_texts(folder: Path) -> list[str]:
    paths = [folder / "tinyshakespeare" / "input.txt", *sorted(Path(os.__file__).parent.glob("[d-f]*.py"))]
    texts = [path.read_text(encoding="utf-8", errors="replace")[:200_000] for path in paths]
    generator = np.random.default_rng(1)
    for highest in (0x80, 0x800, 0x3000, 0xA000, 0x20000):
        codes = generator.integers(0, highest, size=2000)
        texts.append("".join(chr(code) for code in codes if not 0xD800 <= code <= 0xDFFF))
    return [*texts, SAMPLE, " " * 300 + "a", "\n" * 77, "é" * 500, "🙂" * 100]


@pytest.mark.data
@pytest.mark.parametrize(("pattern", "ranks"), [("gpt2", gpt2_ranks), ("gpt4", gpt4_ranks)])
def test_ids_are_those_of_tiktoken(
    pattern: PatternName, ranks: Callable[[Path], list[bytes]], data_folder: Path
) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokens = ranks(data_folder)
    mergeable = {token: rank for rank, token in enumerate(tokens) if token}
    peer = tiktoken.Encoding(
        pattern, pat_str=PATTERNS[pattern].expression, mergeable_ranks=mergeable, special_tokens={}
    )
    texts = real_texts(data_folder)
    ids, offsets = Encoder(tokens, pattern).encode_batch(texts)
    for index, expected in enumerate(peer.encode_ordinary_batch(texts)):
        assert ids[offsets[index] : offsets[index + 1]].tolist() == expected


@pytest.mark.data
def test_ids_are_those_of_the_gpt2_tokenizer(data_folder: Path) -> None:
    with gzip.open(data_folder / "gpt2_bpe" / "gpt2_tokenizer.json.gz") as file:
        peer = Tokenizer.from_str(file.read().decode())
    texts = real_texts(data_folder)
    ids, offsets = Encoder(gpt2_ranks(data_folder), "gpt2").encode_batch(texts)
    for index, found in enumerate(peer.encode_batch(texts)):
        assert ids[offsets[index] : offsets[index + 1]].tolist() == found.ids


def test_training_and_encoding_agree() -> None:
    """A text's ids are what the merges of its own training leave."""
    text = Path(os.__file__).read_text(encoding="utf-8")
    tokens = train([text], 600, "gpt2")
    assert b"".join(tokens[i] for i in Encoder(tokens, "gpt2").encode(text)).decode() == text
