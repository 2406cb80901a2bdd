"""Variable projection: for given exponents, L = E + A/N^alpha + B/D^beta is linear, so two numbers are searched, not
five.

    search = project(parameters, tokens, loss, delta=1e-3)
    search.starts, search.terms

For each pair (alpha, beta) on a grid, E, A and B >= 0 are the exact minimum of sum w r^2 with the relative residual r =
(E + A/N^alpha + B/D^beta) / L - 1 (non-negative least squares in three unknowns, all eight cases of which are at zero
tried), reweighted ten times towards Huber's loss. The grid then narrows around its best point. There are no starting
values to guess and nothing can diverge; which of E, A, B stand at zero comes out exactly.

The method: Golub and Pereyra 1973; for scaling laws Czech et al. 2026 (arXiv 2603.22339), who minimise (L - fit) in
nats where this minimises it as a share of L, which is the logarithmic residual of Hoffmann et al. to first order.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parlance.scaling.surface_newton import EXPONENTS, Floats

GRID = 20
"""Points of the first grid in each exponent, evenly spaced in the logarithm."""
ROUNDS = 10
"""Reweightings towards Huber's loss."""


@dataclass(frozen=True)
class Projection:
    """The best point of a search, and the grid's best points to descend from."""

    constants: tuple[float, float, float, float, float]
    """(E, A, B, alpha, beta)."""
    objective: float
    """Sum of Huber(r) there."""
    terms: NDArray[np.bool_]
    """Which of A, B, E are above zero, (3,)."""
    starts: Floats
    """(S, 5) rows (E, A, B, alpha, beta), the best first."""


def project(
    parameters: Floats,
    tokens: Floats,
    loss: Floats,
    *,
    delta: float,
    exponents: tuple[float, float] | None = None,
    starts: int = 8,
    narrowings: int = 8,
) -> Projection:
    """Search the exponents, or take the given ones, for points (n,) above zero."""
    alphas = betas = np.geomspace(*EXPONENTS, GRID)
    if exponents is not None:
        alphas, betas = np.array([exponents[0]]), np.array([exponents[1]])
        narrowings = 0
    rows, values = _grid(parameters, tokens, loss, alphas, betas, delta)
    order = np.argsort(values, kind="stable")[:starts]
    best, best_value, kept = rows[order[0]], float(values[order[0]]), rows[order]
    ratio = alphas[1] / alphas[0] if len(alphas) > 1 else 1.0
    for _ in range(narrowings):
        alphas, betas = (np.clip(best[3 + i] * np.geomspace(1 / ratio, ratio, 9), *EXPONENTS) for i in range(2))
        rows, values = _grid(parameters, tokens, loss, alphas, betas, delta)
        index = int(np.argmin(values))
        if values[index] < best_value:
            best, best_value = rows[index], float(values[index])
        ratio **= 0.3
    e, a, b, alpha, beta = (float(value) for value in best)
    return Projection(
        (e, a, b, alpha, beta), best_value, np.array([a > 0, b > 0, e > 0]), np.vstack([best[None], kept])
    )


def _grid(
    parameters: Floats, tokens: Floats, loss: Floats, alphas: Floats, betas: Floats, delta: float
) -> tuple[Floats, Floats]:
    """(E, A, B, alpha, beta) and Huber objective at every pair of exponents: (G, 5), (G,)."""
    alpha, beta = (part.ravel() for part in np.meshgrid(alphas, betas, indexing="ij"))
    # Powers of what is divided by the geometric mean stay near one; the means come back into A and B at the end.
    centre_n, centre_d = (np.exp(np.log(x).mean()) for x in (parameters, tokens))
    design = np.stack(
        [
            np.broadcast_to(1.0 / loss, (len(alpha), len(loss))),
            (parameters / centre_n) ** -alpha[:, None] / loss,
            (tokens / centre_d) ** -beta[:, None] / loss,
        ],
        axis=2,
    )  # (G, n, 3)
    weights = np.ones((len(alpha), len(loss)))
    for _ in range(ROUNDS):
        linear = non_negative(design, weights)
        residual = np.abs(np.einsum("gnk,gk->gn", design, linear) - 1.0)
        weights = delta / np.maximum(residual, delta)
    huber = np.where(residual <= delta, 0.5 * residual**2, delta * (residual - 0.5 * delta)).sum(axis=1)
    rows = np.stack([linear[:, 0], linear[:, 1] * centre_n**alpha, linear[:, 2] * centre_d**beta, alpha, beta], axis=1)
    return rows, huber


def non_negative(design: Floats, weights: Floats) -> Floats:
    """The c >= 0 that minimise sum w (X c - 1)^2 for every problem: X (G, n, 3), w (G, n), c (G, 3).

    Tries each of the seven sets of unknowns that are not at zero; the best feasible one is the minimum, for the problem
    is convex.
    """
    squared = np.einsum("gn,gni,gnj->gij", weights, design, design, optimize=True)
    right = np.einsum("gn,gni->gi", weights, design)
    best = np.zeros((len(design), 3))
    lowest = np.zeros(len(design))  # objective less the constant: c S c - 2 c r
    for mask in range(1, 8):
        free = [index for index in range(3) if mask >> index & 1]
        part = squared[np.ix_(range(len(design)), free, free)]
        scale = np.sqrt(np.einsum("gii->gi", part))
        normal = part / (scale[:, :, None] * scale[:, None, :])
        # A trace of a ridge keeps parallel columns (an exponent near zero beside the constant) solvable.
        solution = np.linalg.solve(normal + 1e-14 * np.eye(len(free)), (right[:, free] / scale)[:, :, None])[:, :, 0]
        solution = solution / scale
        value = np.einsum("gi,gij,gj->g", solution, part, solution) - 2.0 * (solution * right[:, free]).sum(axis=1)
        better = (solution >= 0).all(axis=1) & (value < lowest)
        lowest = np.where(better, value, lowest)
        full = np.zeros_like(best)
        full[:, free] = solution
        best = np.where(better[:, None], full, best)
    return best
