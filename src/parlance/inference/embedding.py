"""Texts as vectors: a network's last activations, pooled over the tokens and scaled to length 1.

The dot product of two vectors is then the cosine of their angle. What the distances mean is up to the model: one that
was trained to predict tokens puts texts close that go on alike, and is no substitute for one trained on pairs of texts.

    vectors = embed_tokens(model.language_model, [model.tokenizer.encode("a cat"), model.tokenizer.encode("a dog")])

A decoder's and a recurrent network's activations are those of the last layer before the head; an encoder's, and those
of an encoder-decoder's encoder, have seen the whole text. Models without activations (n-grams) have no vectors.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.encoder_decoder import EncoderDecoder
from parlance.models.masked import MaskedLanguageModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.padding import pad_right
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import padding_layout

Pooling = Literal["mean", "last"]
"""Of the activations of all tokens the mean, or those of the last token alone."""
BATCH_TOKENS = 8192
"""Padded tokens read at once."""


@torch.inference_mode()
def embed_tokens(
    model: LanguageModel, texts: Sequence[Sequence[int]], *, pooling: Pooling = "mean"
) -> NDArray[np.float32]:
    """Vectors (N, D) of length 1 of N texts as token ids, in their order.

    Tokens that stand around a whole text ([CLS], BOS) are read where the caller put them. Raises UserError for an empty
    text, one longer than the context, an id that the model does not have, and a model without activations.
    """
    network = _network(model)
    context = network.context_length
    for number, tokens in enumerate(texts, start=1):
        if not tokens:
            raise UserError(f"text {number} is empty; there is nothing to embed")
        if context is not None and len(tokens) > context:
            raise UserError(f"text {number} has {len(tokens)} tokens and the model reads {context}; divide it")
        outside = next((token for token in tokens if not 0 <= token < network.embed_tokens.num_embeddings), None)
        if outside is not None:
            raise UserError(f"text {number}: token {outside} is outside the model's vocabulary")
    out: NDArray[np.float32] | None = None
    for rows in _batches([len(tokens) for tokens in texts]):
        vectors = _pooled(network, [texts[row] for row in rows], pooling)
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
        if out is None:
            out = np.empty((len(texts), vectors.shape[1]), np.float32)
        out[rows] = vectors.cpu().numpy()
    return np.empty((0, 0), np.float32) if out is None else out


def _network(model: LanguageModel) -> NeuralLanguageModel:
    """What reads a text. Raises UserError where nothing does."""
    if isinstance(model, MaskedLanguageModel):
        return model.encoder
    if isinstance(model, EncoderDecoder):
        return model.encoder
    if isinstance(model, NeuralLanguageModel) and not isinstance(model, ConditionalLanguageModel):
        return model
    raise UserError("this kind of model has no activations of a text, and so no embeddings; use a network")


def _pooled(network: NeuralLanguageModel, rows: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """(B, D) float32."""
    tokens = pad_right(rows, 0).to(network.device)
    lengths = torch.tensor([len(row) for row in rows], device=network.device)
    inside = torch.arange(tokens.shape[1], device=network.device) < lengths.unsqueeze(1)  # (B, T)
    if isinstance(network, Transformer) and not network.config.causal:
        hidden = network.hidden(tokens, layout=padding_layout(inside, causal=False))
    else:
        hidden = network.hidden(tokens)  # what follows a token never reaches it: padding changes nothing
    hidden = hidden.float()
    if pooling == "last":
        return hidden[torch.arange(len(rows), device=network.device), lengths - 1]
    return hidden.masked_fill(~inside.unsqueeze(2), 0.0).sum(1) / lengths.unsqueeze(1)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Rows of about equal length together, each batch of at most BATCH_TOKENS padded tokens or one row."""
    out: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if out and (len(out[-1]) + 1) * lengths[row] <= BATCH_TOKENS:
            out[-1].append(row)
        else:
            out.append([row])
    return out
