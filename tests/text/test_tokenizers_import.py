"""Vocabularies of other projects against the libraries they come from: identical ids, special ids, refusals."""

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from parlance.core.errors import UserError
from parlance.text.tokenizers import PATTERNS, Tokenizer, import_tokenizer, train_tokenizer
from parlance.text.tokenizers.byte_characters import to_characters

ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
PIECES = st.sampled_from(
    [
        "\n",
        "   ",
        "\t",
        "\r\n",
        "def ",
        "self.",
        "123",
        "é",
        "😀",
        "it'S",
        " the",
        "\n\n ",
        "日本",
        "<|endoftext|>",
        "</s>",
    ]
)
TEXT = st.one_of(st.text(ASSIGNED), st.lists(PIECES | st.text(ASSIGNED, max_size=3)).map("".join))


def write_ranks(path: Path, tokenizer: Tokenizer, count: int) -> dict[bytes, int]:
    """The first tokens of a byte-level vocabulary as a tiktoken file."""
    ranks = {tokenizer.token_bytes(i): i for i in range(count)}
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return ranks


def write_gpt2(folder: Path, tokenizer: Tokenizer, names: tuple[str, str]) -> None:
    """A byte-level vocabulary in GPT-2's two files."""
    tokenizer.save(folder / "source")
    model = json.loads((folder / "source" / "tokenizer.json").read_text())["model"]
    (folder / names[0]).write_text(json.dumps({**model["vocab"], "<|endoftext|>": len(model["vocab"])}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / names[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_against_tiktoken(tokenizer: Tokenizer, encoding: Any, texts: list[str]) -> None:
    """Identical ids, special ones included, on random and on given text."""

    @settings(deadline=None, max_examples=100)
    @given(TEXT)
    @example("a  \n\n b \n  ")
    def identical(text: str) -> None:
        assert tokenizer.encode(text) == encoding.encode(text, disallowed_special=())
        every = set(tokenizer.special_tokens)
        assert tokenizer.encode(text, allowed_special=every) == encoding.encode(text, allowed_special="all")

    identical()
    assert tokenizer.encode_batch(texts) == [encoding.encode(text, disallowed_special=()) for text in texts]
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "o200k"])
def test_tiktoken_files(texts: list[str], tmp_path: Path, pattern: Any) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = write_ranks(tmp_path / "x.tiktoken", train_tokenizer(texts, "bpe", 800, pattern), 796)
    imported = import_tokenizer(tmp_path / "x.tiktoken", pattern)
    assert imported.special_tokens == {"<|endoftext|>": 796}
    assert imported.end_of_text == imported.pad == 796
    assert not imported.has_chat_template
    # In Rust `\z` is the end of the text, as here.
    peer = tiktoken.Encoding(
        "x", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens=imported.special_tokens
    )
    check_against_tiktoken(imported, peer, texts)
    imported.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.encode_batch(texts) == imported.encode_batch(texts)
    assert (again.kind, again.sha256) == ("bpe", imported.sha256)


def test_a_token_that_no_merges_reach(tmp_path: Path) -> None:
    """tiktoken takes a whole piece that is a token at once."""
    tiktoken = pytest.importorskip("tiktoken")
    byte_level = train_tokenizer([], "byte")
    ranks = write_ranks(tmp_path / "x.tiktoken", byte_level, 256) | {b"xyz": 256}
    with (tmp_path / "x.tiktoken").open("ab") as file:
        file.write(base64.b64encode(b"xyz") + b" 256\n")
    imported = import_tokenizer(tmp_path / "x.tiktoken", "gpt2")
    peer = tiktoken.Encoding("x", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    for text in ("xyz", "xyzz", "<|endoftext|>"):
        assert imported.encode(text) == peer.encode(text, disallowed_special=())


@pytest.mark.data
def test_cl100k_is_that_of_tiktoken(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken_ext import openai_public

    file = tmp_path / "cl100k_base.tiktoken"
    file.write_bytes(gzip.decompress((data_folder / "cl100k_tiktoken" / "cl100k_base.tiktoken.gz").read_bytes()))
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in file.read_bytes().splitlines()}
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    peer = tiktoken.Encoding(**openai_public.cl100k_base())
    imported = import_tokenizer(file)
    assert imported.special_tokens == peer._special_tokens
    assert imported.vocab_size == peer.n_vocab == 100277
    real = gzip.decompress((data_folder / "wikitext2" / "valid.txt.gz").read_bytes()).decode()[:100_000]
    check_against_tiktoken(imported, peer, [real])
    assert imported.token_bytes(100256) == b"", "an id without a token"
    assert imported.decode([100256, 100257]) == ""


def test_new_tokens_stand_behind_ids_without_a_token(tmp_path: Path, byte_level: Tokenizer) -> None:
    file = tmp_path / "x.tiktoken"
    write_ranks(file, byte_level, 256)
    with file.open("ab") as end:
        end.write(base64.b64encode(b"ab") + b" 300\n")
    plain, chat = import_tokenizer(file, "gpt2"), import_tokenizer(file, "gpt2", "chatml")
    assert plain.special_tokens == {"<|endoftext|>": 301}
    assert chat.special_tokens == {"<|endoftext|>": 301, "<|im_start|>": 302, "<|im_end|>": 303}
    assert (chat.has_chat_template, plain.has_chat_template) == (True, False)
    assert plain.token_bytes(299) == b""
    assert plain.encode("cab") == chat.encode("cab") == [99, 300]
    chat.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").special_tokens == chat.special_tokens


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_files(texts: list[str], tmp_path: Path, names: tuple[str, str]) -> None:
    ours = train_tokenizer(texts, "bpe", 800, "gpt2")
    write_gpt2(tmp_path, ours, names)
    for path in (tmp_path, tmp_path / names[0], tmp_path / names[1]):
        imported = import_tokenizer(path)
        assert imported.special_tokens == {"<|endoftext|>": 796}
        assert imported.encode_batch(texts) == ours.encode_batch(texts)
    text = "x<|endoftext|>"
    assert imported.encode(text, allowed_special={"<|endoftext|>"})[-1] == imported.end_of_text
    assert imported.end_of_text not in imported.encode(text)


@pytest.mark.data
def test_gpt2_and_gpt1_themselves(data_folder: Path, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    for name in ("encoder.json", "vocab.bpe", "encoder_bpe_40000.json", "vocab_40000.bpe"):
        folder = "gpt1_bpe" if "40000" in name else "gpt2_bpe"
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(gzip.decompress((data_folder / folder / f"{name}.gz").read_bytes()))
    gpt2 = import_tokenizer(tmp_path / "gpt2_bpe")
    ranks = {gpt2.token_bytes(i): i for i in range(50256)}
    special = {"<|endoftext|>": 50256}
    peer = tiktoken.Encoding("gpt2", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens=special)
    real = gzip.decompress((data_folder / "multi30k" / "val.fr.gz").read_bytes()).decode()[:50_000]
    check_against_tiktoken(gpt2, peer, [real])
    gpt1 = import_tokenizer(tmp_path / "gpt1_bpe")
    ids = gpt1.encode("Hello World, it's 2019!")
    assert gpt1.decode(ids) == "hello world , it ' s 2019 !"
    assert [gpt1.token_bytes(i) for i in ids][:3] == [b"hello ", b"world ", b", "]
    assert gpt1.unknown == 0


@pytest.mark.data
def test_llama2c_file(data_folder: Path) -> None:
    """Byte pieces, spaces and the space in front, as LLaMA's."""
    imported = import_tokenizer(data_folder / "stories260K" / "tok512.bin")
    assert (imported.vocab_size, imported.special_tokens) == (512, {"<unk>": 0, "<s>": 1, "</s>": 2})
    ids = imported.encode("Once upon a time")
    assert ids == [403, 407, 261, 378]
    assert imported.decode(ids) == "Once upon a time"
    assert imported.decode(imported.encode("é\n日")) == "é\n日"
    assert imported.token_bytes(3 + 0x0A) == b"\n"


def word_piece() -> Backend:
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "un": 4, "##aff": 5, "##able": 6, "the": 7, ",": 8}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return backend


def unigram() -> Backend:
    pieces = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("\u2581", -2.0),
        ("\u2581the", -3.0),
        ("s", -4.0),
        (">", -5.0),
    ]
    backend = Backend(models.Unigram([*pieces, ("<", -5.0), ("/", -5.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def word_level() -> Backend:
    backend = Backend(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "<eos>": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<eos>"])
    return backend


HUGGING_FACE = {
    "wordpiece": (word_piece, "The unaffable, zzz", b" the|un|aff|able|,|[UNK]", "[SEP]", "the unaffable, [UNK]"),
    "unigram": (unigram, "the s", b" the| |s", "</s>", "the s"),
    "wordlevel": (word_level, "a b  c", b" a| b|[UNK]", "<eos>", "a b [UNK]"),
}


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_any_tokenizer_json(kind: str, tmp_path: Path) -> None:
    make, text, spelt, end, decoded = HUGGING_FACE[kind]
    make().save(str(tmp_path / "tokenizer.json"))
    imported = import_tokenizer(tmp_path)
    assert imported.kind == kind
    assert imported.end_of_text == imported.special_id(end)
    ids = imported.encode(text)
    assert ids == make().encode(text, add_special_tokens=False).ids
    shown = [imported.token_bytes(i) for i in ids]
    expected = spelt.split(b"|")
    assert [token.strip() for token in shown] == [token.strip() for token in expected]
    assert imported.decode(ids) == decoded
    assert imported.unknown not in imported.encode("") == []
    imported.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.encode(text), again.kind, again.decode(ids)) == (ids, kind, decoded)
    with pytest.raises(IndexError):
        again.decode([again.vocab_size])


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_special_tokens_cannot_be_typed(kind: str, tmp_path: Path) -> None:
    """A Unigram vocabulary finds </s> in a text by itself, with the best score of all; WordLevel finds whole words."""
    make, _, _, _, _ = HUGGING_FACE[kind]
    make().save(str(tmp_path / "tokenizer.json"))
    imported = import_tokenizer(tmp_path)
    forbidden = set(imported.special_tokens.values()) - {imported.unknown}

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.sampled_from([*imported.special_tokens, " ", "a", "the"])).map("".join))
    @example("<eos>")
    @example("a</s>")
    def check(text: str) -> None:
        assert not forbidden & set(imported.encode(text))
        assert not forbidden & set(imported.encode_batch([text])[0])
        wanted = sum(text.count(name) for name in imported.special_tokens if name not in ("[UNK]", "<unk>"))
        found = imported.encode(text, allowed_special=set(imported.special_tokens))
        assert sum(i in forbidden for i in found) == wanted

    check()


def test_ordinary_ids_do_not_depend_on_the_protection(tmp_path: Path) -> None:
    """The vocabulary without its special tokens gives the same ids: tokens in front of, between and behind them."""
    backend = Backend(models.BPE({"</s>": 0, "a": 1, "<s>": 2, "b": 3, "ab": 4}, [("a", "b")], ignore_merges=True))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["</s>", "<s>", "<late>"])
    backend.add_tokens([AddedToken("ba", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert (
        loaded.encode("abba")
        == backend.encode("abba").ids
        == [
            4,
            6,
        ][:0]
        + backend.encode("abba").ids
    )
    assert loaded.encode("</s>") == []
    assert loaded.special_tokens == {"</s>": 0, "<s>": 2, "<late>": 5}


def test_configurations_are_kept_and_code_is_not(bpe: Tokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    del config["parlance"]
    config |= {"auto_map": {"AutoTokenizer": "evil.py"}, "tokenizer_class": "QwenTokenizer"}
    config |= {"eos_token": {"content": "<|im_end|>"}}
    file.write_text(json.dumps(config))
    imported = import_tokenizer(tmp_path / "tokenizer.json")
    assert imported.end_of_text == bpe.end_of_turn
    imported.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert "auto_map" not in saved
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert saved["chat_template"] == config["chat_template"]
    assert saved["parlance"] == {"format": 1, "kind": "bpe", "source": "huggingface"}


def test_transformers_opens_what_was_imported(texts: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_ranks(tmp_path / "x.tiktoken", train_tokenizer(texts, "bpe", 500, "gpt4"), 496)
    imported = import_tokenizer(tmp_path / "x.tiktoken", "gpt4", "chatml")
    imported.save(tmp_path / "saved")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token_id == imported.end_of_text

    @settings(deadline=None, max_examples=60)
    @given(TEXT)
    def identical(text: str) -> None:
        assume("<|" not in text)
        assert theirs(text)["input_ids"] == imported.encode(text)

    identical()


DAMAGED = {
    "a.tiktoken": [
        (b"", "256 of the 256 single bytes have no rank"),
        (b"!!! 3\n", "a.tiktoken, line 1: not a new token"),
        (b"YQ== x\n", "line 1"),
        (b"YQ== 1\nYQ== 2\n", "line 2"),
    ],
    "a.model": [
        (b"", "is not a SentencePiece model, or is damaged .it has no pieces"),
        (b"some text that is no protobuf", "is not a SentencePiece model"),
        (b"\x0a\xff\x01ab", "it ends inside a field"),
        (b"\xff" * 20, "is no part of a number"),
    ],
    "a.bin": [(b"", "is not a tokenizer of llama2.c"), (struct.pack("<Ifi", 3, 0.0, 900), "a token of 900 bytes")],
    "vocab.json": [(b"[]", "is not a vocabulary"), (b'{"a": "b"}', "is not a vocabulary"), (b"{", "not valid JSON")],
    "tokenizer.json": [(b"{}", "it has no model"), (b"{", "not valid JSON")],
    "a.txt": [(b"", "is no tokenizer that can be imported")],
}


@pytest.mark.parametrize(("name", "data", "reason"), [(n, *case) for n, cases in DAMAGED.items() for case in cases])
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(UserError, match=reason) as refusal:
        import_tokenizer(tmp_path / name)
    assert "\n" not in str(refusal.value)


def test_what_is_not_there(tmp_path: Path, byte_level: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"there is no .*nothing"):
        import_tokenizer(tmp_path / "nothing")
    with pytest.raises(UserError, match="is no tokenizer that can be imported"):
        import_tokenizer(tmp_path)
    write_ranks(tmp_path / "a.tiktoken", byte_level, 256)
    with pytest.raises(UserError, match="has 256 ranks, as none of OpenAI's encodings; say with --pattern"):
        import_tokenizer(tmp_path)
    write_ranks(tmp_path / "b.tiktoken", byte_level, 256)
    with pytest.raises(UserError, match=r"holds 2 vocabularies .a.tiktoken, b.tiktoken.; name one"):
        import_tokenizer(tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({to_characters(b"a"): 0}))
    (tmp_path / "vocab.bpe").write_text("a b c\n")
    with pytest.raises(UserError, match=r"vocab\.bpe, line 1: not a pair of tokens"):
        import_tokenizer(tmp_path)
    (tmp_path / "vocab.bpe").write_text("a b\n")
    with pytest.raises(UserError, match="do not belong together"):
        import_tokenizer(tmp_path)
