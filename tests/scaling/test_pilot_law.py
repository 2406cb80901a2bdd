"""The law of pilots: the posterior is that of Bayes' rule, moves from prior to runs, and covers what it claims."""

import math

import numpy as np
import pytest

from parlance.core.errors import UserError
from parlance.scaling.frontier import Run
from parlance.scaling.pilot_law import (
    COUNTED,
    EARLY,
    LEARNT,
    NOISE,
    PARAMETERS,
    REPEATS,
    STEEPNESS,
    TOKENS,
    Counted,
    PilotLaw,
    effective_tokens,
)


def row_of(parameters: float, tokens: float, copying: float = 0.0, memory: float = 0.0) -> np.ndarray:
    x, z = math.log(tokens / TOKENS), math.log(parameters / PARAMETERS)
    return np.array([1, x, z, x * z, copying * 0.5 * (1 + math.tanh((x - LEARNT) / STEEPNESS / 2)), memory])


def noise(tokens: float) -> float:
    """Standard deviation of log L of one run."""
    return NOISE * (1 + EARLY / tokens)


def test_without_runs_the_prior_speaks() -> None:
    found = PilotLaw.fit([], []).interval(1e6, 2e6, Counted(4.0))
    row = row_of(1e6, 2e6)
    spread = math.sqrt(((row * np.array(COUNTED.spread)) ** 2).sum() + noise(2e6) ** 2)
    assert found.value == pytest.approx(4.0 * math.exp(row @ np.array(COUNTED.mean)))
    assert math.log(found.high / found.value) == pytest.approx(1.96 * spread)
    assert math.log(found.value / found.low) == pytest.approx(1.96 * spread)


def test_the_law_is_the_conditional_of_a_joint_normal() -> None:
    """Conditioning losses of runs and of the prediction as one normal vector, without any regression formula."""
    runs = [Run(4e5, 1e5, 5.5), Run(4e5, 4e5, 4.7), Run(3e6, 2e5, 5.2)]
    counted = [Counted(5.6, 0.1), Counted(4.9, 0.2), Counted(5.3, 0.15)]
    pairs = list(zip(runs, counted, strict=True))
    rows = [row_of(run.parameters, run.tokens, 0.1, other.memory) for run, other in pairs]
    rows = np.array([*rows, row_of(6e6, 3e6, 0.1, 0.3)])
    joint = rows @ np.diag(np.square(COUNTED.spread)) @ rows.T
    joint += np.diag([noise(tokens) ** 2 for tokens in (1e5, 4e5, 2e5, 3e6)])
    means = rows @ np.array(COUNTED.mean)
    observed = np.log([run.loss / other.loss for run, other in pairs])
    gain = joint[3, :3] @ np.linalg.inv(joint[:3, :3])
    middle = means[3] + gain @ (observed - means[:3])
    spread = math.sqrt(joint[3, 3] - gain @ joint[:3, 3])
    found = PilotLaw.fit(runs, counted, 0.1).interval(6e6, 3e6, Counted(4.0, 0.3))
    assert found.value == pytest.approx(4.0 * math.exp(middle))
    assert found.high == pytest.approx(4.0 * math.exp(middle + 1.96 * spread))


def test_many_runs_outweigh_the_prior() -> None:
    true = np.array([0.1, -0.09, -0.05, 0.02, 0.0, 0.0])
    runs = [Run(n, d, 4.0 * math.exp(row_of(n, d) @ true)) for n in (1e5, 1e6, 1e7) for d in (1e5, 1e6, 1e7)] * 40
    found = PilotLaw.fit(runs, [Counted(4.0)] * len(runs)).interval(3e7, 3e7, Counted(2.0))
    assert found.value == pytest.approx(2.0 * math.exp(row_of(3e7, 3e7) @ true), rel=5e-3)


def test_intervals_cover_texts_drawn_from_the_prior() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        true = np.array(COUNTED.mean) + np.array(COUNTED.spread) * generator.standard_normal(6)

        def loss(n: float, d: float, true: np.ndarray = true) -> float:
            return 5.0 * math.exp(row_of(n, d) @ true + noise(d) * generator.standard_normal())

        runs = [Run(n, d, loss(n, d)) for n, d in ((4e5, 3e5), (3e6, 5e4), (3e6, 2e5))]
        found = PilotLaw.fit(runs, [Counted(5.0)] * 3).interval(3e6, 3e6, Counted(5.0))
        inside += found.low <= loss(3e6, 3e6) <= found.high
    assert 0.92 <= inside / 400 <= 0.98


def test_without_a_counted_loss_the_slopes_are_those_of_the_loss() -> None:
    runs = [Run(1e6, d, 6.0 * (d / 1e5) ** -0.1) for d in (1e5, 2e5, 4e5)]
    found = PilotLaw.fit(runs, None).interval(1e6, 1.6e6)
    assert found.value == pytest.approx(6.0 * 16**-0.1, rel=0.01)
    assert found.low < 6.0 * 16**-0.1 < found.high


def test_tokens_that_are_read_again_are_worth_less() -> None:
    assert effective_tokens(5e5, 1e6) == 5e5
    assert effective_tokens(1e6, 1e6) == 1e6
    # Muennighoff et al. 2023, equation 5: D' = U + U R* (1 - exp(-R / R*)), R the repetitions.
    assert effective_tokens(4e6, 1e6) == pytest.approx(1e6 * (1 + REPEATS * (1 - math.exp(-3 / REPEATS))))
    assert effective_tokens(1e12, 1e6) == pytest.approx(1e6 * (1 + REPEATS))


@pytest.mark.parametrize("run", [Run(1e6, 0, 4.0), Run(float("nan"), 1e6, 4.0), Run(1e6, 1e6, float("inf"))])
def test_what_is_no_run_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="are finite numbers above zero"):
        PilotLaw.fit([run], [Counted(4.0)])
