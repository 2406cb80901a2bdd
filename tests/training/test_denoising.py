"""Noise against its definition: counts, positions, proportions, and that what was hidden can be put back."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parlance.models.recurrent_attention import RecurrentAttention, RecurrentAttentionConfig
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.packing import IGNORE
from parlance.training.denoising import (
    DenoisingObjective,
    DenoisingTokens,
    MaskedTokenObjective,
    SourceTargetBatch,
    continue_text,
    corrupt_spans,
    denoising_batch,
    mask_tokens,
    noise_sizes,
    sentinels_needed,
    source_target_batch,
)
from parlance.training.objectives import TokenBatch

V, MASK = 50, 50
TOKENS = DenoisingTokens(first_sentinel=V, sentinels=8, start_token=V + 8, empty_source=(V + 9, V + 9))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng([*seed] or [0])


def windows(*shape: int) -> np.ndarray:
    return rng(7).integers(V, size=shape)


# --- masked tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "count"), [(1, 1), (3, 1), (10, 2), (64, 10), (100, 15)])
def test_every_row_has_the_same_number_of_targets(length, count):
    rows = windows(20, length)
    inputs, targets = mask_tokens(rows, MASK, V, rng())
    assert ((targets != IGNORE).sum(1) == count).all()
    assert (targets[targets != IGNORE] == rows[targets != IGNORE]).all()
    assert (inputs[targets == IGNORE] == rows[targets == IGNORE]).all()


def test_of_the_targets_eight_tenths_are_masked_one_is_random_and_one_stays():
    rows = windows(2000, 100)
    inputs, targets = mask_tokens(rows, MASK, V, rng())
    said = targets != IGNORE
    total = said.sum()
    assert total == 30_000
    masked, same = (inputs == MASK)[said].sum(), (inputs == rows)[said].sum()
    # Within five standard deviations of the binomial counts; one random token in V is the one that stood there.
    for seen, share in ((masked, 0.8), (same, 0.1 + 0.1 / V), (total - masked - same, 0.1 - 0.1 / V)):
        assert abs(seen - total * share) < 5 * math.sqrt(total * share * (1 - share))
    other = inputs[said & (inputs != MASK) & (inputs != rows)]
    assert set(other.tolist()) == set(range(V))
    # Each place is as likely as any other.
    at = said.sum(0)
    assert abs(at - 300).max() < 5 * math.sqrt(2000 * 0.15 * 0.85)


def test_the_generator_decides():
    rows = windows(4, 64)
    first, again, other = (mask_tokens(rows, MASK, V, rng(seed)) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not (first[1] == other[1]).all()
    spans, spans_again, other_spans = (denoising_batch(rows, TOKENS, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(spans.targets, spans_again.targets)
    assert torch.equal(spans.source, spans_again.source)
    assert not (spans.inputs.shape == other_spans.inputs.shape and torch.equal(spans.inputs, other_spans.inputs))


# --- spans -----------------------------------------------------------------------------------------------------------


def reassembled(source: list[int], target: list[int], is_sentinel) -> list[int]:
    """The window that source and target were made of."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if is_sentinel(token):
            spans[token] = last = []
        else:
            last.append(token)
    return [token for place in source for token in (spans[place] if is_sentinel(place) else [place])]


@given(
    length=st.integers(2, 80),
    rate=st.floats(0.05, 0.8),
    mean_span=st.floats(1.0, 6.0),
    seed=st.integers(0, 10),
    step=st.sampled_from([1, -1]),
    most=st.none() | st.integers(2, 6),
)
def test_source_and_target_are_the_window_again(length, rate, mean_span, seed, step, most):
    window = windows(length)
    first = 1000 if step == 1 else 2000
    source, target = corrupt_spans(window, first, rng(seed), rate, mean_span, max_sentinels=most, step=step)
    assert reassembled(source.tolist(), target.tolist(), lambda token: token >= 900) == window.tolist()
    tokens, spans = noise_sizes(length, rate, mean_span)
    spans = spans if most is None else min(spans, most - 1)
    used = [first + step * number for number in range(spans + 1)]
    assert [token for token in target.tolist() if token >= 900] == used
    assert [token for token in source.tolist() if token >= 900] == used[:-1]
    assert len(source) == length - tokens + spans
    assert len(target) == tokens + spans + 1
    # Text and noise alternate, text first and noise last; neither is ever empty.
    assert source[0] < 900 <= source[-1]
    assert target[0] >= 900
    assert all(a < 900 or b < 900 for parts in (source, target) for a, b in pairwise(parts.tolist()))
    assert len(source) + 0 <= length
    if most is None:
        assert sentinels_needed(length, rate, mean_span) == spans + 1


def test_the_example_of_the_paper():
    """Thank you [for inviting] me to your party [last] week: figure 2 of Raffel et al., but for text after the end."""
    words = np.arange(10)
    for seed in range(200):
        source, target = corrupt_spans(words, 100, rng(seed), rate=0.3, mean_span=1.5)
        if source.tolist() == [0, 1, 100, 4, 5, 6, 7, 8, 101] and target.tolist() == [100, 2, 3, 101, 9, 102]:
            return
    raise AssertionError("never drawn")


@pytest.mark.parametrize(
    ("length", "tokens", "spans"), [(2, 1, 1), (10, 2, 1), (64, 10, 3), (256, 38, 13), (512, 77, 26), (568, 85, 28)]
)
def test_numbers_of_noise_tokens_and_spans(length, tokens, spans):
    """T5: 15 % in spans of 3; 568 is what a source of 512 and a target of 114 (with T5's sentinels) come from."""
    assert noise_sizes(length) == (tokens, spans)


def test_all_partitions_are_equally_likely():
    """A window of 6 with 3 of noise in 2 spans has 2 x 2 ways."""
    counts: dict[tuple[int, ...], int] = {}
    generator = rng()
    for _ in range(2000):
        source, _ = corrupt_spans(np.arange(6), 100, generator, rate=0.5, mean_span=1.5)
        counts[tuple(source.tolist())] = counts.get(tuple(source.tolist()), 0) + 1
    assert len(counts) == 4
    assert all(abs(count - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for count in counts.values())


# --- continuing ------------------------------------------------------------------------------------------------------


def test_a_continued_text_is_cut_anywhere_but_at_its_end():
    window, places, generator = np.arange(5), [0] * 5, rng()
    for _ in range(2000):
        source, target = continue_text(window, generator)
        assert [*source, *target] == window.tolist()
        places[len(source)] += 1
    assert all(abs(count - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8) for count in places)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_is_padded_and_begins_with_the_start_token():
    pairs = [(np.array([], dtype=np.int64), np.array([5, 6, 7])), (np.array([1, 2, 3]), np.array([4]))]
    batch = source_target_batch(pairs, TOKENS, 40)
    assert batch.source.shape == batch.source_mask.shape == batch.inputs.shape == batch.targets.shape == (2, 32)
    assert batch.source[0, :2].tolist() == [V + 9, V + 9]
    assert batch.source[1, :3].tolist() == [1, 2, 3]
    assert batch.source_mask.sum(1).tolist() == [2, 3]
    assert batch.inputs[0, :3].tolist() == [V + 8, 5, 6]
    assert batch.inputs[1, :1].tolist() == [V + 8]
    assert batch.targets[0, :4].tolist() == [5, 6, 7, IGNORE]
    assert batch.targets[1, :2].tolist() == [4, IGNORE]
    assert (batch.targets != IGNORE).sum() == 4
    # No wider than the windows, where they are no multiple of what widths are rounded up to.
    assert source_target_batch(pairs, TOKENS, 20).source.shape == (2, 20)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_share_of_continued_rows(share):
    rows = windows(1000, 32)
    batch = denoising_batch(rows, TOKENS, rng(), share)
    repaired = ((batch.source >= V) & (batch.source < V + 8)).any(1)
    expected = 1000 * (1 - share)
    assert abs(int(repaired.sum()) - expected) <= 5 * math.sqrt(1000 * share * (1 - share))
    for row in range(0, 1000, 50):
        source = batch.source[row][batch.source_mask[row]].tolist()
        target = batch.targets[row][batch.targets[row] != IGNORE].tolist()
        if repaired[row]:
            assert reassembled(source, target, lambda token: token >= V) == rows[row].tolist()
        else:
            source = [] if source == list(TOKENS.empty_source) else source
            assert source + target == rows[row].tolist()


def test_few_sentinels_make_few_spans():
    tokens = DenoisingTokens(first_sentinel=V, sentinels=3, start_token=0, empty_source=(0,))
    batch = denoising_batch(windows(16, 256), tokens, rng(), 0.0)
    assert int(batch.source.max()) == V + 1
    assert int(batch.targets.max()) == V + 2
    with pytest.raises(UserError, match=r"needs two sentinels or more, and this model has 1: set model\.sentinels"):
        DenoisingTokens(first_sentinel=V, sentinels=1, start_token=0, empty_source=(0,))


# --- objectives ------------------------------------------------------------------------------------------------------


def encoder_decoder(**changes: object) -> EncoderDecoder:
    stack = {"vocab_size": V + 10, "context_length": 64, "width": 32, "layers": 1, "heads": 1, "head_width": 32}
    config = EncoderDecoderConfig(
        vocab_size=V,
        sentinels=10,
        start_token=V + 8,
        empty_source=(V + 9,),
        encoder=TransformerConfig(**(stack | changes), causal=False),
        decoder=TransformerConfig(**(stack | changes), cross_attention=True),
    )
    return filled(EncoderDecoder(config))


def recurrent_attention() -> RecurrentAttention:
    return filled(
        RecurrentAttention(
            RecurrentAttentionConfig(
                vocab_size=V, width=32, layers=1, start_token=V + 8, empty_source=(V + 9,), sentinels=10
            )
        )
    )


def filled(model):
    """Every weight random, those that training starts at zero too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("make", [encoder_decoder, recurrent_attention])
def test_the_loss_is_that_of_each_pair_alone(make):
    model = make()
    rows = windows(6, 40)
    batch = denoising_batch(rows, TOKENS, rng(3))
    terms = DenoisingObjective()(model, batch)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(6):
            source = batch.source[row : row + 1][:, batch.source_mask[row]]
            target = batch.targets[row : row + 1][:, batch.targets[row] != IGNORE]
            inputs = torch.cat([torch.tensor([[V + 8]]), target[:, :-1]], 1)
            log_probs = model.logits(model.hidden(inputs, memory=model.encode(source))).log_softmax(-1)
            total -= float(log_probs[0, torch.arange(target.shape[1]), target[0]].sum())
            count += target.shape[1]
    assert terms.count == count
    assert float(terms.loss_sum.detach()) == pytest.approx(total, rel=1e-5)
    assert terms.regulariser is None
    terms.loss_sum.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_experts_of_both_stacks_are_kept_in_balance():
    model = encoder_decoder(experts=4).train()
    terms = DenoisingObjective()(model, denoising_batch(windows(2, 32), TOKENS, rng()))
    assert terms.regulariser is not None
    assert float(terms.regulariser.detach()) > 0
    terms.regulariser.backward()
    for stack in (model.encoder, model.decoder):
        assert any(parameter.grad is not None for parameter in stack.layers.parameters())


def test_a_masked_loss_is_of_the_places_themselves():
    model = filled(
        Transformer(
            TransformerConfig(
                vocab_size=V + 1, context_length=32, width=32, layers=1, heads=2, head_width=16, causal=False
            )
        )
    )
    inputs, targets = (torch.from_numpy(part) for part in mask_tokens(windows(3, 32), MASK, V, rng()))
    terms = MaskedTokenObjective()(model, TokenBatch(inputs, targets))
    with torch.no_grad():
        log_probs = model.logits(model.hidden(inputs)).log_softmax(-1)
    said = targets != IGNORE
    expected = -log_probs[said].gather(1, targets[said].unsqueeze(1)).sum()
    assert terms.count == int(said.sum()) == 15
    assert float(terms.loss_sum.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_a_batch_goes_to_a_device():
    batch = denoising_batch(windows(2, 32), TOKENS, rng())
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, SourceTargetBatch)
    assert torch.equal(moved.source_mask, batch.source_mask)
