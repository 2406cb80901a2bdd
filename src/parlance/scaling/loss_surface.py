"""Fit L(N, D) = E + A/N^alpha + B/D^beta to finished training runs, and say how far to trust it.

    surface = fit_loss_surface(parameters, tokens, loss, bootstrap=200)
    surface.predict(7e9, 1e12), surface.interval(7e9, 1e12), surface.optimum(1e21)
    if surface.status != "converged": print(surface.explanation())

Two ways, same surface:

- "huber", approach 3 of Hoffmann et al. 2022: Huber's loss of the logarithmic residual, from many starts;
- "projection", variable projection (`variable_projection.py`): Huber's loss of the relative residual, no starts; a
  constant that the data do not ask for is zero, exactly.

Each run must have finished its own learning-rate schedule. What fits well inside the range of the data may still be
wrong outside: the intervals hold what resampling shows, which is not all (another recipe, another corpus, a bend in the
law).

Bootstrap: "points" draws runs with replacement (Besiroglu et al. 2024; for 30 runs or more), "noise" draws new losses
around the surface with the scatter of the residuals, but never less than `noise` (Porian et al. 2024; for few runs,
whose residuals say little). The interval of a prediction adds the scatter of one run to what the refits show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.scaling.frontier import Run
from parlance.scaling.laws import Optimum, ParametricLaw
from parlance.scaling.power_law import Prediction
from parlance.scaling.surface_newton import ALPHA, BETA, EXPONENTS, Floats, SurfaceProblem, SurfaceResult, minimise
from parlance.scaling.variable_projection import Projection, project

Method = Literal["huber", "projection"]
Resampling = Literal["points", "noise"]
Status = Literal[
    "converged", "max iterations", "exponent at bound", "clamped to zero", "not determined", "does not fall"
]
NO_DIVISION: tuple[Status, ...] = ("not determined", "does not fall", "exponent at bound")
"""Statuses of surfaces that predict between their runs but divide no compute."""

HUBER_DELTA = 1e-3
"""Hoffmann et al. 2022: residuals of the logarithm above a thousandth count linearly."""
MANY = 30
"""Runs from which on drawing them with replacement leaves enough different ones."""
EXPONENT_ERROR = 0.2
"""Relative standard deviation that refits take exponents to have which are held and not fitted: a prior, not a
measurement; published exponents of text lie between 0.28 and 0.37, of other data between 0.2 and 0.5."""
RUN_NOISE = 0.003
"""Relative standard deviation of a final loss between seeds that a table of runs is taken to have at least; Porian et
al. 2024 find 0.0007 at a loss of 3 to 0.007 at a loss of 7."""
WEAK = 1e-5
"""A direction in which the surface moves by less than this share of the strongest is one that the runs do not
determine."""


FALL = 2.0
"""A term that falls by less than this many residuals over all runs is not told from noise."""


@dataclass(frozen=True)
class OptimumInterval:
    """How far the refits of a surface agree on the best division of a budget."""

    parameters: tuple[float, float]
    """95 % of the best N."""
    tokens: tuple[float, float]
    """95 % of the best D."""
    without: int
    """Refits that have no best division and are left out."""
    refits: int
    """All of them."""


@dataclass(frozen=True)
class LossSurface:
    """A fitted law, the runs it was fitted to, and its refits."""

    law: ParametricLaw
    """The constants."""
    method: Method
    """How it was fitted."""
    objective: float
    """Sum of Huber's loss over the runs."""
    status: Status
    """"converged", or what is doubtful: see `explanation`."""
    parameters: tuple[float, ...]
    """N of the runs."""
    tokens: tuple[float, ...]
    """D of the runs."""
    loss: tuple[float, ...]
    """Losses of the runs, nats per token."""
    free_parameters: int
    """Numbers that were fitted: 5, less the exponents that were given and the constants at zero."""
    noise: float
    """Least relative standard deviation of one run's loss that intervals assume."""
    refits: tuple[ParametricLaw, ...]
    """Laws of the resampled runs; none without bootstrap."""

    def predict(self, parameters: float, tokens: float) -> float:
        """The loss of N parameters after D tokens."""
        return self.law.predict(parameters, tokens)

    def optimum(self, flops: float) -> Optimum:
        """The N and D of lowest loss with 6 N D = `flops`. Raises UserError where the runs do not tell (`divides`)."""
        self._needs_division()
        return self.law.optimum(flops)

    def tokens_for(self, parameters: float) -> float:
        """The D for which `parameters` is the best size. Raises UserError as `optimum` does."""
        self._needs_division()
        return self.law.tokens_for(parameters)

    @property
    def divides(self) -> bool:
        """Whether the runs tell how to divide compute."""
        law = self.law
        return self.status not in NO_DIVISION and min(law.a, law.b, law.alpha, law.beta) > 0

    @property
    def scatter(self) -> float:
        """Root mean square of the relative residuals, for the numbers fitted; 0 with no run to spare."""
        spare = len(self.loss) - self.free_parameters
        if spare <= 0:
            return 0.0
        residuals = [
            math.log(self.predict(n, d) / loss)
            for n, d, loss in zip(self.parameters, self.tokens, self.loss, strict=True)
        ]
        return math.sqrt(sum(r * r for r in residuals) / spare)

    def interval(self, parameters: float, tokens: float) -> Prediction:
        """The loss of one new run at N and D with its 95 % interval: refits and the scatter of a run, in quadrature.

        Raises UserError where the surface was fitted without bootstrap.
        """
        value = self.predict(parameters, tokens)
        refitted = np.log([law.predict(parameters, tokens) / value for law in self._needed_refits()])
        low, high = (float(end) for end in np.quantile(refitted, (0.025, 0.975)))
        run = 1.96 * max(self.scatter, self.noise)
        return Prediction(
            value,
            value * math.exp(-math.hypot(min(low, 0.0), run)),
            value * math.exp(math.hypot(max(high, 0.0), run)),
        )

    def constant_intervals(self) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of e, a, b, alpha and beta. Raises UserError without bootstrap."""
        refits = self._needed_refits()
        ends = {}
        for name in ("e", "a", "b", "alpha", "beta"):
            low, high = np.quantile([getattr(law, name) for law in refits], (0.025, 0.975))
            ends[name] = (float(low), float(high))
        return ends

    def optimum_interval(self, flops: float) -> OptimumInterval:
        """95 % bootstrap intervals of the best N and D of a budget. Raises UserError without bootstrap, and as
        `optimum` does.
        """
        self._needs_division()
        refits = self._needed_refits()
        low, high = EXPONENTS[0] * 1.001, EXPONENTS[1] * 0.999
        falling = [
            law for law in refits if min(law.a, law.b) > 0 and all(low < x < high for x in (law.alpha, law.beta))
        ]
        if not falling:
            raise UserError("none of the resampled fits has a best division of compute: measure more sizes and tokens")
        found = [law.optimum(flops) for law in falling]
        ends = []
        for values in ([best.parameters for best in found], [best.tokens for best in found]):
            first, last = np.quantile(values, (0.025, 0.975))
            ends.append((float(first), float(last)))
        return OptimumInterval(ends[0], ends[1], without=len(refits) - len(falling), refits=len(refits))

    def explanation(self) -> str:
        """One sentence on the status, for a log or a report."""
        law = self.law
        rising = " or ".join(_rising(law, *map(np.asarray, (self.parameters, self.tokens, self.loss))))
        zero = " and ".join(name for name, value in (("E", law.e), ("A", law.a), ("B", law.b)) if value == 0.0)
        return {
            "converged": (
                f"{len(self.loss)} runs for {self.free_parameters} numbers: the fit is exact by construction"
                if len(self.loss) <= self.free_parameters
                else f"relative residual {self.scatter:.2%} over {len(self.loss)} runs"
            ),
            "max iterations": "the search stopped before its minimum; the constants are not final",
            "exponent at bound": (
                f"an exponent stands at the end of its range {EXPONENTS}: alpha {law.alpha:.3g}, beta {law.beta:.3g}; "
                "do not extrapolate"
            ),
            "clamped to zero": f"the runs ask for no {zero or 'E'} (held at zero): they do not span enough to show it",
            "does not fall": f"the loss of these runs does not fall with {rising}: there is nothing to extrapolate",
            "not determined": "the runs do not determine all constants: vary parameters and tokens independently",
        }[self.status]

    def _needs_division(self) -> None:
        if not self.divides:
            raise UserError(f"these runs do not tell how to divide compute ({self.status}): {self.explanation()}")

    def _needed_refits(self) -> tuple[ParametricLaw, ...]:
        if not self.refits:
            raise UserError("an interval needs refits: fit the loss surface with bootstrap=200 or more")
        return self.refits


def fit_loss_surface(
    parameters: Sequence[float],
    tokens: Sequence[float],
    loss: Sequence[float],
    *,
    method: Method = "huber",
    delta: float = HUBER_DELTA,
    exponents: tuple[float, float] | None = None,
    bootstrap: int = 0,
    resampling: Resampling = "points",
    noise: float = 0.0,
    exponent_error: float = EXPONENT_ERROR,
    seed: int = 0,
) -> LossSurface:
    """Fit the surface to runs of `parameters` N, `tokens` D and final `loss` (nats per token), one each.

    `exponents`: (alpha, beta) held fixed, which leaves three numbers to fit; None: fitted too. `bootstrap`: refits for
    intervals. `noise`: least relative standard deviation of a loss (seed, validation sample) that intervals assume.
    `exponent_error`: relative standard deviation of exponents that are held, which refits draw.

    Raises UserError for fewer runs than numbers, for too few different sizes or tokens, and for values that are not
    finite and above zero.
    """
    runs = _Runs(parameters, tokens, loss, exponents)
    if delta <= 0 or not math.isfinite(delta):
        raise UserError(f"the delta of Huber's loss must be above zero, not {delta:g}")
    search = project(runs.n, runs.d, runs.loss, delta=delta, exponents=exponents, narrowings=_narrowings(method))
    problem = SurfaceProblem.of(
        runs.n, runs.d, runs.loss, delta=delta, residual="log" if method == "huber" else "relative"
    )
    # With exponents held or terms at zero, a number less is free; approach 3 knows no zero, its E only falls.
    terms = search.terms if method == "projection" else np.ones(3, dtype=np.bool_)
    problem = problem.holding(exponents=exponents is not None, terms=terms)
    result = minimise(problem, _starts(search, problem))
    best = int(np.argmin(result.objective))
    constants = problem.constants(result.theta[best])
    law, clamped = _law(constants, runs)
    free = int(problem.free.sum()) - sum(value == 0.0 for value in (law.e, law.a, law.b)) * (method == "huber")
    surface = LossSurface(
        law=law,
        method=method,
        objective=float(result.objective[best]),
        status=_status(problem, result, best, law, clamped or not terms.all(), runs),
        parameters=tuple(runs.n.tolist()),
        tokens=tuple(runs.d.tolist()),
        loss=tuple(runs.loss.tolist()),
        free_parameters=free,
        noise=noise,
        refits=(),
    )
    if bootstrap == 0:
        return surface
    spread = max(surface.scatter, noise)
    generator = np.random.default_rng(seed)
    error = exponent_error if exponents is not None else 0.0
    refits = _refit(problem, result.theta[best], bootstrap, resampling, spread, error, generator, runs)
    return replace(surface, refits=refits)


def fit_runs(runs: Sequence[Run]) -> LossSurface:
    """The surface of a table of runs with refits for intervals: of drawn runs where there are `MANY`, else of drawn
    noise.

    Raises UserError as `fit_loss_surface` does.
    """
    columns = [[getattr(run, name) for run in runs] for name in ("parameters", "tokens", "loss")]
    resampling: Resampling = "points" if len(runs) >= MANY else "noise"
    return fit_loss_surface(*columns, bootstrap=400, resampling=resampling, noise=RUN_NOISE)


class _Runs:
    """The checked runs as arrays."""

    def __init__(
        self,
        parameters: Sequence[float],
        tokens: Sequence[float],
        loss: Sequence[float],
        exponents: tuple[float, float] | None,
    ) -> None:
        self.n, self.d, self.loss = (np.asarray(values, dtype=np.float64) for values in (parameters, tokens, loss))
        if self.n.ndim != 1 or not self.n.shape == self.d.shape == self.loss.shape:
            raise UserError(
                "a loss surface needs parameters, tokens and loss of each run, "
                f"not {self.n.size}, {self.d.size} and {self.loss.size} numbers"
            )
        for name, values in (("parameters", self.n), ("tokens", self.d), ("losses", self.loss)):
            wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
            if wrong.size:
                raise UserError(f"run {wrong[0] + 1}: {name} must be finite and above zero, not {values[wrong[0]]:g}")
        if exponents is not None and not all(EXPONENTS[0] <= value <= EXPONENTS[1] for value in exponents):
            raise UserError(f"exponents must lie between {EXPONENTS[0]:g} and {EXPONENTS[1]:g}, not {exponents}")
        free, kinds = (5, 3) if exponents is None else (3, 2)
        if self.loss.size < free:
            raise UserError(f"a loss surface with {free} free numbers needs {free} runs or more, not {self.loss.size}")
        for name, values in (("model sizes", self.n), ("numbers of tokens", self.d)):
            if np.unique(values).size < kinds:
                raise UserError(f"a loss surface needs {kinds} different {name} or more, not {np.unique(values).size}")


def _narrowings(method: Method) -> int:
    """Approach 3 descends from the first grid; a projection ends at its own minimum."""
    return 0 if method == "huber" else 3


def _starts(search: Projection, problem: SurfaceProblem) -> Floats:
    """Rows (E, A, B, alpha, beta) as the numbers that are fitted; what is zero starts tiny."""
    e, a, b, alpha, beta = search.starts.T

    def log(values: Floats) -> Floats:
        return np.log(np.maximum(values, 1e-9))

    rows = [log(a) - alpha * problem.centre[0], alpha, log(b) - beta * problem.centre[1], beta, log(e)]
    return np.stack(rows, axis=1)


def _law(constants: tuple[float, ...], runs: _Runs) -> tuple[ParametricLaw, bool]:
    """The law, with terms below a millionth of every loss at zero, and whether there were any."""
    e, a, b, alpha, beta = constants
    parts = (e, a * runs.n**-alpha, b * runs.d**-beta)
    small = [bool((part < 1e-6 * runs.loss).all()) for part in map(np.asarray, parts)]
    e, a, b = (0.0 if zero else value for zero, value in zip(small, (e, a, b), strict=True))
    return ParametricLaw(e, a, b, alpha, beta), any(small)


def _status(
    problem: SurfaceProblem, result: SurfaceResult, best: int, law: ParametricLaw, clamped: bool, runs: "_Runs"
) -> Status:
    held = not (problem.free[1] or problem.free[3])
    low, high = EXPONENTS
    if not held and _rising(law, runs.n, runs.d, runs.loss):
        return "does not fall"
    if not held and not all(low * 1.001 < value < high * 0.999 for value in (law.alpha, law.beta)):
        return "exponent at bound"
    if clamped:
        return "clamped to zero"
    if _weakest(problem, law) < WEAK:
        return "not determined"
    return "converged" if result.converged[best] else "max iterations"


def _rising(law: ParametricLaw, n: Floats, d: Floats, loss: Floats) -> list[str]:
    """What more of does not lower the loss: over all runs its term falls by less than two residuals of one run."""
    terms = {"parameters": law.a * n**-law.alpha, "tokens": law.b * d**-law.beta}
    residual = (law.e + sum(terms.values())) / loss - 1.0
    scatter = math.sqrt(float((residual**2).sum()) / max(1, loss.size - 5))
    least = max(FALL * scatter, 1e-6) * float(np.median(loss))
    return [name for name, term in terms.items() if float(np.ptp(term)) < least]


def _weakest(problem: SurfaceProblem, law: ParametricLaw) -> float:
    """Smallest singular value over the largest of the derivatives by the free numbers, each column of length one."""
    n, d = problem.u + problem.centre[0], problem.v + problem.centre[1]
    size, data = law.a * np.exp(-law.alpha * n), law.b * np.exp(-law.beta * d)
    columns = np.stack([size, -size * problem.u, data, -data * problem.v, np.full_like(n, law.e)], axis=1)
    columns = columns[:, problem.free] / (size + data + law.e)[:, None]
    lengths = np.linalg.norm(columns, axis=0)
    if (lengths == 0).any():
        return 0.0
    values = np.linalg.svd(columns / lengths, compute_uv=False)
    return float(values[-1] / values[0])


def _refit(
    problem: SurfaceProblem,
    theta: NDArray[np.float64],
    count: int,
    resampling: Resampling,
    spread: float,
    exponent_error: float,
    generator: np.random.Generator,
    runs: _Runs,
) -> tuple[ParametricLaw, ...]:
    """`count` fits of resampled runs, each from the fit of all runs, with held exponents drawn around theirs."""
    laws: list[ParametricLaw] = []
    n = len(problem.u)
    for first in range(0, count, 250):  # so that memory stays small
        size = min(250, count - first)
        if resampling == "points":
            draws = generator.integers(0, n, (size, n))
            weights = np.stack([np.bincount(row, minlength=n) for row in draws]).astype(np.float64)
            resampled = replace(problem, weights=weights)
        else:
            e, a, b, alpha, beta = problem.constants(theta)
            surface = np.log(e + a * runs.n**-alpha + b * runs.d**-beta)
            resampled = replace(problem, y=surface + spread * generator.standard_normal((size, n)))
        starts = np.repeat(theta[None], size, axis=0)
        starts[:, [ALPHA, BETA]] *= np.exp(exponent_error * generator.standard_normal((size, 2)))
        result = minimise(resampled, starts, 150)
        laws += [_law(problem.constants(row), runs)[0] for row in result.theta]
    return tuple(laws)
