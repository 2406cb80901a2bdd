"""Batches of masked and denoised windows: what they are made of, and that noise follows from seed and place alone."""

import math
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from parlance.text.packing import IGNORE
from parlance.text.token_dataset import TokenDataset, write_token_dataset
from parlance.training.denoising import DenoisingTokens, SourceTargetBatch
from parlance.training.objectives import TokenBatch
from parlance.training.tasks import DenoisingTask, MaskedTokenTask, NextTokenTask

CPU = torch.device("cpu")
T, B, V = 32, 3, 260
TASKS = {
    "masked": MaskedTokenTask(B, T, mask_token=V, vocab_size=V),
    "denoising": DenoisingTask(B, T, DenoisingTokens(V, sentinels=4, start_token=V + 4, empty_source=(V + 4,))),
}


@pytest.fixture(scope="module")
def dataset(tiny_tokenizer, tmp_path_factory) -> TokenDataset:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    documents = [np.random.default_rng(seed).integers(200, size=50).tolist() for seed in range(20)]
    write_token_dataset(folder, {"train": documents}, tiny_tokenizer)
    return TokenDataset.open(folder, "train")


@pytest.fixture(params=TASKS)
def task(request):
    return TASKS[request.param]


def parts(batch: TokenBatch | SourceTargetBatch) -> list[torch.Tensor]:
    return [part for part in vars(batch).values() if part is not None]


def windows(batch: TokenBatch | SourceTargetBatch) -> list[list[int]]:
    """The text that each row was made of."""
    if isinstance(batch, TokenBatch):
        return torch.where(batch.targets == IGNORE, batch.inputs, batch.targets).tolist()
    rows = []
    for source, mask, target in zip(batch.source, batch.source_mask, batch.targets, strict=True):
        pieces: dict[int, list[int]] = {}
        last = rest = list[int]()
        for token in target[target != IGNORE].tolist():
            if token >= V:
                last = pieces[token] = []
            else:
                last.append(token)
        read = [token for token in source[mask].tolist() if token != V + 4]
        rows.append([token for place in read for token in pieces.get(place, [place])] + rest)
    return rows


def test_a_batch_is_the_windows_of_the_stream_with_noise(task, dataset):
    stream = dataset.batches(B, T, seed=5)
    for (batch, after), (rows, expected) in islice(zip(task.batches(dataset, 5, None, CPU), stream, strict=False), 8):
        assert windows(batch) == rows[:, :-1].tolist()
        assert after == expected


def test_going_on_gives_the_batches_that_would_have_come(task, dataset):
    whole = list(islice(task.batches(dataset, 5, None, CPU), 12))
    again = list(islice(task.batches(dataset, 5, whole[6][1], CPU), 5))
    for (one, _), (other, _) in zip(whole[7:], again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


def test_noise_differs_from_batch_to_batch_and_from_seed_to_seed(task, dataset):
    places = set()
    for seed in (0, 1):
        for batch, _ in islice(task.batches(dataset, seed, None, CPU), 10):
            gaps = batch.source >= V if isinstance(batch, SourceTargetBatch) else batch.inputs >= V
            places.add((*(batch.targets != IGNORE).flatten().tolist(), *gaps.flatten().tolist()))
    assert len(places) == 20


def test_validation_is_every_window_in_order_with_the_same_noise_each_time(task, dataset):
    checks = task.validation(dataset, 9 * T, CPU)
    assert [window for batch in checks for window in windows(batch)] == [
        dataset.tokens[start : start + T].tolist() for start in range(0, 9 * T, T)
    ]
    again = task.validation(dataset, 9 * T, CPU)
    for one, other in zip(checks, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))
    assert not torch.equal(checks[0].targets != IGNORE, checks[1].targets != IGNORE)


def test_the_whole_split_has_every_target_once(dataset):
    task = NextTokenTask(B, T, "stream")
    batches = [make() for make in task.whole(dataset, CPU)]
    assert {tuple(batch.inputs.shape) for batch in batches} == {(B, T)}
    inputs = torch.cat([batch.inputs.flatten() for batch in batches])
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    said = targets != IGNORE
    assert targets[said].tolist() == dataset.tokens[1 : len(dataset.tokens)].tolist()
    assert inputs[said].tolist() == dataset.tokens[: len(dataset.tokens) - 1].tolist()
    # Windows are the model's own: each begins where the one before ends, without what came earlier.
    assert (len(dataset.tokens) - 1) % T
    assert len(batches) == math.ceil((len(dataset.tokens) - 1) / (B * T))


def test_the_whole_split_with_noise_is_what_validation_reads_first(task, dataset):
    batches = [make() for make in task.whole(dataset, CPU)]
    checks = task.validation(dataset, len(dataset.tokens), CPU)
    assert len(checks) == (len(dataset.tokens) - 1) // T // B
    assert len(batches) > len(checks)
    for one, other in zip(batches, checks, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


@pytest.mark.parametrize("rest", [0, 1, 2, T - 1])
@pytest.mark.parametrize("rows", [2, B, 5, 10**6])
@pytest.mark.parametrize("kind", TASKS)
def test_the_whole_split_with_noise_has_every_token_once(dataset, kind, rows, rest):
    """Also where the last batch is not full, where the split is less than one, and behind the last whole window."""
    masked = MaskedTokenTask(rows, T, mask_token=V, vocab_size=V)
    task = masked if kind == "masked" else DenoisingTask(rows, T, TASKS["denoising"].tokens)
    count = 11
    split = SimpleNamespace(tokens=dataset.tokens[: count * T + rest])
    rows = min(rows, count + 3)
    task.batch_size = rows
    batches = [make() for make in task.whole(split, CPU)]
    read = [window for batch in batches for window in windows(batch)]
    whole = split.tokens[: count * T].reshape(count, T).tolist()
    assert read[:count] == whole
    if kind == "masked":
        assert len(batches) == math.ceil((count + (rest > 0)) / rows)
        assert {len(batch) for batch in batches} == {rows}
        said = torch.cat([batch.targets for batch in batches]) != IGNORE
        asked = said[:count].sum(1)
        assert len(set(asked.tolist())) == 1
        assert asked[0] > 0
        assert not said[count + (rest > 0) :].any()
        if rest:
            assert read[count][-rest:] == split.tokens[-rest:].tolist()
            assert not said[count, : T - rest].any()
            assert said[count].any() or rest < T - 1
    else:
        assert read[count:] == ([split.tokens[-max(2, rest) :].tolist()] if rest else [])
