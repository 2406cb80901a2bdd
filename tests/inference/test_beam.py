"""Beam search: as many beams as texts find the likeliest text; one beam is greedy."""

import itertools

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.inference.beam import beam_search
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.models.ngram import NGramModel


def enumerated(model, prompt: list[int], length: int, stop: int, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """(score, tokens) of every text that ends, the best first."""
    V = model.vocab_size
    texts = {}
    for text in itertools.product(range(V), repeat=length):
        end = text.index(stop) + 1 if stop in text else length
        texts[text[:end]] = None
    scored = []
    for text in texts:
        with torch.inference_mode():
            log_probs = model.forward(torch.tensor([[*prompt, *text]]))[0][0].double().log_softmax(-1)
        total = sum(float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(text))
        scored.append((total / len(text) ** penalty, text))
    return sorted(scored, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_enough_beams_find_the_best_texts(tiny_transformer, penalty):
    for seed in range(3):
        model = tiny_transformer(seed, vocab_size=4)
        expected = enumerated(model, [1, 2], 3, 3, penalty)
        found = beam_search(model, [1, 2], SamplingConfig(max_tokens=3), {3}, width=40, length_penalty=penalty)
        assert len(found) == 40
        for beam, (score, text) in zip(found, expected, strict=False):
            assert beam.score == pytest.approx(score, abs=1e-5)
            assert beam.ending == ("stop" if 3 in text else "max_tokens")
        assert tuple(found[0].tokens) == tuple(token for token in expected[0][1] if token != 3)


def test_one_beam_is_greedy(tiny_transformer):
    model = tiny_transformer()
    greedy = list(stream(model, [5, 6], SamplingConfig(max_tokens=12, temperature=0.0), ()))
    assert beam_search(model, [5, 6], SamplingConfig(max_tokens=12), (), width=1)[0].tokens == greedy


def test_more_beams_are_not_worse(tiny_transformer):
    model = tiny_transformer(vocab_size=30)
    scores = [beam_search(model, [5], SamplingConfig(max_tokens=8), (), width=w)[0].score for w in (1, 4, 64)]
    assert scores[0] <= scores[1] + 1e-6
    assert scores[1] <= scores[2] + 1e-6


def test_an_ngram_model_is_searched_too():
    model = NGramModel.train([np.array([3, 1, 4, 1, 5, 9])] * 3, vocab_size=10, order=3, end_of_text=0)
    best = beam_search(model, [3, 1], SamplingConfig(max_tokens=20), {0}, width=3)[0]
    assert (best.tokens, best.ending) == ([4, 1, 5, 9], "stop")


def test_wrong_settings_are_named(tiny_transformer):
    for fields, named in (({"top_k": 3}, "top_k"), ({"min_p": 0.1}, "min_p"), ({"overflow": "slide"}, "beam search")):
        with pytest.raises(UserError, match=named):
            beam_search(tiny_transformer(), [1], SamplingConfig(**fields), (), width=2)
    with pytest.raises(UserError, match="0 beams"):
        beam_search(tiny_transformer(), [1], SamplingConfig(), (), width=0)
