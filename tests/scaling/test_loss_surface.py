"""Fits of L(N, D) against the laws that made the data, finite differences, brute force, and a published fit."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.scaling import loss_surface
from parlance.scaling.frontier import Run
from parlance.scaling.laws import CHINCHILLA, ParametricLaw
from parlance.scaling.loss_surface import LossSurface, Method, fit_loss_surface, fit_runs
from parlance.scaling.runs_file import read_runs
from parlance.scaling.surface_newton import Residual, SurfaceProblem, _derivatives, minimise, objectives
from parlance.scaling.variable_projection import non_negative

METHODS: tuple[Method, ...] = ("huber", "projection")
SIZES = np.geomspace(1e7, 1e10, 6).repeat(5)
TOKENS = np.tile(np.geomspace(1e8, 1e12, 5), 6)


def losses(law: ParametricLaw, noise: float = 0.0, seed: int = 0) -> Any:
    exact = law.e + law.a * SIZES**-law.alpha + law.b * TOKENS**-law.beta
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(SIZES)))


def constants(surface: LossSurface) -> Any:
    return np.array([getattr(surface.law, name) for name in ("e", "a", "b", "alpha", "beta")])


@settings(max_examples=8, deadline=None)
@given(
    st.builds(
        ParametricLaw,
        e=st.floats(1.0, 3.0),
        a=st.floats(100.0, 1000.0),
        b=st.floats(100.0, 3000.0),
        alpha=st.floats(0.25, 0.5),
        beta=st.floats(0.25, 0.5),
    ),
    st.sampled_from(METHODS),
)
def test_a_law_is_recovered_from_its_own_losses(law: ParametricLaw, method: Method) -> None:
    surface = fit_loss_surface(SIZES, TOKENS, losses(law), method=method)
    assert constants(surface) == pytest.approx([law.e, law.a, law.b, law.alpha, law.beta], rel=1e-10)
    assert surface.status == "converged"
    assert surface.predict(7e10, 1e13) == pytest.approx(law.predict(7e10, 1e13), rel=1e-11)


@pytest.mark.parametrize("residual", ["log", "relative"])
def test_derivatives_are_those_of_the_objective(residual: Residual) -> None:
    """Against central differences, off the minimum and with residuals on both sides of delta."""
    problem = SurfaceProblem.of(SIZES, TOKENS, losses(CHINCHILLA, 0.01), delta=0.01, residual=residual)
    theta = np.array([[0.2, 0.3, 0.1, 0.35, 0.5]])
    theta[0, 0] += np.log(losses(CHINCHILLA).mean()) - 1.0
    gradient, hessian, _, _ = _derivatives(problem, theta)
    step = 1e-5
    for i in range(5):
        shift = step * np.eye(5)[i]
        slope = (objectives(problem, theta + shift) - objectives(problem, theta - shift)) / (2 * step)
        assert gradient[0, i] == pytest.approx(slope[0], rel=1e-6, abs=1e-9)
        ends = [_derivatives(problem, theta + sign * shift)[0][0] for sign in (1, -1)]
        assert hessian[0, i] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-6)


def test_no_start_of_a_wide_grid_ends_lower() -> None:
    """The published starting grid, thinned: alpha, beta 0..2, e -1..1, a and b 0..25."""
    y = losses(CHINCHILLA, 0.006)
    surface = fit_loss_surface(SIZES, TOKENS, y)
    problem = SurfaceProblem.of(SIZES, TOKENS, y, delta=1e-3)
    grid = itertools.product(
        (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0, 2.0), (-1.0, 0.0, 1.0), (0, 5, 15, 25), (0, 5, 15, 25)
    )
    starts = np.array([[a - al * problem.centre[0], al, b - be * problem.centre[1], be, e] for al, be, e, a, b in grid])
    found = minimise(problem, starts[::5], 150)
    assert found.objective.min() >= surface.objective * (1 - 1e-9)
    assert (found.objective < surface.objective * (1 + 1e-9)).sum() > 1, "and several find the same minimum"


def test_the_objective_is_hoffmanns() -> None:
    """Sum of Huber's loss of log residuals with delta 1e-3, computed point by point."""
    y = losses(CHINCHILLA, 0.006)
    surface = fit_loss_surface(SIZES, TOKENS, y)
    total = 0.0
    for n, d, loss in zip(SIZES, TOKENS, y, strict=True):
        r = abs(np.log(surface.predict(n, d)) - np.log(loss))
        total += 0.5 * r * r if r <= 1e-3 else 1e-3 * (r - 0.5e-3)
    assert surface.objective == pytest.approx(total, rel=1e-9)
    for name, factor in itertools.product(("e", "a", "b", "alpha", "beta"), (0.999, 1.001)):
        values = {field: getattr(surface.law, field) for field in ("e", "a", "b", "alpha", "beta")}
        other = ParametricLaw(**values | {name: values[name] * factor})
        residuals = np.abs(np.log([other.predict(n, d) for n, d in zip(SIZES, TOKENS, strict=True)]) - np.log(y))
        huber = np.where(residuals <= 1e-3, 0.5 * residuals**2, 1e-3 * (residuals - 0.5e-3)).sum()
        assert huber >= surface.objective


@pytest.mark.parametrize("method", METHODS)
def test_a_few_bad_runs_move_little(method: Method) -> None:
    y = losses(CHINCHILLA, 1e-5)
    y[[3, 11, 20]] *= (1.5, 1.3, 1.4)
    surface = fit_loss_surface(SIZES, TOKENS, y, method=method)
    assert surface.predict(1e9, 1e10) == pytest.approx(CHINCHILLA.predict(1e9, 1e10), rel=1e-4)
    wide = fit_loss_surface(SIZES, TOKENS, y, method=method, delta=10.0)  # least squares
    assert abs(wide.predict(1e9, 1e10) / CHINCHILLA.predict(1e9, 1e10) - 1) > 0.005


def test_given_exponents_leave_linear_least_squares() -> None:
    """Three numbers, and with a wide delta a closed form."""
    y = losses(CHINCHILLA, 0.01)
    surface = fit_loss_surface(SIZES, TOKENS, y, method="projection", exponents=(0.3, 0.4), delta=10.0)
    design = np.stack([np.ones_like(y), SIZES**-0.3, TOKENS**-0.4], axis=1) / y[:, None]
    exact = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    assert constants(surface) == pytest.approx([*exact, 0.3, 0.4], rel=1e-8)
    assert surface.free_parameters == 3
    assert fit_loss_surface(SIZES, TOKENS, y, exponents=(0.3, 0.4)).status == "converged"
    few = fit_loss_surface([1e7, 1e8, 1e9], [1e9, 1e9, 1e10], [3.5, 3.0, 2.6], exponents=(0.34, 0.34))
    assert "exact by construction" in few.explanation()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_non_negative_least_squares_meets_its_conditions(seed: int) -> None:
    generator = np.random.default_rng(seed)
    design = generator.standard_normal((4, 7, 3)) + 0.5
    weights = generator.uniform(0.1, 2.0, (4, 7))
    for x, w, c in zip(design, weights, non_negative(design, weights), strict=True):
        slope = x.T @ (w * (x @ c - 1.0))
        assert (c >= 0).all()
        assert np.abs(slope[c > 0]) == pytest.approx(0, abs=1e-9)
        assert (slope[c == 0] >= -1e-9).all()


def test_status_is_honest(monkeypatch: pytest.MonkeyPatch) -> None:
    below = losses(ParametricLaw(e=0.0, a=300.0, b=300.0, alpha=0.3, beta=0.3)) - 0.05  # asks for a constant below zero
    for method in METHODS:
        surface = fit_loss_surface(SIZES, TOKENS, below, method=method)
        assert (surface.status, surface.law.e) == ("clamped to zero", 0.0)
        assert surface.free_parameters == 4
        assert "no E" in surface.explanation()
    steep = ParametricLaw(e=1.5, a=1e25, b=300.0, alpha=3.6, beta=0.3)
    surface = fit_loss_surface(SIZES, TOKENS, losses(steep), method="projection")
    assert surface.status in ("exponent at bound", "clamped to zero")
    twenty = SIZES * 20.0  # tokens follow the size: which of the two lowers the loss cannot be told
    together = CHINCHILLA.e + 800.0 * SIZES**-0.3
    assert fit_loss_surface(SIZES, twenty, together).status != "converged"
    monkeypatch.setattr(loss_surface, "minimise", functools.partial(minimise, iterations=1))
    hurried = fit_loss_surface(SIZES, TOKENS, losses(CHINCHILLA, 0.01))
    assert hurried.status == "max iterations"
    assert "not final" in hurried.explanation()


@pytest.mark.parametrize("method", METHODS)
def test_losses_that_do_not_fall_divide_no_compute(method: Method) -> None:
    """Flat or rising in one direction or both: exponents stay in their range, and no optimum is given."""
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(len(SIZES)))
    falling = 100 * TOKENS**-0.3
    rising = 3 * (SIZES / 1e8) ** 0.02
    for y, words in (
        (3 * noise, "parameters or tokens"),
        (rising + falling, "parameters"),
        (1.5 + 400 * SIZES**-0.34, "tokens"),
    ):
        surface = fit_loss_surface(SIZES, TOKENS, y, method=method, bootstrap=5)
        assert surface.status == "does not fall"
        assert f"does not fall with {words}:" in surface.explanation()
        assert all(0.02 <= x <= 2.0 for law in (surface.law, *surface.refits) for x in (law.alpha, law.beta))
        assert not surface.divides
        for divide in (surface.optimum, surface.tokens_for, surface.optimum_interval):
            with pytest.raises(UserError, match="do not tell how to divide compute"):
                divide(1e21)
    slow = fit_loss_surface(SIZES, TOKENS, 1 + 3 * (SIZES / 1e8) ** -0.03 + falling, method=method)
    assert (slow.status, slow.law.alpha) == ("converged", pytest.approx(0.03))


def test_tokens_that_follow_the_size_give_no_optimum() -> None:
    """All runs at twenty tokens a parameter: any division of the fall between the two terms fits."""
    y = np.array([CHINCHILLA.predict(n, 20 * n) for n in SIZES])
    y = y * np.exp(0.003 * np.random.default_rng(1).standard_normal(len(y)))
    surface = fit_loss_surface(SIZES, 20 * SIZES, y, bootstrap=20)
    assert surface.status != "converged"
    with pytest.raises(UserError, match="do not tell"):
        surface.optimum(1e21)
    assert surface.predict(1e9, 2e10) == pytest.approx(CHINCHILLA.predict(1e9, 2e10), rel=0.005), "between the runs"


def test_refits_without_an_optimum_are_counted() -> None:
    y = losses(CHINCHILLA, 0.002)
    surface = fit_loss_surface(SIZES, TOKENS, y, bootstrap=10)
    refits = (replace(surface.refits[0], a=0.0), replace(surface.refits[1], beta=0.02), *surface.refits[2:])
    ends = replace(surface, refits=refits).optimum_interval(1e21)
    assert (ends.without, ends.refits) == (2, 10)
    with pytest.raises(UserError, match="none of the resampled fits"):
        replace(surface, refits=refits[:2]).optimum_interval(1e21)


def test_a_fit_at_the_end_of_its_range_is_the_best_there() -> None:
    """The exponent stands at 2, and the others are those that fit it best: no neighbour is better."""
    y = 1.5 + 1e25 * SIZES**-3.6 + 300 * TOKENS**-0.3
    surface = fit_loss_surface(SIZES, TOKENS, y)
    assert (surface.status, surface.law.alpha, surface.divides) == ("exponent at bound", 2.0, False)
    problem = SurfaceProblem.of(SIZES, TOKENS, y, delta=1e-3)
    found = minimise(problem, np.array([[-3.0, 1.5, 0.0, 0.4, 0.3]]))
    assert found.converged.all(), "though the gradient by the exponent that is held there does not vanish"
    assert (found.theta[0, 1], found.objective[0]) == (2.0, pytest.approx(surface.objective))
    for name in ("e", "a", "b", "beta"):
        for factor in (0.9999, 1.0001):
            other = replace(surface.law, **{name: getattr(surface.law, name) * factor})
            r = np.abs(np.log([other.predict(n, d) for n, d in zip(SIZES, TOKENS, strict=True)]) - np.log(y))
            assert np.where(r <= 1e-3, 0.5 * r**2, 1e-3 * (r - 0.5e-3)).sum() >= surface.objective * (1 - 1e-9)


def test_intervals_hold_what_they_promise() -> None:
    """New runs far beyond the largest: of 95 % intervals from few noisy runs, nine in ten hold or more."""
    some = np.arange(0, 30, 2)
    far = (5e10, 1e13)
    inside, widths = 0, []
    for seed in range(16):
        y = losses(CHINCHILLA, 0.004, seed)[some]
        surface = fit_loss_surface(
            SIZES[some], TOKENS[some], y, bootstrap=50, resampling="noise", noise=0.004, seed=seed
        )
        predicted = surface.interval(*far)
        new = CHINCHILLA.predict(*far) * np.exp(0.004 * np.random.default_rng(1000 + seed).standard_normal())
        inside += predicted.low <= new <= predicted.high
        widths.append(predicted.high / predicted.low - 1)
    assert inside >= 14
    assert 0.016 < np.median(widths) < 0.2, "wider than one run's noise, and of use"


def test_held_exponents_widen_the_interval_by_what_is_not_known_of_them() -> None:
    """Laws with exponents around those that are held: most intervals hold, fewer without the error."""
    generator = np.random.default_rng(4)
    inside = {0.0: 0, 0.2: 0}
    for seed in range(10):
        alpha, beta = 0.35 * np.exp(0.2 * generator.standard_normal(2))
        law = ParametricLaw(1.5, 1e8**alpha, 1e10**beta, alpha, beta)
        y = losses(law, 0.004, seed)[::4]
        for error in inside:
            surface = fit_loss_surface(
                SIZES[::4], TOKENS[::4], y, exponents=(0.35, 0.35), bootstrap=50, resampling="noise", noise=0.004,
                exponent_error=error,
            )  # fmt: skip
            predicted = surface.interval(1e11, 1e13)
            inside[error] += predicted.low <= law.predict(1e11, 1e13) <= predicted.high
    assert inside[0.2] >= 8
    assert inside[0.0] < inside[0.2]


def test_bootstrap_is_seeded_and_needed() -> None:
    y = losses(CHINCHILLA, 0.005)
    surface = fit_loss_surface(SIZES, TOKENS, y, bootstrap=40, seed=1)
    again = fit_loss_surface(SIZES, TOKENS, y, bootstrap=40, seed=1)
    assert surface.refits == again.refits
    constant = surface.constant_intervals()
    assert all(low < getattr(surface.law, name) < high for name, (low, high) in constant.items())
    ends = surface.optimum_interval(1e22)
    assert ends.parameters[0] < surface.optimum(1e22).parameters < ends.parameters[1]
    assert ends.tokens[0] < surface.optimum(1e22).tokens < ends.tokens[1]
    assert (ends.without, ends.refits) == (0, 40)
    with pytest.raises(UserError, match="bootstrap"):
        fit_loss_surface(SIZES, TOKENS, y).interval(1e9, 1e9)


def test_the_order_of_runs_changes_nothing() -> None:
    y = losses(CHINCHILLA, 0.005)
    order = np.random.default_rng(0).permutation(len(y))
    shuffled = fit_loss_surface(SIZES[order], TOKENS[order], y[order])
    assert constants(shuffled) == pytest.approx(constants(fit_loss_surface(SIZES, TOKENS, y)), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [3.0, 2.9, 2.8, 2.7]}, "parameters, tokens and loss of each run, not 6, 6 and 4"),
        ({"loss": [3.0, 2.9, 2.8, float("nan"), 2.6, 2.5]}, "run 4: losses must be finite and above zero, not nan"),
        ({"tokens": [1e9, 1e9, 0.0, 2e9, 3e9, 4e9]}, "run 3: tokens must be finite and above zero, not 0"),
        ({"parameters": [1e7, 1e7, 1e7, 1e8, 1e8, 1e8]}, "3 different model sizes or more, not 2"),
        ({"tokens": [1e9] * 6}, "3 different numbers of tokens or more, not 1"),
    ],
)
def test_wrong_runs_are_refused(change: dict[str, Any], message: str) -> None:
    runs = {
        "parameters": [1e7, 2e7, 4e7, 1e8, 2e8, 4e8],
        "tokens": [1e9, 2e9, 4e9, 1e9, 2e9, 4e9],
        "loss": [3.5, 3.2, 3.0, 3.0, 2.8, 2.6],
    }
    with pytest.raises(UserError, match=message):
        fit_loss_surface(**(runs | change))


def test_fewer_runs_than_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="5 free numbers needs 5 runs or more, not 4"):
        fit_loss_surface([1e7, 2e7, 3e7, 4e7], [1e9, 2e9, 3e9, 5e9], [4.0, 3.9, 3.8, 3.7])
    with pytest.raises(UserError, match="delta"):
        fit_loss_surface(SIZES, TOKENS, losses(CHINCHILLA), delta=0.0)
    with pytest.raises(UserError, match="exponents must lie between"):
        fit_loss_surface(SIZES, TOKENS, losses(CHINCHILLA), exponents=(0.3, 7.0))


@pytest.mark.data
def test_a_published_table_gives_the_published_fit(data_folder: Any) -> None:
    """234 runs of the table `examples/llm/df.csv` of the project kyo-takano/chinchilla (Apache-2.0)."""
    path = data_folder / "chinchilla_runs" / "df.csv"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    runs = read_runs(path)
    surface = fit_runs(runs)
    assert len(runs) == 234
    assert constants(surface) == pytest.approx([1.7839, 442.16, 1271.8, 0.3426, 0.3420], rel=2e-4)
    assert surface.objective == pytest.approx(8.40093e-4, rel=1e-6)
    projected = fit_loss_surface(
        *zip(*[(r.parameters, r.tokens, r.loss) for r in runs], strict=True), method="projection"
    )
    assert constants(projected) == pytest.approx(constants(surface), rel=0.01)


def test_a_table_of_few_runs_takes_noise_for_its_intervals() -> None:
    runs = [Run(n, d, loss) for n, d, loss in zip(SIZES[::4], TOKENS[::4], losses(CHINCHILLA)[::4], strict=True)]
    surface = fit_runs(runs)
    predicted = surface.interval(1e10, 1e12)
    assert predicted.high / predicted.low - 1 > 2 * 1.96 * 0.003, "the fit is perfect, the next run is not"
