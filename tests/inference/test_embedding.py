"""Vectors of texts: pooled activations of length 1, whatever else is in the batch."""

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.inference import embedding
from parlance.inference.embedding import embed_tokens
from parlance.models.exact import ConditionalFrequencies
from parlance.models.recurrent import Recurrent, RecurrentConfig

TEXTS = [[1, 2, 3], [5], [7, 8] * 20, [9, 1, 4, 4]]


@pytest.fixture
def models(tiny_transformer):
    recurrent = Recurrent(RecurrentConfig(vocab_size=260, layers=1, width=16))
    recurrent.initialise(torch.Generator().manual_seed(0))
    return [tiny_transformer(), recurrent, tiny_transformer(causal=False)]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_pooled_activations(models, pooling, monkeypatch):
    monkeypatch.setattr(embedding, "BATCH_TOKENS", 64)  # several batches
    for model in models[:2]:
        vectors = embed_tokens(model, TEXTS, pooling=pooling)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for row, tokens in zip(vectors, TEXTS, strict=True):
            with torch.inference_mode():
                hidden = model.hidden(torch.tensor([tokens]))[0]
            expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
            assert np.allclose(row, (expected / expected.norm()).numpy(), atol=1e-4)


def test_an_encoder_sees_the_whole_text_and_no_padding(models):
    from parlance.models.masked import MaskedLanguageModel

    model = MaskedLanguageModel(models[2], vocab_size=260, mask_token=258)
    together = embed_tokens(model, TEXTS)
    alone = np.concatenate([embed_tokens(model, [tokens]) for tokens in TEXTS])
    assert np.allclose(together, alone, atol=1e-5)
    assert not np.allclose(embed_tokens(model, [[1, 2]], pooling="last"), embed_tokens(model, [[3, 2]], pooling="last"))


def test_what_has_no_vector(models):
    with pytest.raises(UserError, match="empty"):
        embed_tokens(models[0], [[1], []])
    with pytest.raises(UserError, match="reads 64"):
        embed_tokens(models[0], [[1] * 65])
    with pytest.raises(UserError, match="vocabulary"):
        embed_tokens(models[0], [[260]])
    assert embed_tokens(models[0], []).shape[0] == 0


def test_a_model_of_counts_has_no_activations():
    with pytest.raises(UserError, match="no activations"):
        embed_tokens(ConditionalFrequencies.__new__(ConditionalFrequencies), [[1]])
