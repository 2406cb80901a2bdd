"""Speculation keeps the law: by enumeration on a tiny vocabulary, by draws, and token for token at temperature 0."""

import itertools
import math

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.inference.generation import draws
from parlance.inference.sampler import Sampler
from parlance.inference.sampling import SamplingConfig
from parlance.inference.speculative import (
    MOST_GUESSES,
    Confidence,
    ModelDrafter,
    NGramDrafter,
    PromptLookup,
    Proposal,
    drafter_of,
    judged,
)
from parlance.models.ngram import NGramModel
from parlance.models.ngram_continuation import likeliest

V = 5


class Scripted(Sampler):
    """A sampler whose uniform number and whose draw are given."""

    def __init__(self, config: SamplingConfig, uniform: float, picked: int) -> None:
        super().__init__(config, [0], vocab_size=V)
        self.number, self.picked, self.rest = uniform, picked, torch.zeros(V)

    def uniform(self) -> float:
        return self.number

    def pick(self, probabilities: torch.Tensor) -> int:
        self.rest = probabilities
        return self.picked


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=0.6, top_p=0.8)])
@pytest.mark.parametrize("certain", [True, False])
def test_a_judged_guess_has_the_law_of_the_model(config, certain):
    """P(token) summed over the guess, over whether it is kept, and over what replaces it: total variation 0."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(V, generator=generator) * 2
        q = torch.randn(V, generator=generator, dtype=torch.float64).softmax(-1)
        p = Sampler(config, [0], vocab_size=V).law(logits)
        law = torch.zeros(V, dtype=torch.float64)
        for guess in range(V):
            chance = float(q[guess])
            stated = None if certain else q
            ratio = float(p[guess]) / (1.0 if certain else chance)
            kept = min(1.0, ratio)
            # The edge of what is kept lies where it should.
            if kept > 1e-6:
                assert judged(Scripted(config, kept * (1 - 1e-6), 0), guess, stated, logits).token == guess
            law[guess] += chance * kept
            if kept < 1.0:
                sampler = Scripted(config, min(kept * (1 + 1e-6) + 1e-9, 1 - 1e-12), (guess + 1) % V)
                assert judged(sampler, guess, stated, logits).token == (guess + 1) % V
                law += chance * (1 - kept) * sampler.rest
        assert 0.5 * float((law - p).abs().sum()) < 1e-12


@pytest.fixture
def small(tiny_transformer):
    return tiny_transformer(vocab_size=V, context_length=64)


class Poor:
    """Guesses at random, by a law that it states, and more than one at a time."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def propose(self, _text, most):
        q = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
        tokens = torch.multinomial(q, min(3, most), replacement=True, generator=self.generator).tolist()
        return Proposal(tuple(tokens), (q,) * len(tokens))


def test_drawn_texts_have_the_law_of_the_model(small):
    """Frequencies of texts of three tokens against their probabilities by enumeration."""
    count, length, prompt, config = 800, 3, [1, 2], SamplingConfig(temperature=0.9)
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(count):
        sampling = config.model_copy(update={"seed": seed, "max_tokens": length})
        text = tuple(draw.token for draw in draws(small, prompt, sampling, (), drafter=Poor(seed + 10**6)))
        seen[text] = seen.get(text, 0) + 1
    texts = list(itertools.product(range(V), repeat=length))
    with torch.inference_mode():
        logits = small.forward(torch.tensor([[*prompt, *text] for text in texts]))[0]
    log_probs = (logits / 0.9).log_softmax(-1)
    chi_square, cells = 0.0, 0
    for row, text in enumerate(texts):
        p = math.exp(sum(float(log_probs[row, 1 + place, token]) for place, token in enumerate(text)))
        if p * count >= 5:
            chi_square += (seen.get(text, 0) - p * count) ** 2 / (p * count)
            cells += 1
    assert cells > 20
    # Five standard deviations of a chi-square.
    assert chi_square < cells + 5 * math.sqrt(2 * cells)


def drafters(model, config):
    tokens = np.random.default_rng(1).integers(0, model.vocab_size, 4000)
    ngram = NGramModel.train([tokens], model.vocab_size, 3)
    return {
        "poor": Poor(1),
        "prompt": PromptLookup(),
        "ngram": NGramDrafter(ngram, config, model.vocab_size),
        "itself": ModelDrafter(model, config, model.vocab_size),
    }


@pytest.mark.parametrize("name", ["poor", "prompt", "ngram", "itself"])
@pytest.mark.parametrize("overflow", ["error", "slide"])
def test_greedy_text_is_the_same_text(tiny_transformer, name, overflow):
    model = tiny_transformer(vocab_size=V, context_length=48)
    config = SamplingConfig(temperature=0.0, max_tokens=100, overflow=overflow, repetition_penalty=1.2)
    for prompt in ([1], [2, 3, 1, 0, 4, 4], list(range(V)) * 6):
        plain = list(draws(model, prompt, config, (3,)))
        guessed = list(draws(model, prompt, config, (3,), drafter=drafters(model, config)[name]))
        assert [draw.token for draw in guessed] == [draw.token for draw in plain]
        assert [draw.log_prob for draw in guessed] == pytest.approx([draw.log_prob for draw in plain], abs=1e-4)


def passes(model, prompt, config, drafter) -> tuple[int, int]:
    """Tokens, and how often the model was asked."""
    hidden, count = model.hidden, 0

    def counting(*arguments, **named):
        nonlocal count
        count += 1
        return hidden(*arguments, **named)

    model.hidden = counting
    try:
        return len(list(draws(model, prompt, config, (), drafter=drafter))), count
    finally:
        del model.hidden


def test_right_guesses_save_passes(tiny_transformer):
    model, twin = tiny_transformer(), tiny_transformer()
    for temperature in (0.0, 1.0):
        config = SamplingConfig(temperature=temperature, max_tokens=50)
        assert passes(model, [1, 2], config, None) == (50, 50)
        written, asked = passes(model, [1, 2], config, ModelDrafter(twin, config, 260))
        assert written == 50
        assert asked <= 12, "a model guesses its own text"


def test_lookup_finds_what_followed_the_longest_match():
    lookup = PromptLookup(longest=3, shortest=2)
    text = [1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3]
    assert lookup.propose(text, 2).tokens == (9, 8), "after 1 2 3, though 2 3 was there later"
    assert lookup.propose([*text, 5, 5], 3).tokens == ()
    assert lookup.propose([*text, 5, 5, 5], 4).tokens == (5, 5, 5, 5), "a repetition goes on"


def test_likeliest_is_greedy_generation_by_the_model():
    document = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    model = NGramModel.train([document] * 3, vocab_size=10, order=3, end_of_text=0)
    assert likeliest(model.trie, [3, 1], 20, 1e-9) == [4, 1, 5, 9, 2, 6, 0]
    assert likeliest(model.trie, [3, 1], 2, 1e-9) == [4, 1]
    assert likeliest(model.trie, [3, 1], 20, 1.0) == []
    for before in ([], [7], [-1, 99], [5]):
        assert all(0 <= token < 10 for token in likeliest(model.trie, before, 5, 1e-9))
    assert likeliest(NGramModel.train([document], 10, 1).trie, [3], 4, 0.1) == []


def test_confidence_follows_what_became_of_the_guesses():
    right, wrong = Confidence(), Confidence()
    text: list[int] = []
    for _ in range(40):
        for confidence, guess in ((right, (1, 1)), (wrong, (2, 2))):
            confidence.length(text, 99)
            confidence.note(text, guess)
        text = [*text, 1, 1, 1]
    assert right.length(text, 99) == MOST_GUESSES
    assert wrong.length(text, 99) == 1
    assert right.length(text, 3) == 3


def test_what_cannot_guess_is_refused(tiny_transformer):
    with pytest.raises(UserError, match="guesses come from a Transformer or an n-gram model"):
        drafter_of(object(), SamplingConfig(), 5)  # type: ignore[arg-type]
    assert isinstance(drafter_of(tiny_transformer(), SamplingConfig(), 260), ModelDrafter)
