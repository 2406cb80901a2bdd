"""Beam search: the likeliest continuations of a prompt, among those that `width` beams come upon.

At each step every beam is continued by every token, and the `width` likeliest of all remain; one that ends (by a stop
token, or where there is no more room) is put aside. Texts are compared by log p / length ** length_penalty, length in
tokens and the stop token counted. The search ends when nothing that still runs can become better than the `width` best
that have ended: with as many beams as there are texts, the best is found for certain.

    best = beam_search(model, prompt, SamplingConfig(max_tokens=20), stop={end_of_text}, width=4)[0]

Source: Wu et al. 2016 (the length penalty here is the plain power).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.generation import Ending
from parlance.inference.reading import Reader
from parlance.inference.sampling import SamplingConfig
from parlance.models.contract import LanguageModel

MOST_BEAMS = 256
_READ_ONLY = ("max_tokens", "overflow", "seed", "temperature")
"""What a search reads of the settings, and what it may pass over: it draws nothing."""


@dataclass(frozen=True)
class Beam:
    """A continuation."""

    tokens: list[int]
    """Without the stop token."""
    log_prob: float
    """Nats, the stop token's included."""
    score: float
    """What texts are compared by."""
    ending: Ending


def beam_search(
    model: LanguageModel,
    prompt: Sequence[int],
    config: SamplingConfig,
    stop: Collection[int],
    *,
    width: int,
    length_penalty: float = 1.0,
    vocab_size: int | None = None,
) -> list[Beam]:
    """The `width` best continuations, the best first: at least one. `length_penalty` at least 0; 0: by log p alone.

    `vocab_size`: only ids below it are written. Raises UserError for widths outside 1 to 256, settings that change what
    is drawn, a context that slides, and where `Reader` does.
    """
    if not 1 <= width <= MOST_BEAMS:
        raise UserError(f"{width} beams: search with 1 to {MOST_BEAMS}")
    if length_penalty < 0:
        raise UserError(f"length penalty {length_penalty}: give 0 or more")
    default = SamplingConfig()
    for name in SamplingConfig.model_fields:
        if name not in _READ_ONLY and getattr(config, name) != getattr(default, name):
            raise UserError(f"{name}: beam search looks for the likeliest text and draws none; leave it out")
    if config.overflow == "slide":
        raise UserError("beam search ends where the context is full; use --overflow error or truncate")
    reader = Reader(model, prompt, config)
    limit = min(config.max_tokens, reader.room)
    at_limit: Ending = "context" if reader.room < config.max_tokens else "max_tokens"
    stops = torch.tensor(sorted(stop), dtype=torch.int64)
    V = vocab_size or model.vocab_size
    stops = stops[stops < V]
    log_probs = reader.read(reader.beginning)[:, :V].double().log_softmax(-1)  # (beams, V)
    state, scores = reader.state, torch.zeros(1, dtype=torch.float64)
    texts: list[list[int]] = [[]]
    ended: list[Beam] = []
    for length in range(1, limit + 1):
        total = scores[:, None] + log_probs
        for row, token in [(row, token) for row in range(len(texts)) for token in stops.tolist()]:
            log_prob = float(total[row, token])
            ended.append(Beam(texts[row], log_prob, log_prob / length**length_penalty, "stop"))
        total[:, stops] = -torch.inf
        best = total.flatten().sort(descending=True, stable=True)
        alive = min(width, int(best.values.isfinite().sum()))
        scores, rows, tokens = best.values[:alive], best.indices[:alive] // V, best.indices[:alive] % V
        texts = [[*texts[row], token] for row, token in zip(rows.tolist(), tokens.tolist(), strict=True)]
        ended = sorted((beam for beam in ended if beam.log_prob > -torch.inf), key=lambda beam: -beam.score)[:width]
        # What runs can only become less likely, and is divided by the most at the end.
        reachable = float(scores[0]) / limit**length_penalty if alive else -torch.inf
        if not alive or (len(ended) == width and ended[-1].score >= reachable):
            texts = []
            break
        if length < limit:
            state = _select(state, rows)
            logits, state = _forward(model, tokens[:, None], state)
            log_probs = logits[:, :V].double().log_softmax(-1)
    for text, log_prob in zip(texts, scores.tolist(), strict=False):
        ended.append(Beam(text, log_prob, log_prob / limit**length_penalty, at_limit))
    return sorted(ended, key=lambda beam: -beam.score)[:width]


def _select(state: Any, rows: Tensor) -> Any:
    return state[rows] if isinstance(state, Tensor) else state.select(rows)


@torch.inference_mode()
def _forward(model: LanguageModel, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Logits (beams, V) after one more token of each, and the state."""
    logits, state = model.forward(tokens, state)
    return logits[:, -1].float().cpu(), state
