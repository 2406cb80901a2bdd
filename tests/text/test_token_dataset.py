import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.artifacts import write_jsonl
from parlance.core.errors import UserError
from parlance.text import token_dataset
from parlance.text.documents import Document
from parlance.text.token_dataset import TokenDataset, tokenize_corpus, write_token_dataset
from parlance.text.token_shards import TokenShards
from parlance.text.tokenizers import Tokenizer


def counting_dataset(size: int, shard_tokens: int = 1 << 20, name: str = "") -> TokenDataset:
    """A dataset in memory whose tokens are 0, 1, ..., size - 1, so that a window shows its position."""
    tokens = np.arange(size, dtype=np.uint32)
    shards = TokenShards([tokens[at : at + shard_tokens] for at in range(0, size, shard_tokens)], shard_tokens)
    info = {"splits": {"train": {"sha256": {"train-00000.bin": f"{name} {size}"}}}}
    return TokenDataset(Path("x"), "train", shards, np.zeros(1, dtype=np.int64), size, info)


def test_a_prepared_corpus_is_tokenized(
    bpe: Tokenizer, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(str(i), text, "s") for i, text in enumerate([*texts[0].split("\n\n"), "", "h\u00e9llo"])]
    splits = {"train": documents[:-2], "validation": documents[-2:], "test": documents[5:9]}
    for split, part in splits.items():
        write_jsonl(tmp_path / "corpus" / f"{split}.jsonl", [document.to_json() for document in part])
    info = tokenize_corpus(tmp_path / "corpus", bpe, tmp_path / "tokens")
    for split, part in splits.items():
        dataset = TokenDataset.open(tmp_path / "tokens", split)
        assert info["splits"][split]["text_bytes"] == sum(len(document.text.encode()) for document in part)
        stored = [token for document in part for token in [*bpe.encode(document.text), bpe.end_of_text]]
        assert dataset.tokens[:].tolist() == stored
        assert len(dataset.documents) == len(part)
    monkeypatch.setattr(token_dataset, "BATCH_BYTES", 100)
    again = tokenize_corpus(tmp_path / "corpus", bpe, tmp_path / "tokens")
    assert again == info


@given(size=st.integers(2, 60), context=st.integers(1, 20), batch=st.integers(1, 5), seed=st.integers(0, 5))
@settings(deadline=None)
def test_an_epoch_has_every_target_once(size: int, context: int, batch: int, seed: int) -> None:
    if size < context + 1:
        with pytest.raises(UserError, match=f"has {size} tokens, fewer than the {context + 1}"):
            counting_dataset(size).batches(batch, context, seed)
        return
    dataset = counting_dataset(size)
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
    dataset = counting_dataset(1000)
    windows = dataset.windows_per_epoch(10)
    first, second = (batch for batch, _ in itertools.islice(dataset.batches(windows, 10, 0), 2))
    other = next(dataset.batches(windows, 10, 1))[0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert first.shape == (100, 11)
    assert first.dtype == np.int64
    # Shuffled: neighbours in the batch are not neighbours in the text.
    assert (np.diff(first[:, 0]) != 10).mean() > 0.8


@given(stop=st.integers(0, 12), batch=st.integers(1, 4), seed=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_state_continues_exactly(stop: int, batch: int, seed: int) -> None:
    dataset = counting_dataset(47)
    whole = list(itertools.islice(dataset.batches(batch, 5, seed), 20))
    state = None if stop == 0 else json.loads(json.dumps(whole[stop - 1][1]))
    rest = list(itertools.islice(dataset.batches(batch, 5, seed, state), 20 - stop))
    for (expected, expected_state), (found, found_state) in zip(whole[stop:], rest, strict=True):
        assert np.array_equal(expected, found)
        assert expected_state == found_state


def test_batches_are_not_overwritten() -> None:
    stream = counting_dataset(100).batches(2, 5, 0)
    first, _ = next(stream)
    copy = first.copy()
    next(stream)
    assert np.array_equal(first, copy)


@given(world=st.integers(1, 4), batch=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_ranks_divide_the_stream(world: int, batch: int) -> None:
    dataset = counting_dataset(83)
    whole = itertools.islice(dataset.batches(batch * world, 4, 7), 6)
    parts = [itertools.islice(dataset.batches(batch, 4, 7, rank=rank, world=world), 6) for rank in range(world)]
    for (expected, state), *drawn in zip(whole, *parts, strict=True):
        assert np.array_equal(expected, np.concatenate([tokens for tokens, _ in drawn]))
        assert all(found == state for _, found in drawn)


@given(size=st.integers(6, 60), shard_tokens=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_shards_make_no_difference(size: int, shard_tokens: int) -> None:
    one, many = (counting_dataset(size, length).batches(3, 5, seed=1) for length in (size, shard_tokens))
    for (expected, state), (found, found_state) in itertools.islice(zip(one, many, strict=False), 10):
        assert np.array_equal(expected, found)
        assert state == found_state


def test_far_samples_are_reached_at_once() -> None:
    dataset = counting_dataset(100)
    (_, state) = next(dataset.batches(2, 10, seed=0))
    sample = 10**15 + 3
    far, after = next(dataset.batches(2, 10, seed=0, state={**state, "sample": sample}))
    assert after["sample"] == sample + 2
    # An epoch has ten windows: number 10^14 begins three windows earlier.
    (_, begin), epoch = next(dataset.batches(3, 10, seed=0, state={**state, "sample": 10**15})), 10**14
    assert begin["sample"] == sample
    generator = np.random.default_rng([0, epoch])
    offset, order = int(generator.integers(100)), generator.permutation(10)
    assert far[:, 0].tolist() == ((offset + order[3:5] * 10) % 100).tolist()


def test_the_number_of_processes_and_the_batch_size_may_change_on_resuming() -> None:
    dataset = counting_dataset(200)
    whole = np.concatenate([batch for batch, _ in itertools.islice(dataset.batches(1, 4, 0), 24)])
    (first, state) = next(dataset.batches(6, 4, 0))
    parts = [next(dataset.batches(3, 4, 0, state, rank, world=6))[0] for rank in range(6)]
    assert np.array_equal(whole, np.concatenate([first, *parts]))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (counting_dataset(90).batches(2, 5, seed=0), "tokens"),
        (counting_dataset(100, name="b").batches(2, 5, seed=0), "tokens"),
        (counting_dataset(100).batches(2, 6, seed=0), "context_length"),
        (counting_dataset(100).batches(2, 5, seed=1), "seed"),
        (counting_dataset(100).packed_batches(2, 5, seed=0), "packing"),
    ],
)
def test_a_state_of_another_stream_is_refused(other: Iterator[Any], named: str) -> None:
    _, state = next(other)
    with pytest.raises(UserError, match=f"another stream of tokens: its {named} is"):
        counting_dataset(100).batches(2, 5, 0, state)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_are_checked(rank: int, world: int) -> None:
    dataset = counting_dataset(100)
    for draw in (dataset.batches, dataset.packed_batches):
        with pytest.raises(UserError, match=f"no process {rank} among {world}"):
            draw(2, 5, 0, rank=rank, world=world)


@pytest.mark.parametrize(("batch", "context"), [(0, 5), (2, 0)])
def test_sizes_are_checked(batch: int, context: int) -> None:
    dataset = counting_dataset(100)
    for draw in (dataset.batches, dataset.packed_batches):
        with pytest.raises(UserError, match="both must be above 0"):
            draw(batch, context, 0)


def test_opening_verifies_when_asked(bpe: Tokenizer, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    write_token_dataset(out, {"train": [[1, 2, 3]]}, bpe)
    path = out / "train-00000.bin"
    assert TokenDataset.open(out, "train", verify=True).tokens[:3].tolist() == [1, 2, 3]
    path.write_bytes(bytes([9]) + path.read_bytes()[1:])
    assert TokenDataset.open(out, "train").tokens[:3].tolist() == [9, 2, 3]
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged"):
        TokenDataset.open(out, "train", verify=True)
