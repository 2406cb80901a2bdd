"""From logits to the next token: pure functions, (..., V) logits -> (..., V) logits, in the order they are applied.

1. `add_bias`: a number added to the logits of chosen tokens.
2. `penalise_repetition`: tokens of the prompt and of what was written since: positive logits divided, negative
   multiplied by a number (Keskar et al. 2019).
3. `penalise_counts`: of what was written alone: a number off for a token that is there (presence) and one off for every
   time it is (frequency), as OpenAI's API defines them.
4. A constraint hides what may not follow (`constraints.py`). At temperature 0 the largest logit is now taken.
5. `filtered_logits`: division by the temperature; then `keep_top_k` (Fan et al. 2018), `keep_top_p` (Holtzman et al.
   2020), `keep_min_p` (Nguyen et al. 2024), `keep_typical` (Meister et al. 2023), each among what the one before left.
6. `race`: a draw from the softmax of what is left.

    logits = filtered_logits(logits, SamplingConfig(temperature=0.8, top_p=0.9))
    ids = sample(logits, SamplingConfig(), torch.Generator().manual_seed(0))

What remembers the text for 2 and 3 is `sampler.Sampler`. Shapes: B rows, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from parlance.core.config import Config

COLDEST = 1e-4
"""Lowest temperature above 0: logits divided by less leave the range of floats."""
MOST_STOPS = 64
"""Stop strings of one text."""
MOST_ALTERNATIVES = 100
"""Alternatives told beside one token."""


def _usable_temperature(value: float) -> float:
    if value != 0 and value < COLDEST:
        raise ValueError(f"give 0, or at least {COLDEST}")
    return value


class SamplingConfig(Config):
    """How the next token is drawn, and where a text ends."""

    max_tokens: int = Field(default=128, ge=1)
    """Most tokens to generate."""
    temperature: Annotated[float, AfterValidator(_usable_temperature)] = 1.0
    """Divides the logits; 0 takes the most probable token, else at least 0.0001."""
    top_k: int = Field(default=0, ge=0)
    """Draw among the k most probable tokens; 0: all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the smallest set of tokens whose probability reaches p; 1: all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw among the tokens that are at least this share as probable as the most probable one; 0: all."""
    typical_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the tokens whose information is nearest to the expected one, until they hold this probability; 1:
    all."""
    repetition_penalty: float = Field(default=1.0, ge=0.1, le=10)
    """Divides the logits of tokens that are in the prompt or were written (multiplies negative ones); 1: none."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken off the logit of a token that was written already."""
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Taken off the logit of a token for every time it was written."""
    logit_bias: dict[int, float] = Field(default={})
    """Added to the logits of these token ids; -100 as good as forbids one, 100 as good as demands it."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(default=(), max_length=MOST_STOPS)
    """Strings that end the text where the first of them is complete; they are not part of it."""
    top_logprobs: int = Field(default=0, ge=0, le=MOST_ALTERNATIVES)
    """How many of the most probable tokens to tell, with their log-probabilities, beside each token."""
    overflow: Literal["error", "truncate", "slide"] = "error"
    """Where the text outgrows the model's context: refuse a longer prompt and stop generating there; or cut the
    beginning off a longer prompt, so that there is room for `max_tokens` (for half the context at most), and stop
    there; or go on from the second half of the text (what was before is forgotten)."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the draws; the same seed gives the same text."""


def add_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """`bias` added to the logits of its token ids."""
    if not bias:
        return logits
    ids = torch.tensor(list(bias), device=logits.device)
    return logits.index_add(-1, ids, logits.new_tensor(list(bias.values())).expand(*logits.shape[:-1], -1))


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of the tokens that `seen` (V,) bool names divided by `penalty`, negative ones multiplied by it."""
    if penalty == 1.0:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalise_counts(logits: Tensor, counts: Tensor, presence: float, frequency: float) -> Tensor:
    """`presence` off the logits of tokens whose `counts` (V,) float are above 0, and `frequency` times the count."""
    if presence == 0.0 and frequency == 0.0:
        return logits
    return logits - presence * (counts > 0) - frequency * counts


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf outside the k largest (and what equals the k-th); 0: all stay."""
    if not 0 < k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set whose probability reaches p; the most probable token stays, however small p is."""
    if p >= 1.0:
        return logits
    return logits.masked_fill(~_first_mass(logits, logits.softmax(-1), p), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """-inf for what is less probable than p times the most probable token; 0: all stay."""
    if p <= 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of mass p of the tokens whose -log p is nearest to the entropy; 1: all stay."""
    if p >= 1.0:
        return logits
    log_probs = logits.log_softmax(-1)
    probabilities = log_probs.exp()
    entropy = -(probabilities * log_probs.masked_fill(probabilities == 0, 0.0)).sum(-1, keepdim=True)
    return logits.masked_fill(~_first_mass(-(log_probs + entropy).abs(), probabilities, p), -math.inf)


_FEW = (128, 1024)
"""How many tokens are put in order at first: most often they hold the mass that is looked for, and to order all of a
large vocabulary takes fifty times as long."""


def _first_mass(scores: Tensor, probabilities: Tensor, mass: float) -> Tensor:
    """(..., V) bool: the tokens of the largest `scores` until their probabilities reach `mass`, at least one; of equal
    scores, those of smaller ids first."""
    V = scores.shape[-1]
    kept = np.zeros((scores.numel() // V, V), np.bool_)
    rows = zip(kept, scores.reshape(-1, V).numpy(), probabilities.reshape(-1, V).numpy(), strict=True)
    for keeps, score, probability in rows:
        for count in (*(few for few in _FEW if few < V), V):
            first = np.flatnonzero((score >= np.partition(score, V - count)[V - count]) & (probability > 0))
            first = first[np.argsort(-score[first])]
            before = np.cumsum(probability[first], dtype=np.float64) - probability[first]
            if before[-1] >= mass:
                break
        # A token stays when the mass before it is below `mass`.
        number = max(1, int((before < mass).sum()))
        lowest = score[first[number - 1]]
        keeps[score > lowest] = True
        keeps[np.flatnonzero(score == lowest)[: number - int(keeps.sum())]] = True
    return torch.from_numpy(kept).view(scores.shape)


def filtered_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Logits (..., V) divided by the temperature (above 0), with -inf where the filters of `config` leave nothing."""
    logits = keep_top_k(logits.float() / config.temperature, config.top_k)
    logits = keep_min_p(keep_top_p(logits, config.top_p), config.min_p)
    return keep_typical(logits, config.typical_p)


_NUMBERS = 2.0**-53
"""Spacing of the uniform numbers that 53 random bits make."""


def race(probabilities: Tensor, generator: torch.Generator) -> int:
    """Draw one token from `probabilities` (V,) float32: the smallest of -log(1 - u) / p, u one uniform number a token.

    The very draw of `torch.multinomial(probabilities, 1, generator=generator)`, which moves the generator on as far:
    but logarithms are taken of those few tokens alone that can win.
    """
    p: NDArray[np.float32] = probabilities.numpy()
    bits = torch.empty(p.size, dtype=torch.int64).random_(generator=generator).numpy()
    uniform = (bits & ((1 << 53) - 1)) * _NUMBERS
    with np.errstate(divide="ignore", invalid="ignore"):
        # u <= -log(1 - u), so nothing wins whose u / p is above the best time so far.
        bound = np.where(p > 0, uniform / p, np.inf)
        best = int(bound.argmin())
        able = np.flatnonzero(bound <= 1.0001 * -np.log1p(-uniform[best]) / p[best])
        times = (-np.log1p(-uniform[able])).astype(np.float32)
        return int(able[(p[able] / times).argmax()])


def exact(probabilities: Tensor) -> Tensor:
    """The law, float64, that a `race` of `probabilities` (V,) float32 draws from: a race needs no sum of 1."""
    double = probabilities.double()
    return double / double.sum()


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draw one token a row: logits (B, V) -> ids (B,) int64. Bias, temperature and filters; penalties and top
    alternatives need the text: see `Sampler`."""
    logits = add_bias(logits, config.logit_bias)
    if config.temperature == 0.0:
        return logits.argmax(-1)
    probabilities = filtered_logits(logits, config).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
