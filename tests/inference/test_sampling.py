"""Filters against their definitions by enumeration, and draws against the distribution they are drawn from."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.config import parse_config
from parlance.core.errors import UserError
from parlance.inference.sampling import SamplingConfig, filtered_logits, penalise_repetition, sample

small_logits = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=7, unique=True)


def kept(logits: list[float], **fields: float) -> set[int]:
    filtered = filtered_logits(torch.tensor([logits]), SamplingConfig(**fields))[0]
    return {place for place, value in enumerate(filtered.tolist()) if value > -math.inf}


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value) for value in logits]
    return [weight / sum(weights) for weight in weights]


@settings(deadline=None)
@given(logits=small_logits, k=st.integers(1, 8))
def test_top_k_keeps_the_k_largest(logits, k):
    order = sorted(range(len(logits)), key=lambda place: -logits[place])
    assert kept(logits, top_k=k) == set(order[:k])


@settings(deadline=None)
@given(logits=small_logits, p=st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    probabilities = softmax(logits)
    order = sorted(range(len(logits)), key=lambda place: -logits[place])
    sums = list(itertools.accumulate(probabilities[place] for place in order))
    if any(abs(total - p) < 1e-5 for total in sums):
        return  # rounding decides
    needed = next(count for count, total in enumerate(sums, start=1) if total >= p)
    assert kept(logits, top_p=p) == set(order[:needed])


@settings(deadline=None)
@given(logits=small_logits, temperature=st.floats(0.2, 5.0))
def test_temperature_divides_and_nothing_else_changes(logits, temperature):
    filtered = filtered_logits(torch.tensor([logits]), SamplingConfig(temperature=temperature))
    torch.testing.assert_close(filtered, torch.tensor([logits]) / temperature)


def test_top_p_looks_at_what_temperature_and_top_k_left():
    logits = [3.0, 2.0, 1.0, 0.0]
    # Among the first two, softmax is (0.73, 0.27); among all, (0.64, 0.24, 0.09, 0.03).
    assert kept(logits, top_p=0.7) == {0, 1}
    assert kept(logits, top_k=2, top_p=0.7) == {0}
    assert kept(logits, temperature=10.0, top_p=0.7) == {0, 1, 2}


@settings(deadline=None)
@given(logits=small_logits, p=st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_not_much_less_likely_than_the_likeliest(logits, p):
    probabilities = softmax(logits)
    if any(abs(each / max(probabilities) - p) < 1e-5 for each in probabilities):
        return  # rounding decides
    assert kept(logits, min_p=p) == {i for i, each in enumerate(probabilities) if each >= p * max(probabilities)}


@settings(deadline=None)
@given(logits=small_logits, p=st.floats(0.05, 0.99))
def test_typical_keeps_what_is_nearest_to_the_entropy(logits, p):
    probabilities = softmax(logits)
    entropy = -sum(each * math.log(each) for each in probabilities)
    far = [abs(-math.log(each) - entropy) for each in probabilities]
    order = sorted(range(len(logits)), key=lambda place: far[place])
    sums = list(itertools.accumulate(probabilities[place] for place in order))
    if any(abs(total - p) < 1e-5 for total in sums) or min(b - a for a, b in itertools.pairwise(sorted(far))) < 1e-5:
        return  # rounding decides
    needed = next(count for count, total in enumerate(sums, start=1) if total >= p)
    assert kept(logits, typical_p=p) == set(order[:needed])


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_large_vocabularies_are_filtered_like_small_ones(spread):
    """Where only the likeliest tokens are put in order, against putting all of them in order."""
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * spread
    ordered, order = logits.double().softmax(-1).sort(descending=True)
    for p in (0.1, 0.5, 0.9, 0.99):
        needed = int((ordered.cumsum(0) - ordered < p).sum())
        stays = filtered_logits(logits, SamplingConfig(top_p=p)).isfinite()
        assert abs(int(stays.sum()) - needed) <= 1  # rounding
        assert bool(stays[order[: needed - 1]].all())
    both = filtered_logits(logits, SamplingConfig(top_k=40, top_p=0.9))
    assert 0 < int(both.isfinite().sum()) <= 40


def test_of_equal_tokens_the_first_stay():
    assert kept([1.0] * 10, top_p=0.35) == {0, 1, 2, 3}
    assert kept([1.0] * 10, typical_p=0.35) == {0, 1, 2, 3}
    assert kept([2.0, 1.0, 2.0, 1.0, 1.0], top_p=0.8) == {0, 1, 2, 3}


def test_filters_agree_with_transformers():
    """Each as its peer defines it."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(1)) * 3
    for config, peer in (
        (SamplingConfig(top_k=7), TopKLogitsWarper(7)),
        (SamplingConfig(top_p=0.8), TopPLogitsWarper(0.8)),
        (SamplingConfig(min_p=0.1), MinPLogitsWarper(0.1)),
        (SamplingConfig(typical_p=0.7), TypicalLogitsWarper(0.7)),
    ):
        assert filtered_logits(logits, config).isfinite().equal(peer(None, logits).isfinite())


def test_penalties_agree_with_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)) * 3
    text = torch.tensor([[3, 3, 7, 29]])
    seen = torch.zeros(30, dtype=torch.bool)
    seen[text[0]] = True
    expected = RepetitionPenaltyLogitsProcessor(1.4)(text, logits.clone())
    torch.testing.assert_close(penalise_repetition(logits, seen, 1.4), expected)


def test_rows_are_filtered_apart():
    logits = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    stays = filtered_logits(logits, SamplingConfig(top_k=1)) > -math.inf
    assert stays.tolist() == [[False, False, True], [True, False, False]]


def test_temperature_zero_takes_the_largest():
    logits = torch.tensor([[0.0, 5.0, 4.9], [7.0, -1.0, 3.0]])
    assert sample(logits, SamplingConfig(temperature=0.0, top_k=1), torch.Generator()).tolist() == [1, 0]


def test_a_vanishing_temperature_agrees_with_zero():
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    cold = sample(logits, SamplingConfig(temperature=1e-4), torch.Generator().manual_seed(1))
    assert cold.tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(), [0.5, 0.25, 0.125, 0.125]),
        (SamplingConfig(temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (SamplingConfig(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingConfig(top_p=0.7), [2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_draws_have_the_stated_frequencies(config, expected):
    count = 20_000
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(count, 4)
    drawn = sample(logits, config, torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn, minlength=4) / count
    for frequency, probability in zip(frequencies.tolist(), expected, strict=True):
        # Four standard deviations of a binomial share.
        assert abs(frequency - probability) <= 4 * math.sqrt(probability * (1 - probability) / count)


def test_the_same_seed_draws_the_same():
    logits = torch.zeros(100, 50)
    draws = [sample(logits, SamplingConfig(), torch.Generator().manual_seed(seed)).tolist() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_the_most_probable_token_stays_however_small_p_is():
    logits = filtered_logits(torch.tensor([[1.0, 3.0, 2.0]]), SamplingConfig(top_p=1e-9))
    assert logits.isfinite().tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"temperature": 1e-40},
        {"temperature": -1.0},
        {"top_k": -1},
        {"max_tokens": 0},
        {"min_p": 1.5},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3.0},
        {"logit_bias": {"a": 1.0}},
        {"stop": ("",)},
        {"stop": ("a",) * 65},
        {"top_logprobs": -1},
        {"seed": 2**63},
        {"seed": -1},
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        parse_config(SamplingConfig, wrong, where="options")
