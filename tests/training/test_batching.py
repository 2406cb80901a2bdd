"""Batches by length: every example once an epoch, within the limit, the same again after a resume."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parlance.training.batching import LengthGroupedBatches

lengths_list = st.lists(st.integers(1, 40), min_size=1, max_size=60)


@given(lengths=lengths_list, limit=st.integers(1, 200), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_has_every_example_once_within_the_limit(lengths, limit, seed, epoch):
    batches = LengthGroupedBatches(lengths, limit, seed).epoch(epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit
    # Each batch is as full as the limit allows: the next longer example would not have fitted.
    spans = [sorted(lengths[index] for index in batch) for batch in batches]
    spans.sort(key=lambda span: (span[0], span[-1], -len(span)))
    for span, longer in itertools.pairwise(spans):
        assert (len(span) + 1) * longer[0] > limit


@given(lengths=lengths_list, limit=st.integers(1, 200), drawn=st.integers(0, 50))
def test_a_resumed_stream_goes_on_with_the_same_batches(lengths, limit, drawn):
    source = LengthGroupedBatches(lengths, limit, seed=3)
    whole = list(itertools.islice(source(None), drawn + 20))
    assert [state for _, state in whole] == list(range(1, drawn + 21))
    rest = list(itertools.islice(LengthGroupedBatches(lengths, limit, seed=3)(drawn), 20))
    assert rest == whole[drawn:]


def test_epochs_follow_one_another_and_differ():
    source = LengthGroupedBatches([5] * 30, 20, seed=0)
    first, second = source.epoch(0), source.epoch(1)
    assert first != second
    assert LengthGroupedBatches([5] * 30, 20, seed=1).epoch(0) != first
    drawn = [batch for batch, _ in itertools.islice(source(None), len(first) + len(second))]
    assert drawn == first + second


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(1, 200, 500).tolist()
    batches = LengthGroupedBatches(lengths, 2000, seed=0).epoch(0)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
