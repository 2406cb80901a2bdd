"""The law recovers synthetic laws exactly, says when it cannot, and its interval covers what it claims to cover."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from parlance.core.errors import UserError
from parlance.scaling.power_law import fit_power_law, training_flops


def test_straight_line_is_recovered_exactly_from_two_points() -> None:
    law = fit_power_law([15, 60], [4.2 * 15**-0.11, 4.2 * 60**-0.11])
    assert (law.a, law.b, law.e) == (pytest.approx(4.2), pytest.approx(0.11), 0.0)
    assert law.residual == pytest.approx(0.0, abs=1e-12)
    assert law.status == "fitted"
    assert law.exact
    assert "exact by construction" in law.explanation()
    assert law.predict(480) == pytest.approx(4.2 * 480**-0.11)


def test_straight_line_is_the_least_squares_line() -> None:
    x, loss = np.array([1e6, 3e6, 1e7, 4e7]), np.array([3.1, 2.8, 2.45, 2.2])
    slope, intercept = np.polyfit(np.log(x), np.log(loss), 1)
    law = fit_power_law(x.tolist(), loss.tolist())
    assert law.b == pytest.approx(-slope)
    assert law.a == pytest.approx(math.exp(intercept))
    errors = np.log(loss) - (intercept + slope * np.log(x))
    assert law.residual == pytest.approx(math.sqrt(np.mean(errors**2)))
    assert "relative residual" in law.explanation()


@pytest.mark.parametrize(("e", "b"), [(1.7, 0.35), (0.4, 1.1), (2.0, 0.05)])
def test_offset_form_is_recovered_exactly(e: float, b: float) -> None:
    x = [1e5, 4e5, 2e6, 1e7]
    loss = [e + 1.3 * (point / 1e5) ** -b for point in x]
    law = fit_power_law(x, loss, offset=True)
    assert law.status == "fitted"
    assert law.e == pytest.approx(e, rel=1e-4)
    assert law.b == pytest.approx(b, rel=1e-4)
    assert law.predict(1e9) == pytest.approx(e + 1.3 * 1e4**-b, rel=1e-5)
    assert not law.exact


def test_offset_form_is_held_at_its_floor() -> None:
    x = [10.0, 40.0, 160.0]
    loss = [3.0 * point**-0.2 for point in x]
    bound = fit_power_law(x, loss, offset=True, floor=0.5)
    assert (bound.status, bound.e) == ("floor reached", 0.5)
    # Held there, only a and b are free: no other exponent may fit better.
    for b in np.linspace(0.05, 1.0, 500):
        decay = np.array(x) ** -b / np.array(loss)
        rest = 1 - 0.5 / np.array(loss)
        a = decay @ rest / (decay @ decay)
        assert np.sqrt(np.mean((a * decay - rest) ** 2)) >= bound.residual - 1e-12


def test_statuses_instead_of_silence() -> None:
    rising = fit_power_law([10, 40], [2.0, 2.1])
    assert rising.status == "not falling"
    assert "does not fall" in rising.explanation()
    assert fit_power_law([10, 40, 160], [2.0, 2.1, 2.2], offset=True).status == "not falling"
    cliff = fit_power_law([10, 20, 40, 80], [5.0, 1.0, 1.0, 1.0], offset=True)
    assert cliff.status == "exponent at bound"
    # Convex upwards in log-log: falls ever faster, so no constant above zero helps.
    assert fit_power_law([10, 100, 1000], [3.0, 2.9, 2.0], offset=True).status == "floor reached"


@pytest.mark.parametrize(
    ("x", "loss", "message"),
    [
        ([10], [2.0], "needs 2 pilot runs"),
        ([10, 10], [2.0, 2.1], "needs 2 pilot runs"),
        ([10, 20], [2.0], "one loss for each budget"),
        ([0, 20], [2.0, 1.9], "above zero"),
        ([10, 20], [2.0, float("nan")], "finite"),
    ],
)
def test_impossible_fits_are_refused(x: list[float], loss: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_power_law(x, loss)


def test_offset_needs_three_budgets_and_a_floor_below_the_losses() -> None:
    with pytest.raises(UserError, match="needs 3 pilot runs"):
        fit_power_law([10, 20], [2.0, 1.9], offset=True)
    with pytest.raises(UserError, match="floor"):
        fit_power_law([10, 20, 40], [2.0, 1.9, 1.8], offset=True, floor=1.8)


def test_interval_equals_its_stated_formula_for_two_points() -> None:
    x, loss = [15.0, 60.0], [3.0, 2.5]
    law = fit_power_law(x, loss)
    z, here = np.log(x), math.log(480)
    regression = 1 + 1 / 2 + (here - z.mean()) ** 2 / ((z - z.mean()) ** 2).sum()
    drift = 0.3 * law.b * math.log(480 / 60)
    deviation = 1.96 * math.sqrt(0.02**2 * regression + drift**2)
    prediction = law.predict_with_interval(480, exponent_error=0.3, noise=0.02)
    assert prediction.value == law.predict(480)
    assert prediction.low == pytest.approx(prediction.value * math.exp(-deviation))
    assert prediction.high == pytest.approx(prediction.value * math.exp(deviation))


def test_interval_widens_with_distance_and_with_scatter() -> None:
    clean = fit_power_law([10, 20, 40, 80], [3.0 * x**-0.2 for x in (10, 20, 40, 80)])
    widths = [(lambda p: p.high - p.low)(clean.predict_with_interval(x)) / clean.predict(x) for x in (80, 320, 1280)]
    assert widths[0] < widths[1] < widths[2]
    noisy = fit_power_law(
        [10, 20, 40, 80], [3.0 * x**-0.2 * f for x, f in zip((10, 20, 40, 80), (1.1, 0.9, 0.9, 1.1), strict=True)]
    )
    near, far = clean.predict_with_interval(160), noisy.predict_with_interval(160)
    assert far.high - far.low > 2 * (near.high - near.low)


def test_offset_interval_stays_above_the_constant() -> None:
    law = fit_power_law([10, 40, 160], [2.0 + x**-0.5 for x in (10, 40, 160)], offset=True)
    prediction = law.predict_with_interval(1e6)
    assert law.e <= prediction.low <= prediction.value <= prediction.high


@pytest.mark.parametrize("pilots", [(1 / 40, 1 / 20), (1 / 16, 1 / 4), (1 / 20, 1 / 8), (1 / 27, 1 / 9, 1 / 3)])
def test_default_interval_covers_bent_laws(pilots: tuple[float, ...]) -> None:
    # The claim in the module's docstring: truth e + a x^-b, a straight line fitted to the pilots, noise 0.5 %.
    generator = np.random.default_rng(0)
    covered, upper, trials = 0, 0, 1000
    for _ in range(trials):
        b, e = generator.uniform(0.15, 0.6), generator.uniform(0.0, 0.8)
        truth = [e + (1 - e) * x**-b for x in (*pilots, 1.0)]
        seen = [value * math.exp(0.005 * generator.normal()) for value in truth]
        prediction = fit_power_law(pilots, seen[:-1]).predict_with_interval(1.0)
        covered += prediction.low <= seen[-1] <= prediction.high
        upper += seen[-1] > prediction.value
    assert covered / trials >= 0.95
    assert upper / trials > 0.8


def test_training_flops_agree_with_counted_flops() -> None:
    layers, context, width, batch = 3, 16, 32, 2
    inputs = torch.randn(batch, context, width, requires_grad=True)
    weights = [torch.randn(width, width, requires_grad=True) for _ in range(4 * layers)]
    with FlopCounterMode(display=False) as counter:
        hidden = inputs
        for layer in range(layers):
            query, key, value, output = weights[4 * layer : 4 * layer + 4]
            scores = torch.softmax((hidden @ query) @ (hidden @ key).transpose(1, 2), dim=-1)
            hidden = scores @ (hidden @ value) @ output
        hidden.sum().backward()
    parameters = sum(weight.numel() for weight in weights)
    assert counter.get_total_flops() == training_flops(parameters, batch * context, layers, context, width)
