"""Approaches 1 and 2 on losses made by a law whose best sizes are known."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parlance.core.errors import UserError
from parlance.scaling.frontier import Curve, Run, fit_envelope, fit_isoflop
from parlance.scaling.isoflop_chart import isoflop_chart
from parlance.scaling.laws import CHINCHILLA, ParametricLaw
from parlance.scaling.runs_file import read_runs

BUDGETS = np.geomspace(6e18, 3e21, 5)
EQUAL = ParametricLaw(e=1.7, a=500.0, b=500.0, alpha=0.3, beta=0.3)


def isoflop_runs(law: ParametricLaw, spread: float, shift: float = 1.0) -> list[Run]:
    """Seven sizes a budget, evenly around `shift` times the best."""
    runs = []
    for flops in BUDGETS:
        for size in law.optimum(flops).parameters * shift * np.geomspace(1 / spread, spread, 7):
            tokens = flops / 6 / size
            runs.append(Run(float(size), float(tokens), law.predict(size, tokens)))
    return runs


def test_parabolas_around_the_minimum_of_equal_exponents_are_exact() -> None:
    """With alpha = beta the loss is symmetric around its minimum in log N, and so is its parabola."""
    frontier = fit_isoflop(isoflop_runs(EQUAL, 4.0))
    assert frontier.parameter_exponent == pytest.approx(0.5, abs=1e-9)
    for flops, size, _ in frontier.points:
        assert size == pytest.approx(EQUAL.optimum(flops).parameters, rel=1e-6)
    assert frontier.problems == ()
    best = frontier.optimum(1e23)
    assert 6 * best.parameters * best.tokens == pytest.approx(1e23)
    assert best.loss == pytest.approx(EQUAL.optimum(1e23).loss, rel=0.01)


def test_parabolas_are_biased_as_their_critics_say() -> None:
    """Wide grids off the centre shift the minimum without any noise; unequal exponents do so on centred ones."""
    centred = fit_isoflop(isoflop_runs(CHINCHILLA, 5.0))
    assert centred.parameter_exponent == pytest.approx(CHINCHILLA.exponents[0], abs=1e-6)
    exact = CHINCHILLA.optimum(1e20).parameters
    assert centred.parameters(1e20) / exact == pytest.approx(1.02, abs=0.01)
    shifted = fit_isoflop(isoflop_runs(EQUAL, 6.0, shift=2.0))
    assert abs(shifted.parameters(1e20) / EQUAL.optimum(1e20).parameters - 1) > 0.001


def test_budgets_without_a_minimum_are_left_out_and_named() -> None:
    good = isoflop_runs(EQUAL, 4.0)
    rising = [Run(n, 1e24 / 6 / n, 2.0 + n / 1e12) for n in (1e10, 2e10, 4e10, 8e10)]
    flat = [Run(n, 1e26 / 6 / n, 2.0 - 0.01 * abs(np.log(n / 4e10))) for n in (1e10, 4e10, 1.6e11)]
    two = [Run(1e8, 1e8, 3.0), Run(2e8, 5e7, 3.1)]
    frontier = fit_isoflop(good + rising + flat + two)
    assert len(frontier.points) == len(BUDGETS)
    problems = " ".join(frontier.problems)
    assert "1e+24 is left out: minimum outside the sizes" in problems
    assert "1e+26 is left out: no minimum" in problems
    assert "6e+16 was run with 2 sizes" in problems
    with pytest.raises(UserError, match="needs two budgets"):
        fit_isoflop(good[:7] + rising)


def test_the_envelope_follows_the_best_sizes() -> None:
    curves = []
    for size in np.geomspace(1e7, 1e10, 13):
        tokens = np.geomspace(0.05 * size, 100 * size, 80)
        curves.append(Curve(float(size), tuple(tokens), tuple(EQUAL.predict(size, d) for d in tokens)))
    frontier = fit_envelope(curves)
    assert frontier.parameter_exponent == pytest.approx(0.5, abs=0.02)
    assert frontier.parameters(1e20) == pytest.approx(EQUAL.optimum(1e20).parameters, rel=0.1)
    assert frontier.optimum(1e20).loss == pytest.approx(EQUAL.optimum(1e20).loss, rel=0.01)
    with pytest.raises(UserError, match="two model sizes"):
        fit_envelope(curves[:1])
    with pytest.raises(UserError, match="curve 1: its numbers of tokens must grow"):
        fit_envelope([Curve(1e7, (2.0, 1.0), (3.0, 2.0)), curves[1]])
    with pytest.raises(UserError, match="curve 1: loss must be finite and above zero, not nan"):
        fit_envelope([Curve(1e7, (1.0, 2.0), (3.0, float("nan"))), curves[1]])


def test_the_picture_has_every_run_and_equal_bytes() -> None:
    frontier = fit_isoflop(isoflop_runs(EQUAL, 4.0))
    svg = isoflop_chart(frontier)
    assert svg == isoflop_chart(frontier)
    assert svg.lstrip().startswith("<?xml") or svg.lstrip().startswith("<svg")
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", svg)
    assert f"N = {frontier.coefficient:.3g} C^0.500" in svg
    assert svg.count("FLOPs") == len(BUDGETS) + 1


def test_tables_are_read_with_either_names(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("C,N,D,loss\n1e18,1e8,2e9,3.4\n\n2e18,2e8,2e9,3.2\n")
    assert read_runs(table) == [Run(1e8, 2e9, 3.4, 1e18), Run(2e8, 2e9, 3.2, 2e18)]
    table.write_text("\ufeffloss,tokens,parameters\n3.4,2e9,1e8\n", encoding="utf-8")
    assert read_runs(table)[0].budget == pytest.approx(1.2e18)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must name the columns parameters, tokens and loss; parameters is missing"),
        ("N,D\n1,2\n", "loss is missing"),
        ("N,D,loss\n", "holds no runs"),
        ("N,D,loss\n1e8,2e9,3\n1e8,2e9,x\n", "line 3: loss is no number: 'x'"),
        ("N,D,loss\n1e8,2e9\n", "line 2: loss is no number: ''"),
        ("N,D,loss\n1e8,-1,3\n", "line 2: tokens must be finite and above zero, not -1"),
        ("N,D,loss\n1e8,inf,3\n", "line 2: tokens must be finite and above zero, not inf"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    table: Any = tmp_path / "runs.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        read_runs(table)
    with pytest.raises(UserError, match="no such file"):
        read_runs(tmp_path / "absent.csv")
