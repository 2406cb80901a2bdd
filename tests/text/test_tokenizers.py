import gzip
import itertools
import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
import rustbpe
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.bpe.patterns import PATTERNS as BPE_PATTERNS
from parlance.text.tokenizers import (
    PATTERN,
    SPECIAL_TOKENS,
    Kind,
    PatternName,
    Tokenizer,
    import_tokenizer,
    merges_of_ranks,
    train_tokenizer,
)
from parlance.text.tokenizers import tokenizer as class_module

ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
"""Characters of Python's Unicode version; the regular-expression engines may disagree on newer ones."""
CODE = st.sampled_from(["\n", "    ", "\t", "\r\n", "def ", "(x):", "self.", "123", "_a", "é", "😀", "# ", '"""', " "])
TEXT = st.one_of(
    st.text(ASSIGNED), st.lists(CODE).map("".join), st.lists(st.text(ASSIGNED, max_size=3) | CODE).map("".join)
)


@pytest.fixture(scope="module")
def peer(texts: list[str]) -> rustbpe.Tokenizer:
    """The trainer's own encoder."""
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 1024 - len(SPECIAL_TOKENS), pattern=PATTERN)
    return trainer


@pytest.fixture(scope="module")
def transformers_peer(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@given(TEXT)
@example("x\n        return y")
@example("a\u0301ß ſt İ 我 १२३ ½²³ \u00a0\u2028\x85\x1c")
def test_both_engines_cut_the_same_pieces(text: str) -> None:
    """Oniguruma in `tokenizers` against Python's `regex`; rustbpe is compared through its ids below."""
    splitter = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)]
    assert pieces == regex.findall(PATTERN, text)
    assert "".join(pieces) == text


def test_every_assigned_character_has_the_same_class_in_both_engines() -> None:
    characters = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    text = "".join(f"{c}a" for c in characters)
    splitter = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == regex.findall(PATTERN, text)


def test_pieces() -> None:
    code = "def f(x):\n    if x > 1234:\n\n        return self._name  # it's\n\tend"
    assert regex.findall(PATTERN, code) == [
        "def", " f", "(x", "):\n    ", "if", " x", " >", " ", "12", "34", ":\n\n        ", "return", " self", "._",
        "name", "  ", "#", " it", "'s", "\n\t", "end",
    ]  # fmt: skip


@given(TEXT)
def test_ids_equal_those_of_the_trainer(bpe: Tokenizer, peer: rustbpe.Tokenizer, text: str) -> None:
    assert bpe.encode(text) == peer.encode(text)


def test_ids_equal_those_of_the_trainer_on_its_text(bpe: Tokenizer, peer: rustbpe.Tokenizer, texts: list[str]) -> None:
    assert bpe.encode_batch(texts) == [peer.encode(text) for text in texts]
    ranks = {bytes(token): rank for token, rank in peer.get_mergeable_ranks()}
    assert ranks == {bpe.token_bytes(i): i for i in range(1024 - len(SPECIAL_TOKENS))}


@given(text=TEXT)
@example(text="")
@example(text="<|endoftext|><|im_start|>")
@pytest.mark.parametrize("name", ["bpe", "byte_level"])
def test_decoding_inverts_encoding(request: pytest.FixtureRequest, name: str, text: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode() == tokenizer.decode_bytes(ids)
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert tokenizer.encode_batch([text, "x"]) == [ids, tokenizer.encode("x")]
    assert int(tokenizer.token_byte_lengths[np.array(ids, dtype=int)].sum()) == len(text.encode())


@pytest.mark.parametrize("seed", range(20))
def test_ids_equal_those_of_the_trainer_on_runs(seed: int) -> None:
    """Runs of one letter can be joined in many ways; every one must be the trainer's."""
    choose = random.Random(seed)
    texts = ["".join(choose.choice(["a", "b", "a" * choose.randint(1, 9)]) for _ in range(40)) for _ in range(10)]
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), 320, pattern=PATTERN)
    tokenizer = train_tokenizer(texts, "bpe", 320 + len(SPECIAL_TOKENS))
    fresh = ["".join(choose.choices("aab", k=60)) for _ in range(20)]
    assert tokenizer.encode_batch(texts + fresh) == [trainer.encode(text) for text in texts + fresh]


def test_a_very_long_run_is_no_trouble() -> None:
    tokenizer = train_tokenizer([" " * 50_000], "bpe", 512)
    assert len(tokenizer.encode(" " * 32_768)) == 1


def test_byte_ids_are_the_bytes(byte_level: Tokenizer) -> None:
    text = "héllo\n😀"
    assert byte_level.encode(text) == list(text.encode())
    assert byte_level.vocab_size == 260
    assert byte_level.decode([0xC3]) == "\ufffd"
    assert byte_level.decode_bytes([0xC3]) == b"\xc3"
    for outside in (260, -100):
        with pytest.raises(IndexError):
            byte_level.decode([outside])


@given(text=TEXT)
@settings(deadline=None)
def test_transformers_gives_identical_ids(bpe: Tokenizer, transformers_peer, text: str) -> None:  # type: ignore[no-untyped-def]
    assume("<|" not in text)  # transformers always takes names of special tokens for special tokens
    ids = bpe.encode(text)
    assert transformers_peer(text)["input_ids"] == ids
    assert transformers_peer.decode(ids) == text


def test_transformers_knows_the_special_tokens(bpe: Tokenizer, transformers_peer) -> None:  # type: ignore[no-untyped-def]
    assert len(transformers_peer) == bpe.vocab_size == 1024
    assert transformers_peer.eos_token_id == bpe.end_of_text == 1020
    assert transformers_peer.pad_token_id == bpe.pad == 1021
    assert transformers_peer.convert_tokens_to_ids("<|im_end|>") == bpe.end_of_turn == 1023
    text = "a<|im_start|>b"
    assert transformers_peer(text)["input_ids"] == bpe.encode(text, allowed_special={"<|im_start|>"})


def test_special_tokens_in_text_are_ordinary_unless_allowed(bpe: Tokenizer) -> None:
    text = "a<|endoftext|>b<|pad|>"
    assert len(bpe.encode(text)) > 4
    ids = bpe.encode(text, allowed_special={"<|endoftext|>"})
    assert ids == [*bpe.encode("a"), bpe.end_of_text, *bpe.encode("b"), *bpe.encode("<|pad|>")]
    assert bpe.decode(ids) == "ab<|pad|>"
    assert bpe.decode(ids, skip_special=False) == text
    with pytest.raises(UserError, match="no special token <nope>"):
        bpe.encode(text, allowed_special={"<nope>"})


@pytest.mark.parametrize("name", ["bpe", "byte_level"])
def test_saved_and_loaded(request: pytest.FixtureRequest, name: str, texts: list[str], tmp_path: Path) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == tokenizer.sha256
    assert again.special_tokens == tokenizer.special_tokens
    assert again.vocab_size == tokenizer.vocab_size
    assert again.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert again.encode("<|endoftext|>") == tokenizer.encode("<|endoftext|>")
    again.save(tmp_path / "copy")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "copy" / file).read_bytes()
    assert "generation" in json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]


def test_training_is_deterministic(texts: list[str], bpe: Tokenizer) -> None:
    assert train_tokenizer(iter(texts), "bpe", 1024).sha256 == bpe.sha256


def test_indentation_becomes_tokens(bpe: Tokenizer) -> None:
    tokens = {bpe.token_bytes(i) for i in range(bpe.vocab_size)}
    assert {b"\n        ", b":\n        ", b"        "} <= tokens


def test_a_small_corpus_gives_a_small_vocabulary() -> None:
    tokenizer = train_tokenizer(["ab ab ab"], "bpe", vocab_size=4096)
    assert tokenizer.vocab_size == 256 + 2 + len(SPECIAL_TOKENS)  # "ab", " ab"
    assert tokenizer.end_of_text == 258
    assert tokenizer.decode(tokenizer.encode("ab abc")) == "ab abc"


def test_merges_of_ranks_drops_a_second_way_to_the_same_bytes() -> None:
    letters = [bytes([value]) for value in range(256)]
    tokens, merges = merges_of_ranks([*letters, b"ab", b"abc", b"abc", b"abcd"])
    assert tokens[256:] == [b"ab", b"abc", b"abcd"]
    assert merges == [(b"a", b"b"), (b"ab", b"c"), (b"abc", b"d")]


def test_lone_surrogates(bpe: Tokenizer) -> None:
    assert bpe.decode(bpe.encode("a\ud800b")) == "a\ufffdb"
    assert bpe.encode_batch(["a\ud800b"]) == [bpe.encode("a\ud800b")]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        train_tokenizer(["text"], "bpe", vocab_size=259)
    with pytest.raises(UserError, match="no text to train on"):
        train_tokenizer([], "bpe")
    with pytest.raises(UserError, match="no text to train on"):
        train_tokenizer([""], "bpe")
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        ({"format": 99, "kind": "bpe"}, "written by a later Parlance .format 99; this one reads up to 1"),
        ({"format": "x"}, "`parlance.format` is 'x', not a version"),
        ("x", "`parlance.format` is None, not a version"),
    ],
)
def test_folders_of_another_version_are_refused(
    byte_level: Tokenizer, tmp_path: Path, ours: object, reason: str
) -> None:
    byte_level.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert config["parlance"] == {"format": 1, "kind": "byte"}
    file.write_text(json.dumps(config | {"parlance": ours}))
    with pytest.raises(UserError, match=reason):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"{}", b'{"model": {"type": "BPE"}}', b"\xff\x00"])
def test_damaged_files_are_refused_in_one_sentence(byte_level: Tokenizer, tmp_path: Path, damage: bytes) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        byte_level.save(tmp_path)
        (tmp_path / name).write_bytes(damage)
        if name == "tokenizer_config.json" and damage.startswith(b"{") and damage.endswith(b"}"):
            continue  # a configuration may say anything, or nothing
        with pytest.raises(UserError, match=name) as refusal:
            Tokenizer.load(tmp_path)
        assert "\n" not in str(refusal.value)


def test_what_would_change_ids_is_left_out(bpe: Tokenizer, tmp_path: Path) -> None:
    """Stored truncation, padding and merges that are dropped at random."""
    bpe.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "def indentation(text): return text"
    assert Tokenizer.load(tmp_path).encode(text) == bpe.encode(text)


def test_a_kill_between_the_files_leaves_no_tokenizer(
    byte_level: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(class_module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        byte_level.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"]


def test_a_missing_configuration_is_named_where_it_is_needed(byte_level: Tokenizer, tmp_path: Path) -> None:
    byte_level.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path).end_of_text == byte_level.end_of_text, "our own names need none"
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "</s>"))
    with pytest.raises(UserError, match=r"no tokenizer_config\.json .* names its eos_token"):
        _ = Tokenizer.load(tmp_path).end_of_text


@pytest.mark.parametrize("kind", ["bpe", "byte", "char", "word"])
@pytest.mark.parametrize("pattern", ["parlance", "gpt2", "gpt4", "o200k"])
def test_bulk_encoding_gives_the_same_ids(texts: list[str], kind: Kind, pattern: PatternName) -> None:
    if kind != "bpe" and pattern != "parlance":
        pytest.skip("only bpe has patterns")
    tokenizer = train_tokenizer(texts, kind, 900, pattern)
    hard = [
        *texts,
        "",
        "<|endoftext|>",
        "\ud800 lone",
        "   \n\t\n  x",
        "don't DON'T 12345 日本語 e\u0301 👩‍👩‍👧",
        "\r\n\r\n",
    ]
    ids, offsets = tokenizer.encode_arrays(hard)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == tokenizer.encode_batch(hard)
    assert (tokenizer._bulk is not None) == (kind == "bpe")


def test_bulk_encoding_knows_the_form_of_llama_3(texts: list[str]) -> None:
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(BPE_PATTERNS["llama3"].expression), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    tokenizer = Tokenizer(backend, {})
    ids, offsets = tokenizer.encode_arrays([*texts, "12345 don't\r\n\n  x  "])
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == tokenizer.encode_batch(
        [*texts, "12345 don't\r\n\n  x  "]
    )
    assert tokenizer._bulk is not None


@pytest.mark.parametrize("merges", [["a b", "b c", "a bc"], ["b c", "a b", "ab c"]])
def test_merge_lists_that_no_training_made_are_left_to_the_library(merges: list[str]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(merge.replace(" ", "") for merge in merges)]
    pairs = [tuple(merge.split()) for merge in merges]
    backend = Backend(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, {})
    ids, offsets = tokenizer.encode_arrays(["abc", "abc abc"])
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [
        tokenizer.encode("abc"),
        tokenizer.encode("abc abc"),
    ]


@pytest.mark.data
def test_bulk_encoding_knows_imported_vocabularies(data_folder: Path, tmp_path: Path) -> None:
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).write_bytes(gzip.decompress((data_folder / "gpt2_bpe" / f"{name}.gz").read_bytes()))
    gpt2 = import_tokenizer(tmp_path)
    texts = ["Hello, world! 12345\n\n  don't", "<|endoftext|> 日本語 😀", "def f(x):\n    return x"]
    ids, offsets = gpt2.encode_arrays(texts)
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == gpt2.encode_batch(texts)
    assert gpt2._bulk is not None
