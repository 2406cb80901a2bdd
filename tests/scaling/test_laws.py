"""Published laws: their constants against each other and against what the papers derive from them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.scaling import laws
from parlance.scaling.laws import CHINCHILLA, CORRECTED, PETAFLOP_DAY, ParametricLaw

exponents = st.floats(0.1, 1.0)
LAWS = st.builds(
    ParametricLaw,
    e=st.floats(0.0, 3.0),
    a=st.floats(1.0, 1e4),
    b=st.floats(1.0, 1e4),
    alpha=exponents,
    beta=exponents,
)


def test_unrounded_chinchilla_rounds_to_the_paper() -> None:
    assert (round(CHINCHILLA.e, 2), round(CHINCHILLA.a, 1), round(CHINCHILLA.b, 1)) == (1.69, 406.4, 410.7)
    assert (round(CHINCHILLA.alpha, 2), round(CHINCHILLA.beta, 2)) == (0.34, 0.28)
    assert [round(exponent, 2) for exponent in CHINCHILLA.exponents] == [0.46, 0.54]


def test_corrected_law_says_what_its_authors_say() -> None:
    """About 20 tokens a parameter at Chinchilla's budget, and nearly equal exponents; the first fit says far more."""
    best = CORRECTED.optimum(5.76e23)
    assert best.tokens / best.parameters == pytest.approx(20, rel=0.15)
    assert best.parameters == pytest.approx(70e9, rel=0.1)
    assert CORRECTED.exponents == pytest.approx((0.513, 0.487), abs=0.001)
    first = CHINCHILLA.optimum(5.76e23)
    assert first.tokens / first.parameters > 55


@given(LAWS, st.floats(17, 26))
def test_optimum_is_the_lowest_loss_of_its_budget(law: ParametricLaw, log_flops: float) -> None:
    flops = 10**log_flops
    best = law.optimum(flops)
    assert 6 * best.parameters * best.tokens == pytest.approx(flops, rel=1e-9)
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = law.predict(best.parameters * factor, best.tokens / factor)
        assert other >= best.loss * (1 - 1e-12)
    assert law.tokens_for(best.parameters) == pytest.approx(best.tokens, rel=1e-6)


def test_a_law_without_a_falling_term_has_no_optimum() -> None:
    law = ParametricLaw(e=2.0, a=400.0, b=0.0, alpha=0.3, beta=0.3)
    assert law.predict(1e9, 1e9) > 2.0
    with pytest.raises(UserError, match="does not fall with the number of tokens"):
        law.optimum(1e20)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="above zero"):
            CORRECTED.optimum(bad)
        with pytest.raises(UserError, match="above zero"):
            CORRECTED.predict(bad, 1e9)


def test_kaplan_joint_law_has_the_limits_of_its_form() -> None:
    """Much data: (Nc / N)^0.076; a huge model: (Dc / D)^0.103."""
    assert laws.kaplan_loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert laws.kaplan_loss(1e40, 1e9) == pytest.approx((1.8e13 / 1e9) ** 0.103)
    # The separate fits are of the same data: they agree to a few percent where they overlap.
    assert laws.kaplan_loss(1e9, 1e30) == pytest.approx(laws.kaplan_loss_of_parameters(1e9), rel=0.03)
    assert laws.kaplan_loss(1e40, 1e10) == pytest.approx(laws.kaplan_loss_of_tokens(1e10), rel=0.1)
    assert laws.kaplan_loss_of_steps(1e9, 1e12) == pytest.approx((6.5e13 / 1e9) ** 0.077, rel=1e-4)


def test_kaplan_exponents_follow_from_each_other() -> None:
    """Equation 6.6 ff.: 1 / alpha_C = 1 / alpha_S + 1 / alpha_B + 1 / alpha_N, N ~ C^(alpha_C / alpha_N)."""
    alpha_c = 1 / (1 / 0.76 + 1 / 0.21 + 1 / 0.077)
    falls = math.log(laws.kaplan_loss_of_compute(1e20) / laws.kaplan_loss_of_compute(1e24)) / math.log(1e4)
    assert falls == pytest.approx(alpha_c, rel=0.06)
    best = [laws.kaplan_optimum(flops) for flops in (1e20, 1e22)]
    grows = math.log(best[1].parameters / best[0].parameters) / math.log(100)
    assert grows == pytest.approx(alpha_c / 0.076, rel=0.08)
    assert laws.least_tokens(8e9) / laws.least_tokens(1e9) == pytest.approx(8 ** (0.076 / 0.103), rel=0.01)


def test_kaplan_units_meet_at_one_petaflop_day() -> None:
    """Table 6 at 1 PF-day: N 1.3e9, batch 2.0e6, steps 5.4e3, and C = 6 N B S."""
    assert PETAFLOP_DAY == 8.64e19
    best = laws.kaplan_optimum(PETAFLOP_DAY)
    assert best.parameters == pytest.approx(1.3e9)
    assert best.tokens == pytest.approx(2.0e6 * 5.4e3, rel=0.05)
    assert best.loss == pytest.approx(2.66, abs=0.01)
    assert laws.critical_batch(best.loss) == pytest.approx(2.0e6, rel=0.06)


@given(st.floats(1.0, 10.0))
def test_critical_batch_falls_with_the_loss(loss: float) -> None:
    assert laws.critical_batch(loss) == pytest.approx(2.1e8 * np.exp(-np.log(loss) / 0.21))
    assert laws.critical_batch(loss) > laws.critical_batch(1.01 * loss)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "law",
    [
        laws.kaplan_loss_of_parameters,
        laws.kaplan_loss_of_tokens,
        laws.kaplan_loss_of_compute,
        laws.kaplan_optimum,
        laws.critical_batch,
        laws.least_tokens,
        lambda value: laws.kaplan_loss(1e9, value),
        lambda value: laws.kaplan_loss(value, 1e9),
        lambda value: laws.kaplan_loss_of_steps(value, 1e3),
        lambda value: laws.kaplan_loss_of_steps(1e9, value),
    ],
)
def test_laws_refuse_what_is_no_count(law: Callable[[float], object], wrong: float) -> None:
    with pytest.raises(UserError, match="above zero"):
        law(wrong)


def test_published_laws_say_what_they_were_fitted_to() -> None:
    assert CORRECTED.covers(7e7, 5e9)
    assert CORRECTED.covers(7e10, 1.4e12), "larger runs are what a law is for"
    assert not CORRECTED.covers(6e7, 1e10)
    assert not CHINCHILLA.covers(1e9, 4e9)
