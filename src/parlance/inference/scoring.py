"""Log-probabilities of whole documents under any language model.

A model with a bounded context reads a long document in windows that overlap by half: each token is scored once, with
at least half a context before it (but for the document's own beginning).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.padding import pad_right

BATCH_TOKENS = 8192
"""Padded tokens read at once."""
PIECE = 2048
"""Tokens that a model without a bound reads at once of a document that is longer."""


def windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """(start, first scored, end) of each window over `count` tokens: reads start..end, scores first scored..end."""
    plan = [(0, 0, min(length, count))]
    while plan[-1][2] < count:
        start = plan[-1][0] + length - length // 2
        plan.append((start, plan[-1][2], min(start + length, count)))
    return plan


@torch.inference_mode()
def document_log_probs(
    model: LanguageModel, documents: Sequence[Sequence[int]], end_of_text: int
) -> list[NDArray[np.float64]]:
    """log p (nats) of each token of each document; a document begins after an end-of-text token."""
    if isinstance(model, NGramModel):
        return [model.log_probs(np.asarray(tokens, dtype=np.int64)) for tokens in documents]
    out = [np.empty(len(tokens)) for tokens in documents]
    jobs = []
    for index, tokens in enumerate(documents):
        if model.context_length is None and len(tokens) > PIECE:
            out[index] = _read_through(model, tokens, end_of_text)
        elif len(tokens):
            jobs += [(index, *window) for window in windows(len(tokens), model.context_length or len(tokens))]
    jobs.sort(key=lambda job: job[3] - job[1])
    batch: list[tuple[int, int, int, int]] = []
    for job in jobs:
        if batch and (len(batch) + 1) * (job[3] - job[1]) > BATCH_TOKENS:
            _score(model, documents, end_of_text, batch, out)
            batch = []
        batch.append(job)
    if batch:
        _score(model, documents, end_of_text, batch, out)
    return out


def _before(model: LanguageModel, end_of_text: int) -> int:
    """What the first token of a document is predicted after."""
    return model.start_token if isinstance(model, ConditionalLanguageModel) else end_of_text


def _read_through(model: LanguageModel, tokens: Sequence[int], end_of_text: int) -> NDArray[np.float64]:
    """log p (nats) of each token of one long document, piece by piece, the state carried on."""
    inputs = [_before(model, end_of_text), *tokens[:-1]]
    state, parts = None, []
    for start in range(0, len(tokens), PIECE):
        logits, state = model.forward(torch.tensor([inputs[start : start + PIECE]]), state)
        targets = torch.tensor(list(tokens[start : start + PIECE]), device=logits.device)
        parts.append(-F.cross_entropy(logits[0].float(), targets, reduction="none").double().cpu().numpy())
    return np.concatenate(parts)


def _score(
    model: LanguageModel,
    documents: Sequence[Sequence[int]],
    end_of_text: int,
    batch: list[tuple[int, int, int, int]],
    out: list[NDArray[np.float64]],
) -> None:
    """Fill `out` for a batch of windows (document, start, first scored, end). Padding is on the right: never seen."""
    rows = []
    for index, start, _, end in batch:
        before = documents[index][start - 1] if start else _before(model, end_of_text)
        rows.append([before, *documents[index][start : end - 1]])
    inputs = pad_right(rows, 0)
    if isinstance(model, NeuralLanguageModel):
        hidden = model.hidden(inputs.to(model.device))
    else:
        hidden = model.forward(inputs)[0]
    for row, (index, start, first, end) in enumerate(batch):
        activations = hidden[row, first - start : end - start]
        logits = (
            model.logits(activations).float()[..., : model.vocab_size]
            if isinstance(model, NeuralLanguageModel)
            else activations.float()
        )
        targets = torch.tensor(list(documents[index][first:end]), device=logits.device)
        out[index][first:end] = -F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
