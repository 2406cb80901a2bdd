"""Predict the loss of a long training run from two or three short ones of the same recipe at growing budgets.

The law is a straight line in log-log, L(x) = a x^-b, or with a constant below which the loss cannot fall,
L(x) = e + a x^-b; x is any budget (tokens, seconds). Each pilot must have finished its own learning-rate schedule: the
losses *along* one run are not points of this law.

    law = fit_power_law(x=[15, 60], loss=[2.9, 2.4])
    prediction = law.predict_with_interval(480)     # .value, .low, .high
    if law.status != "fitted": print(law.explanation())

What the interval means. Two things are counted, as relative standard deviations of the loss, and added in quadrature:
the noise of the points carried through the fit (ordinary prediction variance of least squares; the noise is the
scatter around the line, but never less than the stated `noise`, for two points show no scatter), and the error of
going on with the same exponent beyond the largest pilot: the exponent there is taken to be b (1 +- `exponent_error`),
which moves log L by b * exponent_error * ln(x / x_max). The ends are 1.96 such deviations away: 95 % *if* the stated
noise and exponent error hold. They are stated priors, not measurements. 0.2 was chosen because it covers at least 95 %
of laws e + a x^-b with b from 0.15 to 0.6 and e up to 80 % of the final loss (the test simulates them); a straight
line through such points promises too much, so expect the truth in the upper half.

Sources: power laws of the loss, Kaplan et al. 2020 (arXiv 2001.08361); the constant, Hoffmann et al. 2022
(arXiv 2203.15556); variable projection, Golub and Pereyra 1973 (for fixed b the model is linear in e and a).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError

Floats = NDArray[np.float64]
Status = Literal["fitted", "not falling", "floor reached", "exponent at bound"]

EXPONENTS = (1e-3, 3.0)
"""Range searched for b in the form with a constant."""


@dataclass(frozen=True)
class Prediction:
    """A predicted loss and the ends of its stated interval (see the module)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = e + a x^-b and how well it fits."""

    a: float
    """Loss above `e` at x = 1."""
    b: float
    """Exponent; positive where the loss falls with x."""
    e: float
    """Constant that no budget removes; 0 in the straight-line form."""
    residual: float
    """Root mean square of the relative errors at the points; 0 says nothing where `exact` is true."""
    status: Status
    """"fitted", or what is doubtful: see `explanation`."""
    offset: bool
    """Whether e was fitted."""
    x: tuple[float, ...]
    """Budgets of the points."""
    loss: tuple[float, ...]
    """Losses of the points."""

    @property
    def free_parameters(self) -> int:
        """Two, or three where e was fitted and is not held at its floor."""
        return 3 if self.offset and self.status != "floor reached" else 2

    @property
    def exact(self) -> bool:
        """Whether there are no more points than free parameters, so that the residual is no evidence of a good fit."""
        return len(self.x) <= self.free_parameters

    def predict(self, x: float) -> float:
        """The loss at budget `x` > 0."""
        return float(self.e + self.a * x**-self.b)

    def predict_with_interval(self, x: float, *, exponent_error: float = 0.2, noise: float = 0.01) -> Prediction:
        """The loss at `x` with the interval described at the top of the module.

        `exponent_error`: relative standard deviation assumed of the exponent beyond the pilots.
        `noise`: least relative standard deviation of one pilot's loss (seed, validation sample).
        """
        value = self.predict(x)
        freedom = len(self.x) - self.free_parameters
        scatter = self.residual * math.sqrt(len(self.x) / freedom) if freedom > 0 else 0.0
        sigma = max(scatter, noise)
        gradients = np.array([self._gradient(point) for point in self.x])
        here = self._gradient(x)
        # pinv and not inv: an exponent near 0 makes the columns of a and e parallel.
        covariance = np.linalg.pinv(gradients.T @ gradients)
        fit_variance = sigma**2 * (1.0 + float(here @ covariance @ here))
        beyond = max(0.0, math.log(x / max(self.x)))
        falling_share = (value - self.e) / value
        drift = exponent_error * abs(self.b) * beyond * falling_share
        deviation = 1.96 * math.sqrt(fit_variance + drift**2)
        return Prediction(value, max(self.e, value * math.exp(-deviation)), value * math.exp(deviation))

    def explanation(self) -> str:
        """One sentence on the status, for a log or a report."""
        return {
            "fitted": (
                f"{len(self.x)} points for {self.free_parameters} parameters: the fit is exact by construction"
                if self.exact
                else f"relative residual {self.residual:.2%} over {len(self.x)} points"
            ),
            "not falling": "the loss does not fall from pilot to pilot, so a power law predicts nothing useful",
            "floor reached": f"the constant was held at its floor {self.e:g}; the points ask for a lower one",
            "exponent at bound": f"the exponent stands at the end of its range {EXPONENTS}; do not extrapolate",
        }[self.status]

    def _gradient(self, x: float) -> Floats:
        """Derivative of log L by (log a, b) and, where e is free, by e."""
        value = self.predict(x)
        share = (value - self.e) / value
        terms = [share, -share * math.log(x)]
        if self.free_parameters == 3:
            terms.append(1.0 / value)
        return np.array(terms)


def fit_power_law(x: Sequence[float], loss: Sequence[float], *, offset: bool = False, floor: float = 0.0) -> PowerLaw:
    """Fit L = a x^-b (straight line in log-log), or with `offset` L = e + a x^-b with e >= `floor`.

    The straight line minimises squared errors of log L; the offset form squared relative errors of L. Raises UserError
    for fewer than two different budgets (three with `offset`) and for values that are not positive.
    """
    budgets, losses = np.asarray(x, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if budgets.ndim != 1 or budgets.shape != losses.shape:
        raise UserError(f"a power law needs one loss for each budget, not {losses.size} for {budgets.size}")
    if not (np.isfinite(budgets).all() and np.isfinite(losses).all() and (budgets > 0).all() and (losses > 0).all()):
        raise UserError("a power law needs budgets and losses that are finite and above zero")
    needed = 3 if offset else 2
    if np.unique(budgets).size < needed:
        raise UserError(f"this power law needs {needed} pilot runs of different budgets, not {np.unique(budgets).size}")
    if not 0.0 <= floor < losses.min():
        raise UserError(f"the floor of the loss must lie between 0 and the lowest loss {losses.min():g}, not {floor:g}")
    a, b, e, status = _offset_form(budgets, losses, floor) if offset else _straight_line(budgets, losses)
    fitted = e + a * budgets**-b
    relative = (losses - fitted) / losses if offset else np.log(losses / fitted)
    residual = float(np.sqrt(np.mean(relative**2)))
    return PowerLaw(a, b, e, residual, status, offset, tuple(budgets.tolist()), tuple(losses.tolist()))


def training_flops(parameters: float, tokens: float, layers: int, context: int, width: int) -> float:
    """Floating-point operations to train a Transformer: tokens * (6 N + 12 L T d).

    `parameters` N counts the weights of matrix products (the output layer, but not an embedding that is only looked
    up). The second term is the attention over full windows of `context` T, without the saving of a causal kernel; an
    (m, k) by (k, n) product counts 2mkn, and the backward pass twice the forward one (PaLM, appendix B).
    """
    return tokens * (6.0 * parameters + 12.0 * layers * context * width)


def _straight_line(x: Floats, loss: Floats) -> tuple[float, float, float, Status]:
    z, y = np.log(x), np.log(loss)
    slope = float(((z - z.mean()) * (y - y.mean())).sum() / ((z - z.mean()) ** 2).sum())
    status: Status = "fitted" if slope < 0 else "not falling"
    return math.exp(y.mean() - slope * z.mean()), -slope, 0.0, status


def _offset_form(x: Floats, loss: Floats, floor: float) -> tuple[float, float, float, Status]:
    """Least squares over (e, a) for each b, then over b: a grid, refined by golden sections."""
    unit = float(np.exp(np.log(x).mean()))  # keeps x^-b near 1 for every b
    scaled = x / unit

    def error(log_b: float) -> float:
        return _linear_part(scaled, loss, math.exp(log_b), floor)[2]

    grid = np.linspace(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), 200)
    best = int(np.argmin([error(point) for point in grid]))
    log_b = _golden(error, float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)]))
    b = math.exp(log_b)
    e, scale, _ = _linear_part(scaled, loss, b, floor)
    status: Status = "fitted"
    if scale <= 0.0:
        status = "not falling"
    elif log_b - grid[0] < 1e-6 or grid[-1] - log_b < 1e-6:
        status = "exponent at bound"
    elif e <= floor:
        status = "floor reached"
    return scale * unit**b, b, e, status


def _linear_part(x: Floats, loss: Floats, b: float, floor: float) -> tuple[float, float, float]:
    """(e, a, squared relative error) of the best e >= floor, a >= 0 for a fixed exponent.

    A convex problem in two variables: the free solution where it is feasible, else the better of its two edges.
    """
    design = np.stack([np.ones_like(x), x**-b], axis=1) / loss[:, None]

    def squared(e: float, a: float) -> float:
        return float(((design @ np.array([e, a]) - 1.0) ** 2).sum())

    e, a = (float(value) for value in np.linalg.lstsq(design, np.ones_like(x), rcond=None)[0])
    if e >= floor and a >= 0:
        return e, a, squared(e, a)
    decay, constant = design[:, 1], design[:, 0]
    at_floor = max(0.0, float(decay @ (1.0 - floor * constant) / (decay @ decay)))
    flat = max(floor, float(constant.sum() / (constant @ constant)))
    return min(
        ((floor, at_floor, squared(floor, at_floor)), (flat, 0.0, squared(flat, 0.0))), key=lambda option: option[2]
    )


def _golden(function: Callable[[float], float], low: float, high: float) -> float:
    """Minimum of a unimodal function by golden sections, to about 1e-12 of the bracket."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(60):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2.0
