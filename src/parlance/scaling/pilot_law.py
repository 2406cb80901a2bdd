"""From a few short training runs to the loss of a long one on the same text, with an interval.

Two things decide how far a loss falls: how hard the text is, and how the model learns. The first is known for next to
nothing: an n-gram model counted on as many tokens reaches a loss C(D) of its own, in seconds and for any D; what its
longer contexts take off log C tells how much the text is made of fixed phrases, m(D); and what copying from the same
window takes off tells how much a text repeats itself, g. The second depends less on the text, once that is divided out:

    log(L(N, D) / C(D)) = t0 + t1 x + t2 z + t3 x z + t4 g s(x) + t5 m,   x = log(D / 300 000), z = log(N / 3 million)

with s(x) the share of copying that a network has learnt after D tokens, a logistic curve. The coefficients have a
prior, from runs on other texts; the short runs on this text move it (Bayesian linear regression, Bishop 2006, section
3.3). Where the text is like those, a few runs suffice; where it is not, the interval says how far they may be off.

    law = PilotLaw.fit([Run(1e6, 2e5, 4.1), Run(3e6, 3e5, 3.7)], [Counted(5.2, 0.02), Counted(5.0, 0.03)], copying=0.02)
    law.interval(3e6, 8e6, Counted(4.1, 0.1))        # .value, .low, .high

Each run must have finished its own learning-rate schedule. Nothing here knows of a text that is read many times over:
`effective_tokens` says what such tokens are worth (Muennighoff et al. 2023, arXiv 2305.16264).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.scaling.frontier import Run
from parlance.scaling.power_law import Prediction

Floats = NDArray[np.float64]

TOKENS, PARAMETERS = 3e5, 3e6
"""Where x and z are zero."""
LEARNT, STEEPNESS = 0.2, 0.45
"""x at which half of what can be copied is, and how far from it most or hardly any is."""
NOISE, EARLY = 0.01, 5e4
"""Standard deviation of log L around the law (seeds, and what is not straight) is `NOISE (1 + EARLY / D)`: a run of a
few steps has hardly left where all models begin."""
REPEATS = 15.39
"""Times that a text can be read again until a token is worth 1/e of a new one less: R* of Muennighoff et al. 2023."""


@dataclass(frozen=True)
class Counted:
    """What counting n-grams on D tokens of a text reaches."""

    loss: float = 1.0
    """C(D), nats per token."""
    memory: float = 0.0
    """m(D) = log(C2 / C), C2 the loss of a bigram model."""


NOTHING = Counted()
"""Where there is nothing to count."""


@dataclass(frozen=True)
class Prior:
    """What is known of t0 to t5 before any run on a text."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    """Standard deviations between texts and kinds of model."""


COUNTED = Prior((-0.078, -0.053, -0.019, -0.008, -1.0, 1.1), (0.03, 0.02, 0.006, 0.004, 0.4, 0.3))
"""Where C(D) is known: docs/lab-notebook.md has the runs."""
PLAIN = Prior((1.5, -0.11, -0.05, -0.01, 0.0, 0.0), (1.0, 0.06, 0.03, 0.01, 1.0, 1.0))
"""Where there is none, as for a masked language model: C(D) is 1, and the slopes are those of the loss itself."""


@dataclass(frozen=True)
class PilotLaw:
    """What is known of the coefficients after the runs."""

    mean: Floats
    covariance: Floats
    copying: float
    """g of the text."""

    @classmethod
    def fit(cls, runs: Sequence[Run], counted: Sequence[Counted] | None, copying: float = 0.0) -> "PilotLaw":
        """The law after `runs`; `counted` is what counting reaches on as many tokens as each.

        Raises UserError for values that are not finite and above zero.
        """
        prior = PLAIN if counted is None else COUNTED
        others = [NOTHING] * len(runs) if counted is None else counted
        pairs = list(zip(runs, others, strict=True))
        rows = np.array([features(run.parameters, run.tokens, copying, other.memory) for run, other in pairs])
        losses = np.array([[run.loss, other.loss] for run, other in pairs])
        if not (np.isfinite(losses).all() and (losses > 0).all()):
            raise UserError("losses of pilots are finite numbers above zero")
        rows, losses = rows.reshape(-1, len(prior.mean)), losses.reshape(-1, 2)
        precision = np.diag(1 / np.square(prior.spread))
        weighted = rows.T / np.array([_noise(run.tokens) ** 2 for run in runs])
        observed = np.log(losses[:, 0] / losses[:, 1])
        covariance = np.linalg.inv(precision + weighted @ rows)
        return cls(covariance @ (precision @ np.array(prior.mean) + weighted @ observed), covariance, copying)

    def interval(self, parameters: float, tokens: float, counted: Counted = NOTHING) -> Prediction:
        """The loss of one run of N parameters after D tokens, where counting reaches `counted`; 95 % interval."""
        row = features(parameters, tokens, self.copying, counted.memory)
        middle = float(row @ self.mean)
        spread = 1.96 * math.hypot(math.sqrt(float(row @ self.covariance @ row)), _noise(tokens))
        return Prediction(*(counted.loss * math.exp(value) for value in (middle, middle - spread, middle + spread)))


def effective_tokens(tokens: float, unique: float) -> float:
    """What `tokens` that are read of a text of `unique` ones are worth, in tokens that are read once."""
    if tokens <= unique:
        return tokens
    return unique * (1 + REPEATS * (1 - math.exp(-(tokens / unique - 1) / REPEATS)))


def features(parameters: float, tokens: float, copying: float, memory: float) -> Floats:
    """What t0 to t5 are multiplied by. Raises UserError for what is not finite and above zero."""
    if not (0 < parameters < math.inf and 0 < tokens < math.inf):
        raise UserError("sizes and tokens of runs are finite numbers above zero")
    x, z = math.log(tokens / TOKENS), math.log(parameters / PARAMETERS)
    return np.array([1.0, x, z, x * z, copying / (1 + math.exp(-(x - LEARNT) / STEEPNESS)), memory])


def _noise(tokens: float) -> float:
    """Standard deviation of log L of a run."""
    return NOISE * (1 + EARLY / tokens)
