"""One text's draws: the same as of the plain functions, penalties by definition, log-probabilities of the model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.inference.sampler import Sampler
from parlance.inference.sampling import SamplingConfig, race, sample

SIZES = (2, 7, 260, 3000)


def logits_of(size: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("size", SIZES)
def test_a_race_is_the_draw_of_multinomial(size):
    for seed in range(40):
        p = logits_of(size, seed, 0.5 + seed % 5).softmax(-1)
        if seed % 3 == 0:
            p[p < p.median()] = 0.0
        ours, theirs = (torch.Generator().manual_seed(seed) for _ in range(2))
        for _ in range(3):
            assert race(p, ours) == int(torch.multinomial(p, 1, generator=theirs))
        assert ours.get_state().equal(theirs.get_state())


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(seed=5),
        SamplingConfig(seed=5, temperature=0.7, top_k=9),
        SamplingConfig(seed=5, top_p=0.8, min_p=0.02, typical_p=0.9),
        SamplingConfig(seed=5, temperature=0.0),
        SamplingConfig(seed=5, logit_bias={3: 5.0}),
    ],
)
def test_a_sampler_draws_what_the_plain_function_draws(config):
    generator = torch.Generator().manual_seed(config.seed)
    sampler = Sampler(config, [1], vocab_size=50)
    for step in range(30):
        logits = logits_of(50, step)
        draw = sampler.draw(logits.numpy())
        assert draw.token == int(sample(logits[None], config, generator))
        assert draw.log_prob == pytest.approx(float(logits.log_softmax(-1)[draw.token]), abs=1e-5)


def test_draws_do_not_depend_on_what_else_runs():
    def tokens(others: int) -> list[int]:
        samplers = [Sampler(SamplingConfig(seed=seed), [1], vocab_size=40) for seed in (7, *range(100, 100 + others))]
        drawn = [[sampler.draw(logits_of(40, step)).token for sampler in samplers] for step in range(10)]
        return [row[0] for row in drawn]

    assert tokens(0) == tokens(5)


def test_only_the_vocabulary_is_drawn_and_counted():
    logits = torch.zeros(10)
    logits[8] = 50.0
    draw = Sampler(SamplingConfig(temperature=0.0, top_logprobs=20), [1], vocab_size=6).draw(logits)
    assert draw.token == 0
    assert draw.log_prob == pytest.approx(-math.log(6))
    assert len(draw.top) == 6


def test_alternatives_are_the_models_own_whatever_is_drawn():
    logits = torch.tensor([1.0, 4.0, 2.0, 3.0])
    config = SamplingConfig(temperature=0.0, logit_bias={0: 100.0}, top_logprobs=2)
    draw = Sampler(config, [1], vocab_size=4).draw(logits)
    expected = logits.log_softmax(-1)
    assert draw.token == 0
    assert draw.log_prob == pytest.approx(float(expected[0]))
    assert [token for token, _ in draw.top] == [1, 3]
    assert [value for _, value in draw.top] == pytest.approx([float(expected[1]), float(expected[3])])


@settings(deadline=None, max_examples=50)
@given(
    text=st.lists(st.integers(0, 5), max_size=12),
    prompt=st.lists(st.integers(0, 7), min_size=1, max_size=5),
    penalties=st.tuples(st.sampled_from([0.5, 1.0, 1.3]), st.floats(-2, 2), st.floats(-2, 2)),
)
def test_penalties_are_those_of_the_definition(text, prompt, penalties):
    repetition, presence, frequency = penalties
    config = SamplingConfig(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias={2: 0.5}
    )
    sampler = Sampler(config, prompt, vocab_size=6)
    logits = logits_of(6, len(text))
    for token in text:
        sampler.keep(token, logits)
    expected = []
    for token, value in enumerate(logits.tolist()):
        value += 0.5 if token == 2 else 0.0
        if token in prompt or token in text:
            value = value / repetition if value > 0 else value * repetition
        expected.append(value - presence * (token in text) - frequency * text.count(token))
    torch.testing.assert_close(sampler.law(logits).float(), torch.tensor(expected).softmax(-1), rtol=1e-4, atol=1e-6)
    assert logits.equal(logits_of(6, len(text))), "the model's logits are not touched"


def test_the_law_is_what_is_drawn():
    config = SamplingConfig(temperature=0.8, top_k=4, min_p=0.05)
    sampler = Sampler(config, [1], vocab_size=6)
    logits = logits_of(6, 3)
    law, count = sampler.law(logits), 8000
    shares = np.bincount([sampler.draw(logits).token for _ in range(count)], minlength=6) / count
    for share, probability in zip(shares.tolist(), law.tolist(), strict=True):
        assert abs(share - probability) <= 4.5 * math.sqrt(probability * (1 - probability) / count)
    greedy = Sampler(SamplingConfig(temperature=0.0), [1], vocab_size=6).law(logits)
    assert greedy.tolist() == [float(token == int(logits.argmax())) for token in range(6)]


def test_a_bias_outside_the_vocabulary_is_named():
    with pytest.raises(UserError, match=r"logit_bias: token 9 is outside the vocabulary \(ids 0 to 5\)"):
        Sampler(SamplingConfig(logit_bias={9: 1.0}), [1], vocab_size=6)
