import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.documents import Document
from parlance.text.preparation import PreparationConfig, prepare_corpus
from parlance.text.token_dataset import TokenDataset, tokenize_corpus, write_token_dataset
from parlance.text.tokenizers import Tokenizer, train_tokenizer


def counting_dataset(folder: Path, size: int) -> TokenDataset:
    """A dataset in memory whose tokens are 0, 1, ..., size - 1, so that a window shows its position."""
    return TokenDataset(folder, "train", np.arange(size, dtype=np.uint32), np.zeros(1, dtype=np.int64), size, {})


def test_round_trip(bpe: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    documents = [*bpe.encode_batch(texts), [], bpe.encode("end")]
    out = tmp_path / "tokens"
    info = write_token_dataset(out, {"train": documents, "test": [bpe.encode("héllo")]}, bpe)
    assert json.loads((out / "dataset.json").read_text()) == info
    assert info["dtype"] == "uint16"
    assert info["tokenizer_sha256"] == bpe.sha256

    train = TokenDataset.open(out, "train")
    train.verify()
    bounds = [*train.documents.tolist(), len(train.tokens)]
    stored = [train.tokens[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert stored == [[*ids, bpe.end_of_text] for ids in documents]
    assert train.text_bytes == sum(len(text.encode()) for text in [*texts, "end"])
    assert TokenDataset.open(out, "test").text_bytes == 6
    assert info["splits"]["train"]["documents"] == len(documents)
    assert info["splits"]["train"]["tokens"] == len(train.tokens)
    with pytest.raises(ValueError, match="read-only"):
        train.tokens[0] = 1


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([], "byte")
    tokenizer.vocab_size = 65_537
    write_token_dataset(tmp_path / "tokens", {"train": [[1, 2, 65_536]]}, tokenizer)
    dataset = TokenDataset.open(tmp_path / "tokens", "train")
    assert dataset.tokens.dtype == np.uint32
    assert dataset.tokens.tolist() == [1, 2, 65_536, tokenizer.end_of_text]


def test_a_prepared_corpus_is_tokenized(bpe: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    lines = [line for text in texts for line in text.split("\n\n") if len(line) > 200]
    corpus = [Document(str(i), line, "s") for i, line in enumerate(lines)]
    card = prepare_corpus(corpus, tmp_path / "corpus", PreparationConfig())
    info = tokenize_corpus(tmp_path / "corpus", bpe, tmp_path / "tokens")
    for split, row in card["splits"].items():
        assert info["splits"][split]["text_bytes"] == row["bytes"]
        assert info["splits"][split]["documents"] == row["documents"]
    again = tokenize_corpus(tmp_path / "corpus", bpe, tmp_path / "tokens")
    assert again == info


@given(size=st.integers(2, 60), context=st.integers(1, 20), batch=st.integers(1, 5), seed=st.integers(0, 5))
def test_an_epoch_has_every_target_once(size: int, context: int, batch: int, seed: int) -> None:
    if size < context + 1:
        with pytest.raises(UserError, match=f"has {size} tokens, fewer than the {context + 1}"):
            counting_dataset(Path("x"), size).batches(batch, context, seed)
        return
    dataset = counting_dataset(Path("x"), size)
    windows = dataset.windows_per_epoch(context)
    stream = dataset.batches(batch, context, seed)
    rows = [row for drawn, _ in itertools.islice(stream, -(-3 * windows // batch)) for row in drawn]
    for epoch in range(3):
        drawn = rows[epoch * windows : (epoch + 1) * windows]
        # A window is a run of neighbours on the ring, ...
        assert all(((row[1:] - row[:-1]) % size == 1).all() for row in drawn)
        # ... and no position is a target twice, fewer than `context` are left out.
        targets = Counter(int(t) for row in drawn for t in row[1:])
        assert set(targets.values()) == {1}
        assert size - len(targets) < context


def test_epochs_differ_and_seeds_differ() -> None:
    dataset = counting_dataset(Path("x"), 1000)
    windows = dataset.windows_per_epoch(10)
    first, second = (next(dataset.batches(windows, 10, 0, {"sample": n * windows}))[0] for n in (0, 1))
    other = next(dataset.batches(windows, 10, 1))[0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (100, 11)
    assert first.dtype == np.int64
    # Shuffled: neighbours in the batch are not neighbours in the text.
    assert (np.diff(first[:, 0]) != 10).mean() > 0.8


@given(stop=st.integers(0, 12), batch=st.integers(1, 4), seed=st.integers(0, 3))
@settings(max_examples=30)
def test_a_state_continues_exactly(stop: int, batch: int, seed: int) -> None:
    dataset = counting_dataset(Path("x"), 47)
    whole = list(itertools.islice(dataset.batches(batch, 5, seed), 20))
    state = None if stop == 0 else json.loads(json.dumps(whole[stop - 1][1]))
    rest = list(itertools.islice(dataset.batches(batch, 5, seed, state), 20 - stop))
    for (expected, expected_state), (found, found_state) in zip(whole[stop:], rest, strict=True):
        assert np.array_equal(expected, found)
        assert expected_state == found_state


def test_batches_are_not_overwritten() -> None:
    stream = counting_dataset(Path("x"), 100).batches(2, 5, 0)
    first, _ = next(stream)
    copy = first.copy()
    next(stream)
    assert np.array_equal(first, copy)


@given(world=st.integers(1, 4), batch=st.integers(1, 3))
@settings(max_examples=20)
def test_ranks_divide_the_stream(world: int, batch: int) -> None:
    dataset = counting_dataset(Path("x"), 83)
    whole = itertools.islice(dataset.batches(batch * world, 4, 7), 6)
    parts = [itertools.islice(dataset.batches(batch, 4, 7, rank=rank, world=world), 6) for rank in range(world)]
    for (expected, state), *drawn in zip(whole, *parts, strict=True):
        assert np.array_equal(expected, np.concatenate([tokens for tokens, _ in drawn]))
        assert all(found == state for _, found in drawn)


def test_refusals(bpe: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    with pytest.raises(UserError, match="validation split has no text"):
        write_token_dataset(out, {"train": [[1]], "validation": [[]]}, bpe)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="outside 0"):
        write_token_dataset(out, {"train": [[bpe.vocab_size]]}, bpe)
    write_token_dataset(out, {"train": [[1, 2, 3]]}, bpe)
    with pytest.raises(UserError, match="no split test; it has train"):
        TokenDataset.open(out, "test")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(UserError, match="is not a token dataset"):
        write_token_dataset(tmp_path / "mine", {"train": [[1]]}, bpe)

    dataset = TokenDataset.open(out, "train")
    path = out / "train.bin"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"train\.bin is damaged"):
        dataset.verify()
    path.write_bytes(data[:-2])
    with pytest.raises(UserError, match="missing or incomplete"):
        TokenDataset.open(out, "train")
