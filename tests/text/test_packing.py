import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Layout
from parlance.text.packing import IGNORE, PackingPlan, best_fit_decreasing
from parlance.text.token_dataset import TokenDataset
from parlance.text.token_shards import TokenShards
from parlance.training import objectives

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def dataset_of(lengths: list[int], shard_tokens: int = 7) -> TokenDataset:
    """Documents of these lengths whose tokens are their own places, 0, 1, ..., cut into shards."""
    total = sum(lengths)
    tokens = np.arange(total, dtype=np.uint32)
    shards = TokenShards([tokens[at : at + shard_tokens] for at in range(0, total, shard_tokens)], shard_tokens)
    info = {"splits": {"train": {"sha256": {"a": str(lengths)}}}}
    return TokenDataset(Path("x"), "train", shards, np.cumsum([0, *lengths])[:-1], total, info)


def naive_best_fit(sizes: list[int], capacity: int) -> list[int]:
    """Sizes in the bins, the plain way: each item, largest first, to the fullest bin that still holds it."""
    bins: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [number for number, used in enumerate(bins) if used + size <= capacity]
        if fitting:
            bins[max(fitting, key=bins.__getitem__)] += size
        else:
            bins.append(size)
    return bins


@given(st.integers(1, 30).flatmap(lambda T: st.tuples(st.just(T), st.lists(st.integers(1, T), max_size=60))))
@settings(deadline=None)
def test_bins_are_those_of_the_plain_algorithm(case: tuple[int, list[int]]) -> None:
    capacity, sizes = case
    bin_of, bins = best_fit_decreasing(np.bincount(np.array(sizes, dtype=np.int64), minlength=1), capacity)
    loads = np.bincount(bin_of, weights=sorted(sizes, reverse=True), minlength=bins).astype(int)
    assert sorted(loads.tolist()) == sorted(naive_best_fit(sizes, capacity))


@given(lengths=LENGTHS, T=st.integers(1, 30), seed=st.integers(0, 3), batch=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_token_once_behind_its_predecessor(
    lengths: list[int], T: int, seed: int, batch: int
) -> None:
    dataset = dataset_of(lengths)
    total, plan = sum(lengths), dataset.packing_plan(T)
    assert plan.utilisation == pytest.approx(total / (plan.rows * T))
    stream = dataset.packed_batches(batch, T, seed)
    drawn = [part for part, _ in itertools.islice(stream, -(-2 * plan.rows // batch))]
    columns = [np.concatenate([getattr(part, name) for part in drawn]) for name in ("inputs", "targets")]
    for epoch in range(2):
        inputs, targets = (column[epoch * plan.rows : (epoch + 1) * plan.rows] for column in columns)
        kept = targets != IGNORE
        assert Counter(targets[kept].tolist()) == Counter(range(total))
        assert ((targets - inputs)[kept] % total == 1 % total).all()
        assert (inputs[~kept] == 0).all()
        # What is empty is at the end of a row.
        assert (kept[:, :-1] >= kept[:, 1:]).all()


@given(lengths=LENGTHS, T=st.integers(1, 30))
@settings(deadline=None)
def test_documents_are_whole_where_they_fit(lengths: list[int], T: int) -> None:
    plan = dataset_of(lengths).packing_plan(T)
    starts = np.cumsum([0, *lengths])[:-1].tolist()
    pieces = sorted(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
    expected = [
        (start + at, min(T, length - at))
        for start, length in zip(starts, lengths, strict=True)
        for at in range(0, length, T)
    ]
    assert pieces == expected
    per_row = [plan.lengths[a:b].sum() for a, b in itertools.pairwise(plan.bounds.tolist())]
    assert all(0 < load <= T for load in per_row)
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == len(plan.starts)


def test_documents_and_positions() -> None:
    # Sizes 5, 3, 2, 2 in rows of 8: 5 + 3, then 2 + 2 and four empty places; 9 is cut into a full row and 1.
    dataset = dataset_of([2, 5, 3, 2, 9])
    plan = dataset.packing_plan(8)
    batch = plan.batch(dataset.tokens, np.arange(plan.rows))
    assert batch.targets.tolist() == [
        [12, 13, 14, 15, 16, 17, 18, 19],
        [2, 3, 4, 5, 6, 7, 8, 9],
        [0, 1, 10, 11, 20, IGNORE, IGNORE, IGNORE],
    ]
    assert batch.inputs.tolist() == [
        [11, 12, 13, 14, 15, 16, 17, 18],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [20, 0, 9, 10, 19, 0, 0, 0],
    ]
    assert batch.documents.tolist() == [[0] * 8, [0] * 5 + [1] * 3, [0, 0, 1, 1, 2, 3, 3, 3]]
    assert batch.positions.tolist() == [[*range(8)], [0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 0, 0, 1, 2]]
    assert plan.utilisation == 21 / 24
    assert objectives.IGNORE == IGNORE


def test_rows_are_shuffled_anew_in_each_epoch() -> None:
    dataset = dataset_of([6] * 100)
    plan = dataset.packing_plan(6)
    orders = [
        batch.targets[:, 0].tolist() for batch, _ in itertools.islice(dataset.packed_batches(plan.rows, 6, seed=0), 2)
    ]
    other, _ = next(dataset.packed_batches(plan.rows, 6, seed=1))
    assert orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]
    assert orders[0] != other.targets[:, 0].tolist()


@given(world=st.integers(1, 4), batch=st.integers(1, 3), stop=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_ranks_divide_the_stream_and_a_state_continues_it(world: int, batch: int, stop: int) -> None:
    dataset = dataset_of([3, 50, 7, 7, 1, 1, 12, 20, 9])
    whole = list(itertools.islice(dataset.packed_batches(batch * world, 16, 7), 8))
    state = None if stop == 0 else json.loads(json.dumps(whole[stop - 1][1]))
    parts = [dataset.packed_batches(batch, 16, 7, state, rank, world) for rank in range(world)]
    for (expected, after), *drawn in zip(whole[stop:], *parts, strict=False):
        for name in ("inputs", "targets", "documents", "positions"):
            joined = np.concatenate([getattr(part, name) for part, _ in drawn])
            assert np.array_equal(getattr(expected, name), joined)
        assert all(found == after for _, found in drawn)


def test_many_documents_of_every_size() -> None:
    lengths = np.minimum(1 + np.random.default_rng(0).geometric(1 / 300, 20_000), 5000)
    starts = np.cumsum(lengths) - lengths
    plan = PackingPlan.best_fit(starts, int(lengths.sum()), 512)
    assert int(plan.lengths.sum()) == lengths.sum()
    assert plan.utilisation > 0.999


def test_masked_rows_are_scored_as_documents_alone(tiny_transformer: Callable[..., Transformer]) -> None:
    """With the mask that `documents` describes, the loss of packed rows is the sum over pieces read one by one."""
    generator = np.random.default_rng(0)
    lengths = [5, 9, 3, 16, 21, 1, 7]
    tokens = generator.integers(0, 256, sum(lengths)).astype(np.uint16)
    ends = np.cumsum(lengths)
    tokens[ends - 1] = 256
    plan = PackingPlan.best_fit(ends - lengths, len(tokens), 16)
    batch = plan.batch(TokenShards([tokens], len(tokens)), np.arange(plan.rows))
    inputs, targets, documents = map(torch.from_numpy, (batch.inputs, batch.targets, batch.documents))
    mask = (documents.unsqueeze(2) == documents.unsqueeze(1)) & torch.ones(16, 16, dtype=torch.bool).tril()
    model = tiny_transformer().double()
    model.compute_dtype = torch.float64

    def loss(hidden: torch.Tensor, targets: torch.Tensor) -> float:
        logits = model.logits(hidden).flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum"))

    with torch.no_grad():
        packed = loss(model.hidden(inputs, layout=Layout(torch.from_numpy(batch.positions), mask)), targets)
        alone = 0.0
        for end, length in zip(ends.tolist(), lengths, strict=True):
            for at in range(end - length, end, 16):
                piece = torch.from_numpy(np.take(tokens, range(at - 1, min(at + 16, end)), mode="wrap").astype(int))
                alone += loss(model.hidden(piece[None, :-1]), piece[1:])
    assert packed == pytest.approx(alone, rel=1e-9)
    # Without a mask the rows are a batch of the training objective as they are.
    assert objectives.NextTokenObjective()(model, objectives.TokenBatch(inputs, targets)).count == len(tokens)
