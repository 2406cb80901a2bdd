"""From logits to the next token: pure functions.

Source: Holtzman et al. 2020 (top-p); Fan et al. 2018 (top-k).
"""

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from parlance.core.config import Config

COLDEST = 1e-4
"""Lowest temperature above 0: logits divided by less leave the range of floats."""


def _usable_temperature(value: float) -> float:
    if value != 0 and value < COLDEST:
        raise ValueError(f"give 0, or at least {COLDEST}")
    return value


class SamplingConfig(Config):
    """How the next token is drawn."""

    max_tokens: int = Field(default=128, ge=1)
    """Most tokens to generate."""
    temperature: Annotated[float, AfterValidator(_usable_temperature)] = 1.0
    """Divides the logits; 0 takes the most probable token, else at least 0.0001."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the smallest set of tokens whose probability reaches p; 1: all."""
    overflow: Literal["error", "slide"] = "error"
    """Where the text outgrows the model's context: refuse a longer prompt and stop generating there; or go on from its
    second half (what was before is forgotten)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
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
        # A token stays when the mass before it is below p; the most probable one always, however small p is.
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        outside[:, 0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draw one token a row: logits (B, V) -> ids (B,) int64."""
    if config.temperature == 0.0:
        return logits.argmax(-1)
    probabilities = filtered_logits(logits, config.temperature, config.top_k, config.top_p).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
