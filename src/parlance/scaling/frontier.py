"""Best sizes for compute budgets, read off the runs themselves: approaches 1 and 2 of Hoffmann et al. 2022.

    frontier = fit_isoflop(runs)                # runs grouped by budget, a parabola in log N each
    frontier = fit_envelope(curves)             # training curves of several sizes, their lower envelope
    frontier.optimum(1e21), frontier.parameter_exponent, frontier.problems

Both give points (budget, best N), and a power law N = k C^a through them; D = C / (6 N).

What approach 2 does not say: a parabola is a Taylor approximation, so a grid that is not centred on the minimum, or is
wide, shifts the minimum even without noise (Czech et al. 2026, arXiv 2603.22339); `loss_surface.py` has no such bias.
What approach 1 does not say: points along one training curve have not finished their learning-rate schedule; take
curves of runs of several lengths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.scaling.laws import Optimum
from parlance.scaling.power_law import fit_power_law

Floats = NDArray[np.float64]

BUDGET_TOLERANCE = 0.1
"""Runs whose budgets differ by less than this share belong to one parabola."""
ENVELOPE_BUDGETS = 1500
"""Budgets at which the envelope is read off, evenly spaced in the logarithm (Hoffmann et al. 2022, section 3.1)."""


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    parameters: float
    """N."""
    tokens: float
    """D."""
    loss: float
    """Final loss, nats per token."""
    flops: float | None = None
    """Compute; None: 6 N D."""

    @property
    def budget(self) -> float:
        """The compute of this run."""
        return 6.0 * self.parameters * self.tokens if self.flops is None else self.flops


@dataclass(frozen=True)
class Curve:
    """The loss of one training run as it went on."""

    parameters: float
    """N."""
    tokens: tuple[float, ...]
    """Tokens seen, growing."""
    loss: tuple[float, ...]
    """Loss there, nats per token; smooth it if it is noisy."""


@dataclass(frozen=True)
class Parabola:
    """loss = curvature (log N - log N_best)^2 + best loss at one budget."""

    flops: float
    """The budget."""
    parameters: float
    """Best N."""
    loss: float
    """Loss there."""
    curvature: float
    """Above zero where there is a minimum."""
    runs: tuple[Run, ...]
    """What it was fitted to, smallest first."""
    status: Literal["fitted", "minimum outside the sizes", "no minimum"]
    """Whether the best size lies within the sizes that were run."""


@dataclass(frozen=True)
class Frontier:
    """Best sizes and losses at several budgets, and the power law through the sizes."""

    points: tuple[tuple[float, float, float], ...]
    """(budget, best N, loss there)."""
    coefficient: float
    """k of N = k C^a."""
    parameter_exponent: float
    """a; the exponent of the tokens is 1 - a."""
    residual: float
    """Root mean square of the errors of log N; 0 says nothing of two points."""
    problems: tuple[str, ...]
    """What is doubtful, a sentence each; empty: nothing was found."""
    parabolas: tuple[Parabola, ...] = ()
    """Approach 2: the parabola of each budget, those that were left out too."""

    def parameters(self, flops: float) -> float:
        """The best N for a budget."""
        return self.coefficient * float(flops**self.parameter_exponent)

    def optimum(self, flops: float) -> Optimum:
        """The best N and D for a budget; the loss by a power law of C, with a constant where four budgets allow it."""
        parameters = self.parameters(flops)
        budgets, _, losses = zip(*self.points, strict=True)
        law = fit_power_law(budgets, losses, offset=len(set(budgets)) >= 4)
        return Optimum(parameters, flops / (6.0 * parameters), law.predict(flops))


def fit_isoflop(runs: Sequence[Run]) -> Frontier:
    """Approach 2: runs of a few budgets each divided in several ways; a parabola per budget, a line through the minima.

    Budgets with fewer than three sizes, or whose parabola has its minimum outside the sizes, are left out and named in
    `problems`. Raises UserError where fewer than two budgets remain, or a number is not finite and above zero.
    """
    for number, run in enumerate(runs, start=1):
        _check(f"run {number}", parameters=run.parameters, tokens=run.tokens, loss=run.loss, budget=run.budget)
    parabolas, problems = [], []
    for group in _budgets(runs):
        budget = math.exp(sum(math.log(run.budget) for run in group) / len(group))
        if len({run.parameters for run in group}) < 3:
            problems.append(f"the budget {budget:.3g} was run with {len(group)} sizes; a parabola needs 3")
            continue
        parabola = _parabola(budget, group)
        parabolas.append(parabola)
        if parabola.status != "fitted":
            problems.append(f"the budget {budget:.3g} is left out: {parabola.status}")
    points = [(p.flops, p.parameters, p.loss) for p in parabolas if p.status == "fitted"]
    return _frontier(points, problems, tuple(parabolas), "budgets with a parabola whose minimum is inside its sizes")


def fit_envelope(curves: Sequence[Curve], budgets: int = ENVELOPE_BUDGETS) -> Frontier:
    """Approach 1: at each of many budgets, the training curve of lowest loss (interpolated in log C, log L) and its
    size.

    Only budgets that two curves or more reach count, and the smallest and largest size are left out at the ends where
    no curve beyond them could have won. Raises UserError where fewer than two sizes win anywhere.
    """
    for number, curve in enumerate(curves, start=1):
        _check(f"curve {number}", parameters=curve.parameters)
        if len(curve.tokens) != len(curve.loss) or len(curve.tokens) < 2:
            raise UserError(f"curve {number}: it needs one loss for each of two numbers of tokens or more")
        for tokens, loss in zip(curve.tokens, curve.loss, strict=True):
            _check(f"curve {number}", tokens=tokens, loss=loss)
        if any(after <= before for before, after in zip(curve.tokens, curve.tokens[1:], strict=False)):
            raise UserError(f"curve {number}: its numbers of tokens must grow")
    if len({curve.parameters for curve in curves}) < 2:
        raise UserError("an envelope needs training curves of two model sizes or more")
    logs = [(np.log(6.0 * curve.parameters * np.array(curve.tokens)), np.log(np.array(curve.loss))) for curve in curves]
    grid = np.linspace(min(x[0] for x, _ in logs), max(x[-1] for x, _ in logs), budgets)
    losses = np.stack([np.interp(grid, x, y, left=np.inf, right=np.inf) for x, y in logs])
    shared = np.isfinite(losses).sum(axis=0) >= 2
    winners = losses.argmin(axis=0)
    sizes = np.array([curve.parameters for curve in curves])[winners]
    # The smallest size wins all budgets below its own, the largest all above: those say nothing of the best size.
    inner = shared & (sizes > sizes.min()) & (sizes < sizes.max()) if len(np.unique(sizes[shared])) > 3 else shared
    chosen = np.flatnonzero(inner)
    problems = [] if len(np.unique(sizes[chosen])) > 2 else ["only two sizes win at any budget: run more sizes"]
    points = [(float(np.exp(grid[i])), float(sizes[i]), float(np.exp(losses[winners[i], i]))) for i in chosen.tolist()]
    return _frontier(points, problems, (), "sizes that win at some budget")


def _budgets(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs in groups of equal budget, the smallest budget first, sizes growing."""
    groups: list[list[Run]] = []
    for run in sorted(runs, key=lambda run: (run.budget, run.parameters)):
        if groups and run.budget <= groups[-1][0].budget * (1.0 + BUDGET_TOLERANCE):
            groups[-1].append(run)
        else:
            groups.append([run])
    return [sorted(group, key=lambda run: run.parameters) for group in groups]


def _parabola(budget: float, runs: Sequence[Run]) -> Parabola:
    x = np.log([run.parameters for run in runs])
    y = np.array([run.loss for run in runs])
    middle = float(x.mean())
    second, first, zeroth = (float(value) for value in np.polyfit(x - middle, y, 2))
    if second <= 1e-12:
        lowest = min(runs, key=lambda run: run.loss)
        return Parabola(budget, lowest.parameters, lowest.loss, second, tuple(runs), "no minimum")
    best = -first / (2.0 * second)
    inside = x[0] <= best + middle <= x[-1]
    loss = zeroth - first**2 / (4.0 * second)
    return Parabola(
        budget, math.exp(best + middle), loss, second, tuple(runs), "fitted" if inside else "minimum outside the sizes"
    )


def _frontier(
    points: list[tuple[float, float, float]], problems: list[str], parabolas: tuple[Parabola, ...], what: str
) -> Frontier:
    if len({size for _, size, _ in points}) < 2 or len({budget for budget, _, _ in points}) < 2:
        reasons = f" ({'; '.join(problems)})" if problems else ""
        raise UserError(f"a power law of the best size needs two {what}{reasons}")
    budgets, sizes, _ = (np.array(column) for column in zip(*points, strict=True))
    exponent, level = _line(np.log(budgets), np.log(sizes))
    errors = np.log(sizes) - level - exponent * np.log(budgets)
    residual = float(np.sqrt(np.mean(errors**2)))
    return Frontier(tuple(points), math.exp(level), exponent, residual, tuple(problems), parabolas)


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and level of the least-squares line."""
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return slope, float(y.mean() - slope * x.mean())


def _check(where: str, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{where}: {name} must be finite and above zero, not {value:g}")
