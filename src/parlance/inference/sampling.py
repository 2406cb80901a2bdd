"""From logits to the next token: pure functions.

Source: Holtzman et al. 2020 (top-p); Fan et al. 2018 (top-k).
"""

import torch
from torch import Tensor

from parlance.core.config import Config


class SamplingConfig(Config):
    """How the next token is drawn."""

    max_tokens: int = 128
    """Most tokens to generate."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token."""
    top_k: int = 0
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Draw among the smallest set of tokens whose probability reaches p; 1: all."""
    seed: int = 0
    """Seed of the draws; the same seed gives the same text."""


def filtered_logits(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits (B, V) divided by `temperature` > 0, with -inf outside the top-k and the top-p set."""
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays when the mass before it is below p, so the most probable one always stays.
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draw one token a row: logits (B, V) -> ids (B,) int64."""
    if config.temperature == 0.0:
        return logits.argmax(-1)
    probabilities = filtered_logits(logits, config.temperature, config.top_k, config.top_p).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
