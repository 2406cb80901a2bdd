import itertools
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text import token_shards
from parlance.text.token_shards import (
    TokenShards,
    map_split,
    read_info,
    token_writer,
    verify_split,
    write_token_dataset,
)
from parlance.text.tokenizers import Tokenizer, train_tokenizer

BYTES = train_tokenizer([], "byte")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encoded(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array([token for document in documents for token in document], dtype=np.uint32)
    return ids, np.cumsum([0, *map(len, documents)])


def test_round_trip(bpe: Tokenizer, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shards, "BATCH_TOKENS", 10_000)
    documents = [*bpe.encode_batch(texts), [], bpe.encode("end")]
    out = tmp_path / "tokens"
    info = write_token_dataset(out, {"train": documents, "test": [bpe.encode("héllo")]}, bpe)
    assert json.loads((out / "dataset.json").read_text()) == info == read_info(out)
    assert info["dtype"] == "uint16"
    assert info["tokenizer_sha256"] == bpe.sha256

    verify_split(out, "train", info)
    tokens, starts = map_split(out, "train", info)
    bounds = [*starts.tolist(), len(tokens)]
    stored = [tokens[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert stored == [[*ids, bpe.end_of_text] for ids in documents]
    assert info["splits"]["train"]["text_bytes"] == sum(len(text.encode()) for text in [*texts, "end"])
    assert info["splits"]["test"]["text_bytes"] == 6
    assert info["splits"]["train"]["documents"] == len(documents)
    assert info["splits"]["train"]["tokens"] == len(tokens)
    with pytest.raises(ValueError, match="read-only"):
        tokens[:1][0] = 1


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([], "byte")
    tokenizer.vocab_size = 65_537
    with token_writer(tmp_path / "tokens", tokenizer) as writer:
        writer.write_encoded("train", np.array([1, 2, 65_536]), np.array([0, 3]), text_bytes=3)
    tokens, _ = map_split(tmp_path / "tokens", "train", read_info(tmp_path / "tokens"))
    assert tokens.dtype == np.uint32
    assert tokens[:].tolist() == [1, 2, 65_536, tokenizer.end_of_text]


@given(
    documents=st.lists(st.lists(st.integers(0, 255), max_size=12), min_size=1, max_size=15).filter(any),
    cuts=st.lists(st.integers(0, 15), max_size=6),
    shard_tokens=st.integers(1, 20),
)
@settings(max_examples=30, deadline=None)
def test_batches_and_shards_make_no_difference(documents: list[list[int]], cuts: list[int], shard_tokens: int) -> None:
    """Any division into batches gives the same bytes, and shards hold exactly what one list of all ids would."""
    expected = [token for document in documents for token in [*document, BYTES.end_of_text]]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # hundreds of tiny files
        one, many = Path(place, "one"), Path(place, "many")
        with token_writer(one, BYTES, shard_tokens) as writer:
            writer.write_encoded("train", *encoded(documents), text_bytes=7)
        bounds = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
        with token_writer(many, BYTES, shard_tokens) as writer:
            for first, last in itertools.pairwise(bounds):
                writer.write_encoded("train", *encoded(documents[first:last]), text_bytes=7 if first == 0 < last else 0)
        whole, parts = files(one), files(many)
        for name in whole.keys() - {"dataset.json"}:
            assert whole[name] == parts[name]
        assert whole.keys() == parts.keys()
        assert read_info(one)["splits"]["train"]["sha256"] == read_info(many)["splits"]["train"]["sha256"]

        info = read_info(many)
        verify_split(many, "train", info)
        tokens, starts = map_split(many, "train", info)
        assert tokens[:].tolist() == expected
        assert starts.tolist() == np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1].tolist()
        assert [len(shard) for shard in tokens.shards[:-1]] == [shard_tokens] * (len(tokens.shards) - 1)
        assert 0 < len(tokens.shards[-1]) <= shard_tokens


@given(size=st.integers(1, 40), shard_tokens=st.integers(1, 15), first=st.integers(-50, 50), last=st.integers(-50, 50))
@settings(deadline=None)
def test_slices_are_those_of_one_array(size: int, shard_tokens: int, first: int, last: int) -> None:
    whole = np.arange(size, dtype=np.uint16)
    tokens = TokenShards([whole[at : at + shard_tokens] for at in range(0, size, shard_tokens)], shard_tokens)
    assert len(tokens) == size
    assert np.array_equal(tokens[first:last], whole[first:last])
    assert np.array_equal(tokens[first:], whole[first:])
    assert np.array_equal(tokens[:last], whole[:last])
    start, count = first % size, abs(last) % (size + 1)
    assert np.array_equal(tokens.ring(start, count), np.take(whole, range(start, start + count), mode="wrap"))
    assert tokens.ring(-1, size + 1).tolist() == [size - 1, *range(size)]
    with pytest.raises(ValueError, match="without a step"):
        tokens[::2]


@pytest.mark.parametrize("ids", [[256 + 4], [-1], [3, 2**40]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int], tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"ids outside 0\.\.259"),
        token_writer(tmp_path / "tokens", BYTES) as writer,
    ):
        writer.write_encoded("train", np.array(ids), np.array([0, len(ids)]), text_bytes=1)
    with pytest.raises(ValueError, match=r"ids outside 0\.\.259"):
        write_token_dataset(tmp_path / "tokens", {"train": [ids]}, BYTES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="offsets"), token_writer(tmp_path / "tokens", BYTES) as writer:
        writer.write_encoded("train", np.array([1, 2, 3]), np.array(offsets, dtype=np.int64), text_bytes=1)


def test_refusals(tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    with pytest.raises(UserError, match="validation split has no text"):
        write_token_dataset(out, {"train": [[1]], "validation": [[]]}, BYTES)
    with pytest.raises(UserError, match="train split has no text"):
        write_token_dataset(out, {"train": []}, BYTES)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(UserError, match="is not a token dataset"):
        write_token_dataset(tmp_path / "mine", {"train": [[1]]}, BYTES)

    with token_writer(out, BYTES, shard_tokens=4) as writer:
        writer.write_encoded("train", np.arange(10), np.array([0, 10]), text_bytes=10)
    info = read_info(out)
    with pytest.raises(UserError, match="no split test; it has train"):
        map_split(out, "test", info)
    path = out / "train-00001.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"train-00001\.bin is damaged"):
        verify_split(out, "train", info)
    path.write_bytes(data[:-2])
    with pytest.raises(UserError, match=r"train-00001\.bin is missing or incomplete"):
        map_split(out, "train", info)
    path.write_bytes(data)
    (out / "train.documents.bin").unlink()
    with pytest.raises(UserError, match=r"documents\.bin is missing or incomplete"):
        map_split(out, "train", info)
    (out / "dataset.json").write_text('{"kind": "token dataset", "splits": {}}')
    with pytest.raises(UserError, match="not a token dataset of this version"):
        read_info(out)
