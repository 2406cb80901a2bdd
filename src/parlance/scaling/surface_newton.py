"""Damped Newton for the loss surface: many fits of L = E + A/N^alpha + B/D^beta at once, each to its local minimum.

    problem = SurfaceProblem.of(parameters, tokens, loss, delta=1e-3)
    result = minimise(problem, starts)         # starts (S, 5): a, alpha, b, beta, e

What is minimised is approach 3 of Hoffmann et al. 2022 (equation 3): with l_i = LSE(a - alpha u_i, b - beta v_i, e),
the logarithm of the surface at point i, the sum of w_i Huber_delta(r_i), where r_i = l_i - log L_i ("log"), or r_i =
exp(l_i) / L_i - 1 ("relative", which is linear in E, A and B and so what variable projection minimises). u and v are
log N and log D less their means, so that the five numbers are nearly independent.

Huber with a small delta is almost the sum of absolute values: second derivatives live on the few points that the
surface passes within delta of, and plain Gauss-Newton crawls. So the steps solve (H + damping M) s = -g with the exact
Hessian H and the weighted Gauss-Newton matrix M of iterated least squares, which is positive; a step that does not
lower the objective raises its damping. Everything is batched over S, so that thousands of fits cost a few matrix
operations each.

It finds local minima: where to start is `variable_projection.py`'s affair.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Residual = Literal["log", "relative"]

A, ALPHA, B, BETA, E = range(5)
"""Columns of the numbers that are fitted: logarithms of A and B at the middle of the data, the exponents, log E."""

EXPONENTS = (0.02, 2.0)
"""Range of alpha and beta; a fit that presses against an end stays on it, and the others are fitted on."""
ITERATIONS = 300
"""Most steps of one fit; a fit from a reasonable start takes 10 to 60."""
TOLERANCE = 1e-9
"""A fit is done where each gradient is this small a part of the sum of its absolute terms."""


@dataclass(frozen=True)
class SurfaceProblem:
    """The points of S fits; arrays (n,) are shared by all, arrays (S, n) are each fit's own."""

    u: Floats
    """log N - mean, (n,)."""
    v: Floats
    """log D - mean, (n,)."""
    y: Floats
    """log L, (n,) or (S, n)."""
    weights: Floats
    """How often a point counts, (n,) or (S, n)."""
    delta: float
    """Where Huber's loss turns from square to linear."""
    residual: Residual
    """What a residual is (see the module)."""
    free: NDArray[np.bool_]
    """Which of the five numbers are fitted, (5,)."""
    terms: NDArray[np.bool_]
    """Which of A/N^alpha, B/D^beta and E are there, (3,); what is not is zero."""
    centre: tuple[float, float]
    """Means of log N and log D."""

    @classmethod
    def of(cls, parameters: Floats, tokens: Floats, loss: Floats, *, delta: float, residual: Residual = "log") -> Self:
        """The problem of points (n,): sizes, tokens, losses, all above zero."""
        log_n, log_d = np.log(parameters), np.log(tokens)
        centre = float(log_n.mean()), float(log_d.mean())
        ones = np.ones_like(log_n)
        return cls(
            log_n - centre[0], log_d - centre[1], np.log(loss), ones, delta, residual,
            np.ones(5, dtype=np.bool_), np.ones(3, dtype=np.bool_), centre,
        )  # fmt: skip

    def holding(self, *, exponents: bool, terms: NDArray[np.bool_]) -> Self:
        """The same problem with the exponents held, or with terms left out."""
        a, b, e = (bool(term) for term in terms)
        free = np.array([a, a and not exponents, b, b and not exponents, e])
        return replace(self, free=free, terms=terms)

    def constants(self, theta: Floats) -> tuple[float, float, float, float, float]:
        """(E, A, B, alpha, beta) of one row (5,)."""
        a, alpha, b, beta, e = (float(value) for value in theta)
        has_a, has_b, has_e = (bool(term) for term in self.terms)
        return (
            float(np.exp(e)) if has_e else 0.0,
            float(np.exp(a + alpha * self.centre[0])) if has_a else 0.0,
            float(np.exp(b + beta * self.centre[1])) if has_b else 0.0,
            alpha,
            beta,
        )


@dataclass(frozen=True)
class SurfaceResult:
    """Where S fits ended."""

    theta: Floats
    """(S, 5)."""
    objective: Floats
    """(S,)."""
    converged: NDArray[np.bool_]
    """Whether the gradient vanished, (S,)."""
    iterations: int
    """Steps of the longest fit."""


def minimise(problem: SurfaceProblem, starts: Floats, iterations: int = ITERATIONS) -> SurfaceResult:
    """Descend from each row of `starts` (S, 5) to a local minimum; fits that are done wait for the others."""
    theta = _inside(np.array(starts, dtype=np.float64))
    damping = np.full(len(theta), 1e-2)
    objective = objectives(problem, theta)
    converged = np.zeros(len(theta), dtype=np.bool_)
    stuck = np.zeros(len(theta), dtype=np.bool_)
    step_number = 0
    while step_number < iterations and not (converged | stuck).all():
        step_number += 1
        todo = np.flatnonzero(~(converged | stuck))
        part = _part(problem, todo)
        gradient, hessian, weighted, scale = _derivatives(part, theta[todo])
        free = _movable(problem, theta[todo], gradient)
        small = ((np.abs(gradient) <= TOLERANCE * scale) | ~free).all(axis=1)
        small |= objective[todo] <= 1e-28 * np.broadcast_to(part.weights, (len(todo), len(part.u))).sum(axis=1)
        converged[todo[small]] = True
        trial = _inside(theta[todo] + _steps(gradient, hessian, weighted, damping[todo], free))
        value = objectives(part, trial)
        better = value < objective[todo]
        accepted = todo[better]
        theta[accepted], objective[accepted] = trial[better], value[better]
        damping[accepted] = np.maximum(damping[accepted] * 0.2, 1e-15)
        refused = todo[~better]
        damping[refused] = damping[refused] * 8.0
        stuck[refused[damping[refused] > 1e12]] = True  # rounding: no step helps any more
    # What rounding stops is at its minimum as well as it can be told, if the gradient has all but vanished.
    gradient, _, _, scale = _derivatives(problem, theta)
    free = _movable(problem, theta, gradient)
    converged |= stuck & ((np.abs(gradient) <= 1e3 * TOLERANCE * scale) | ~free).all(axis=1)
    return SurfaceResult(theta, objective, converged, step_number)


def _inside(theta: Floats) -> Floats:
    """Rows (S, 5) with their exponents in `EXPONENTS`."""
    theta[:, [ALPHA, BETA]] = np.clip(theta[:, [ALPHA, BETA]], *EXPONENTS)
    return theta


def _movable(problem: SurfaceProblem, theta: Floats, gradient: Floats) -> NDArray[np.bool_]:
    """Which numbers may move, (S, 5): those that are fitted, less exponents that the descent presses against an end."""
    free = np.broadcast_to(problem.free, theta.shape).copy()
    for column in (ALPHA, BETA):
        at, slope = theta[:, column], gradient[:, column]
        free[:, column] &= ~(((at <= EXPONENTS[0]) & (slope > 0)) | ((at >= EXPONENTS[1]) & (slope < 0)))
    return free


def objectives(problem: SurfaceProblem, theta: Floats) -> Floats:
    """Sum of w Huber(r) of each row of `theta` (S, 5): (S,); infinite where it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        _, log_surface = _terms(problem, theta)
        r = _residuals(problem, log_surface)
        size = np.abs(r)
        delta = problem.delta
        huber = np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))
        total = (problem.weights * huber).sum(axis=1)
    return np.where(np.isfinite(total), total, np.inf)


def _part(problem: SurfaceProblem, rows: NDArray[np.intp]) -> SurfaceProblem:
    """The problems of some rows."""
    y = problem.y[rows] if problem.y.ndim == 2 else problem.y
    weights = problem.weights[rows] if problem.weights.ndim == 2 else problem.weights
    return replace(problem, y=y, weights=weights)


def _terms(problem: SurfaceProblem, theta: Floats) -> tuple[Floats, Floats]:
    """Shares of the three terms (S, n, 3) and the logarithm of their sum (S, n)."""
    t = np.stack(
        [
            theta[:, A, None] - theta[:, ALPHA, None] * problem.u,
            theta[:, B, None] - theta[:, BETA, None] * problem.v,
            np.broadcast_to(theta[:, E, None], (len(theta), len(problem.u))),
        ],
        axis=2,
    )
    t = np.where(problem.terms, t, -np.inf)
    top = t.max(axis=2, keepdims=True)
    shares = np.exp(t - top)
    total = shares.sum(axis=2, keepdims=True)
    return shares / total, (top + np.log(total))[:, :, 0]


def _residuals(problem: SurfaceProblem, log_surface: Floats) -> Floats:
    r = log_surface - problem.y
    return r if problem.residual == "log" else np.expm1(r)


def _derivatives(problem: SurfaceProblem, theta: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Gradient (S, 5), Hessian (S, 5, 5), weighted Gauss-Newton matrix (S, 5, 5), and the sums of absolute terms of the
    gradient (S, 5)."""
    shares, log_surface = _terms(problem, theta)
    r = _residuals(problem, log_surface)
    # Rows of x: derivative of each term's logarithm by the five numbers.
    n = len(problem.u)
    x = np.zeros((n, 3, 5))
    x[:, 0, A], x[:, 0, ALPHA] = 1.0, -problem.u
    x[:, 1, B], x[:, 1, BETA] = 1.0, -problem.v
    x[:, 2, E] = 1.0
    g = np.einsum("snk,nkp->snp", shares, x)  # gradient of the logarithm of the surface
    slope = np.clip(r, -problem.delta, problem.delta)
    inside = (np.abs(r) <= problem.delta).astype(np.float64)
    reweighted = problem.delta / np.maximum(np.abs(r), problem.delta)
    stretch = np.ones_like(r) if problem.residual == "log" else r + 1.0  # derivative of r by the logarithm
    w = np.broadcast_to(problem.weights, r.shape)
    first = w * slope * stretch
    gradient = np.einsum("sn,snp->sp", first, g)
    scale = np.einsum("sn,snp->sp", np.abs(first), np.abs(g))
    curved = first if problem.residual == "relative" else np.zeros_like(first)
    # Second derivative of the logarithm: sum of share x x^T less g g^T.
    outer = w * inside * stretch**2 + curved - first
    hessian = np.einsum("sn,snp,snq->spq", outer, g, g, optimize=True)
    hessian += _share_squares(first[:, :, None] * shares, problem)
    weighted = np.einsum("sn,snp,snq->spq", w * reweighted * stretch**2, g, g, optimize=True)
    return gradient, hessian, weighted, scale


def _share_squares(factors: Floats, problem: SurfaceProblem) -> Floats:
    """Sum over points and terms of factor x x^T: (S, 5, 5); x has two entries for a power, one for the constant."""
    total = np.zeros((len(factors), 5, 5))
    for term, (constant, exponent, at) in enumerate(((A, ALPHA, problem.u), (B, BETA, problem.v))):
        f = factors[:, :, term]
        total[:, constant, constant] = f.sum(axis=1)
        total[:, constant, exponent] = total[:, exponent, constant] = -(f @ at)
        total[:, exponent, exponent] = f @ at**2
    total[:, E, E] = factors[:, :, 2].sum(axis=1)
    return total


def _steps(gradient: Floats, hessian: Floats, weighted: Floats, damping: Floats, free: NDArray[np.bool_]) -> Floats:
    """Solutions of (H + damping M) s = -g over the free numbers (S, 5); the others stay."""
    diagonal = np.einsum("spp->sp", weighted)
    floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    metric = weighted + np.einsum("sp,pq->spq", diagonal + floor, np.eye(5))
    matrix = hessian + damping[:, None, None] * metric
    held = ~free
    matrix = np.where(held[:, :, None] | held[:, None, :], held[:, :, None] * np.eye(5), matrix)
    right = np.where(free, -gradient, 0.0)
    size = np.sqrt(np.abs(np.einsum("spp->sp", matrix)) + 1e-300)
    scaled = matrix / (size[:, :, None] * size[:, None, :])
    try:
        steps = np.linalg.solve(scaled, (right / size)[:, :, None])[:, :, 0] / size
    except np.linalg.LinAlgError:
        steps = (np.linalg.pinv(scaled) @ (right / size)[:, :, None])[:, :, 0] / size
    # A step is at most a doubling of a term or 0.3 of an exponent: far from the minimum the model is off.
    limits = np.array([1.0, 0.3, 1.0, 0.3, 1.0])
    factor = np.minimum(1.0, 1.0 / np.maximum((np.abs(steps) / limits).max(axis=1), 1e-300))
    result: Floats = steps * factor[:, None]
    return result
