"""Published scaling laws of language models: what loss a size and a number of tokens reach, and how to divide compute.

    CORRECTED.predict(70e9, 1.4e12)       # nats per token
    CORRECTED.optimum(5.76e23)            # Optimum(parameters=..., tokens=..., loss=...)
    kaplan_loss(1.5e9, 40e9), critical_batch(2.5)

Units: parameters N and tokens D are counts, compute C is in floating-point operations, losses are nats per token *of
the text and tokenizer that the law was fitted on*: Kaplan's WebText2, Chinchilla's MassiveText. Between corpora the
losses do not compare; ratios and exponents carry over better.

Sources, and how far each constant was checked:

- Kaplan et al. 2020 (arXiv 2001.08361), equations 1.1-1.8, tables 2, 3 and 6. N leaves embeddings out. The constants
  agree in several independent transcriptions; the compute exponents follow from the others (a test derives them).
- Hoffmann et al. 2022 (arXiv 2203.15556), approach 3: `CHINCHILLA` has the digits that the authors released (they round
  to the paper's E 1.69, A 406.4, B 410.7, alpha 0.34, beta 0.28).
- Besiroglu et al. 2024 (arXiv 2404.10102): `CORRECTED`, the same points fitted until the minimum was reached. Standard
  errors: A 124.5, B 1293, E 0.026, alpha 0.015, beta 0.021.
"""

import math
from dataclasses import dataclass

from parlance.core.errors import UserError

PETAFLOP_DAY = 1e15 * 86400.0
"""Floating-point operations of one PF-day, 8.64e19."""


@dataclass(frozen=True)
class Optimum:
    """The best division of a compute budget, by one law."""

    parameters: float
    """N."""
    tokens: float
    """D, with 6 N D the budget."""
    loss: float
    """Predicted loss, nats per token."""


@dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2); every constant is at least 0."""

    e: float
    """Loss that neither size nor data removes, nats per token."""
    a: float
    """Loss of a model of one parameter above the rest."""
    b: float
    """Loss of a single token of data above the rest."""
    alpha: float
    """Exponent of the size."""
    beta: float
    """Exponent of the data."""
    least_parameters: float = 0.0
    """The smallest N that the law was fitted to, where that is known."""
    least_tokens: float = 0.0
    """The smallest D."""

    def predict(self, parameters: float, tokens: float) -> float:
        """The loss of N parameters after D tokens, both above zero."""
        _positive("a law predicts for", parameters=parameters, tokens=tokens)
        return float(self.e + self.a * parameters**-self.alpha + self.b * tokens**-self.beta)

    def optimum(self, flops: float) -> Optimum:
        """The N and D of lowest loss with 6 N D = `flops` (equation 4).

        Raises UserError where the law has none: a term that is zero or does not fall.
        """
        _positive("an optimum needs", flops=flops)
        self._needs_both_terms()
        total = self.alpha + self.beta
        log_g = math.log(self.alpha * self.a / (self.beta * self.b)) / total
        log_c = math.log(flops / 6.0)
        parameters = math.exp(log_g + self.beta / total * log_c)
        tokens = math.exp(-log_g + self.alpha / total * log_c)
        return Optimum(parameters, tokens, self.predict(parameters, tokens))

    def covers(self, parameters: float, tokens: float) -> bool:
        """Whether N and D are no smaller than what the law was fitted to. (Larger ones are what laws are for.)"""
        return parameters >= self.least_parameters and tokens >= self.least_tokens

    def tokens_for(self, parameters: float) -> float:
        """The D for which `parameters` is the best size: where alpha A / N^alpha = beta B / D^beta."""
        _positive("an optimum needs", parameters=parameters)
        self._needs_both_terms()
        log_d = math.log(self.beta * self.b / (self.alpha * self.a)) + self.alpha * math.log(parameters)
        return math.exp(log_d / self.beta)

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b) of N ~ C^a and D ~ C^b."""
        self._needs_both_terms()
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    def _needs_both_terms(self) -> None:
        if min(self.a, self.b, self.alpha, self.beta) <= 0:
            raise UserError(
                "this law has no best division of compute: its loss does not fall with "
                + ("the number of parameters" if min(self.a, self.alpha) <= 0 else "the number of tokens")
            )


LEAST_PARAMETERS, LEAST_TOKENS = 7e7, 5e9
"""Hoffmann et al. 2022, abstract: 70 million to over 16 billion parameters, 5 to 500 billion tokens."""

CHINCHILLA = ParametricLaw(
    e=math.exp(0.5267228), a=math.exp(6.0073404), b=math.exp(6.0179186), alpha=0.33917084, beta=0.2849083,
    least_parameters=LEAST_PARAMETERS, least_tokens=LEAST_TOKENS,
)  # fmt: skip
"""Hoffmann et al. 2022, approach 3, unrounded."""

CORRECTED = ParametricLaw(
    e=1.8169, a=482.01, b=2085.43, alpha=0.3478, beta=0.3658,
    least_parameters=LEAST_PARAMETERS, least_tokens=LEAST_TOKENS,
)  # fmt: skip
"""Besiroglu et al. 2024: Chinchilla's points, fitted to the minimum."""


def kaplan_loss_of_parameters(parameters: float) -> float:
    """(8.8e13 / N)^0.076: enough data, trained to convergence (equation 1.1); N without embeddings."""
    _positive("a law predicts for", parameters=parameters)
    return float((8.8e13 / parameters) ** 0.076)


def kaplan_loss_of_tokens(tokens: float) -> float:
    """(5.4e13 / D)^0.095: a large model, stopped early (equation 1.2)."""
    _positive("a law predicts for", tokens=tokens)
    return float((5.4e13 / tokens) ** 0.095)


def kaplan_loss_of_compute(flops: float) -> float:
    """(3.1e8 PF-days / C)^0.050: the best size, a small batch (equation 1.3)."""
    _positive("a law predicts for", flops=flops)
    return float((3.1e8 * PETAFLOP_DAY / flops) ** 0.050)


def kaplan_loss(parameters: float, tokens: float) -> float:
    """((6.4e13 / N)^(0.076/0.103) + 1.8e13 / D)^0.103 (equation 1.5, table 2)."""
    _positive("a law predicts for", parameters=parameters, tokens=tokens)
    return float(((6.4e13 / parameters) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103)


def kaplan_loss_of_steps(parameters: float, steps: float) -> float:
    """(6.5e13 / N)^0.077 + (2.1e3 / S)^0.76 after S steps far above the critical batch (equation 1.6, table 3)."""
    _positive("a law predicts for", parameters=parameters, steps=steps)
    return float((6.5e13 / parameters) ** 0.077 + (2.1e3 / steps) ** 0.76)


def kaplan_optimum(flops: float) -> Optimum:
    """N = 1.3e9 C^0.73 with C in PF-days (table 6), D what the compute leaves; the loss by `kaplan_loss_of_compute`."""
    _positive("an optimum needs", flops=flops)
    parameters = 1.3e9 * (flops / PETAFLOP_DAY) ** 0.73
    return Optimum(parameters, flops / (6.0 * parameters), kaplan_loss_of_compute(flops))


def critical_batch(loss: float) -> float:
    """2.1e8 / L^(1/0.21) tokens: at this batch, both steps and data are twice their least (equation 1.4).

    The loss is Kaplan's: nats per token of WebText2.
    """
    _positive("the critical batch needs", loss=loss)
    return float(2.1e8 / loss ** (1.0 / 0.21))


def least_tokens(parameters: float) -> float:
    """5e3 N^0.74: below about this many tokens a model of N parameters overfits (Kaplan et al., equation 4.4)."""
    _positive("overfitting is told for", parameters=parameters)
    return float(5e3 * parameters**0.74)


def _positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{what} {name} above zero, not {value:g}")
