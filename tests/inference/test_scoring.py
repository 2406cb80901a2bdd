"""Scores of documents against one pass a token, and windows against what is promised of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.inference import scoring
from parlance.inference.scoring import document_log_probs, windows
from parlance.models.ngram import NGramModel
from parlance.models.recurrent import Recurrent, RecurrentConfig

END = 256


@torch.inference_mode()
def naive(model, document: list[int], span: int) -> list[float]:
    """log p of each token given the end-of-text mark and the document before it, at most `span` tokens of it."""
    tokens = [END, *document]
    out = []
    for place in range(1, len(tokens)):
        logits = model.forward(torch.tensor([tokens[max(0, place - span) : place]]))[0][0, -1]
        out.append(float(logits.double().log_softmax(-1)[tokens[place]]))
    return out


def documents(*lengths: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, length).tolist() for length in lengths]


# --- windows ---------------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 300), length=st.integers(1, 50))
def test_windows_score_each_token_once_with_half_a_context_before_it(count, length):
    plan = windows(count, length)
    assert [place for _, first, end in plan for place in range(first, end)] == list(range(count))
    for start, first, end in plan:
        # The model reads the token before `start` (or the end-of-text mark) and start..end-1: `length` tokens.
        assert 0 < end - start <= length
        assert start == 0 or first - start >= length // 2


def test_windows_by_hand():
    assert windows(4, 4) == [(0, 0, 4)]
    assert windows(5, 4) == [(0, 0, 4), (2, 4, 5)]
    assert windows(9, 5) == [(0, 0, 5), (3, 5, 8), (6, 8, 9)]


# --- scores ----------------------------------------------------------------------------------------------------------


def test_short_documents_are_scored_as_one_pass_a_token_would(tiny_transformer):
    model = tiny_transformer(heads=4, kv_heads=2, head_width=8)
    texts = documents(1, 64, 7, 20, 7)
    for text, scored in zip(texts, document_log_probs(model, texts, END), strict=True):
        assert scored.dtype == np.float64
        assert scored == pytest.approx(naive(model, text, 64), abs=1e-4)


def test_a_long_document_is_read_in_windows(tiny_transformer):
    model = tiny_transformer(context_length=10)
    (text,) = documents(57)
    scored = document_log_probs(model, [text], END)[0]
    tokens = [END, *text]
    with torch.inference_mode():
        for start, first, end in windows(57, 10):
            logprobs = model.forward(torch.tensor([tokens[start:end]]))[0][0].log_softmax(-1)
            for place in range(first, end):
                assert scored[place] == pytest.approx(float(logprobs[place - start, text[place]]), abs=1e-4)
    # The windows see less than everything, so the scores of the first window alone are those of the whole past.
    assert scored[:10] == pytest.approx(naive(model, text[:10], 10), abs=1e-4)


def test_scores_do_not_depend_on_the_company(tiny_transformer, monkeypatch):
    model = tiny_transformer()
    texts = documents(3, 100, 30, 64, 65, 1)
    together = document_log_probs(model, texts, END)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 70)
    in_small_batches = document_log_probs(model, texts, END)
    alone = [document_log_probs(model, [text], END)[0] for text in texts]
    for one, two, three in zip(together, in_small_batches, alone, strict=True):
        assert one == pytest.approx(two, abs=1e-4)
        assert one == pytest.approx(three, abs=1e-4)


def test_empty_documents_have_no_scores(tiny_transformer):
    scores = document_log_probs(tiny_transformer(), [[], [1, 2], []], END)
    assert [len(each) for each in scores] == [0, 2, 0]
    assert document_log_probs(tiny_transformer(), [], END) == []


def test_bfloat16_scores_are_near(tiny_transformer):
    model = tiny_transformer()
    texts = documents(60)
    exact = document_log_probs(model, texts, END)[0]
    model.compute_dtype = torch.bfloat16
    rough = document_log_probs(model.inference_copy(), texts, END)[0]
    assert abs(rough.mean() - exact.mean()) < 0.02


def test_an_ngram_model_is_scored_by_the_same_function():
    texts = documents(30, 5)
    model = NGramModel.train([np.array(text) for text in texts], vocab_size=257, order=3, end_of_text=END)
    for text, scored in zip(texts, document_log_probs(model, texts, END), strict=True):
        assert scored == pytest.approx(naive(model, text, 10**6), abs=1e-4)


class Markov:
    """The smallest language model without a bound: p(w | last token), from a table."""

    context_length = None
    vocab_size = 257

    def __init__(self) -> None:
        self.table = torch.randn(257, 257, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens: torch.Tensor, state: None = None) -> tuple[torch.Tensor, None]:
        return self.table[tokens], state


def test_any_other_model_of_the_contract_is_scored_whole():
    model, texts = Markov(), documents(500, 2)
    for text, scored in zip(texts, document_log_probs(model, texts, END), strict=True):
        before = torch.tensor([END, *text[:-1]])
        expected = model.table.log_softmax(-1)[before, torch.tensor(text)]
        assert scored == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_long_document_goes_through_a_model_without_a_bound_in_pieces(monkeypatch):
    model = Recurrent(RecurrentConfig(vocab_size=260, layers=1, width=24, cell="gru"))
    model.initialise(torch.Generator().manual_seed(0))
    document = torch.randint(0, 256, (70,), generator=torch.Generator().manual_seed(1)).tolist()
    whole = document_log_probs(model, [document, [5]], END)
    monkeypatch.setattr(scoring, "PIECE", 16)
    pieces = document_log_probs(model, [document, [5]], END)
    np.testing.assert_allclose(pieces[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-5)
