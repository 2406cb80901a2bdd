"""Fitting L(N, D): how fast, and to how low an objective, beside scipy's L-BFGS-B from many starts, and VPNLS.

    python benchmarks/loss_surface.py --runs runs.csv --rounds 7 --out benchmarks/results/loss_surface.json

Needs scipy. Without --runs the points are 240 of the corrected Chinchilla law with 0.7 % noise; the table of the
project kyo-takano/chinchilla (`examples/llm/df.csv`) can be given. The peers, on the same points in turns:

1. `scipy`: the method of the published refit, log-Huber of the logarithmic surface with its analytic gradient, L-BFGS-B
   from --starts starts drawn (seeded) from the published grid of 4 500;
2. `vpnls`: variable projection with L-BFGS-B, where a package of this name can be imported (it minimises Huber's loss
   in nats instead of relative: its constants are compared, not its objective).

A ratio is the peer's time over Parlance's; the objective is the same function for Parlance and scipy. Bootstrap:
seconds for 1 000 refits.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from parlance.scaling.laws import CORRECTED
from parlance.scaling.loss_surface import HUBER_DELTA, fit_loss_surface
from parlance.scaling.runs_file import read_runs
from turns import in_turns

Floats = NDArray[np.float64]


def main() -> None:
    """Fit in turns and write down times, ratios, objectives and constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a table of runs; none: made points")
    parser.add_argument("--starts", type=int, default=32, help="starts of the scipy peer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    n, d, loss = table(arguments.runs)
    found: dict[str, Any] = {}

    def ours(method: str) -> Callable[[], None]:
        def fit() -> None:
            surface = fit_loss_surface(n, d, loss, method=method)  # type: ignore[arg-type]
            law = surface.law
            found[method] = {"constants": [law.e, law.a, law.b, law.alpha, law.beta], "objective": surface.objective}

        return fit

    def scipy() -> None:
        found["scipy"] = scipy_fit(n, d, loss, arguments.starts)

    fits = {"huber": ours("huber"), "projection": ours("projection"), "scipy": scipy}
    if importlib.util.find_spec("vpnls") is not None:
        fits["vpnls"] = lambda: found.__setitem__("vpnls", vpnls_fit(n, d, loss))
    seconds = in_turns(arguments.rounds, fits)
    start = time.perf_counter()
    fit_loss_surface(n, d, loss, bootstrap=1000)
    result: dict[str, Any] = {"runs": len(loss), "bootstrap_1000_seconds": time.perf_counter() - start, "fits": {}}
    for name, times in seconds.items():
        ratios = sorted(peer / mine for peer, mine in zip(times, seconds["huber"], strict=True))
        row = found[name] | {
            "seconds": statistics.median(times),
            "ratio": [ratios[0], statistics.median(ratios), ratios[-1]],
        }
        result["fits"][name] = row
        low, middle, high = row["ratio"]
        constants = ", ".join(f"{value:.6g}" for value in row["constants"])
        print(
            f"{name:>10}: {row['seconds']:.4f} s, {middle:.2f} times huber's ({low:.2f} to {high:.2f}); "
            f"objective {row['objective']:.8g}; E, A, B, alpha, beta: {constants}"
        )
    print(f"1 000 refits: {result['bootstrap_1000_seconds']:.2f} s")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def table(path: Path | None) -> tuple[Floats, Floats, Floats]:
    """Parameters, tokens and losses of the runs."""
    if path is not None:
        runs = read_runs(path)
        return tuple(np.array([getattr(run, name) for run in runs]) for name in ("parameters", "tokens", "loss"))  # type: ignore[return-value]
    generator = np.random.default_rng(0)
    n = 10 ** generator.uniform(7.7, 10.2, 240)
    d = n * 10 ** generator.uniform(0.0, 2.5, 240)
    exact = CORRECTED.e + CORRECTED.a * n**-CORRECTED.alpha + CORRECTED.b * d**-CORRECTED.beta
    return n, d, exact * np.exp(0.007 * generator.standard_normal(240))


def scipy_fit(n: Floats, d: Floats, loss: Floats, starts: int) -> dict[str, Any]:
    """The best of L-BFGS-B from `starts` of the published grid."""
    log_n, log_d, log_l = np.log(n), np.log(d), np.log(loss)

    def objective(x: Floats) -> tuple[float, Floats]:
        a, b, e, alpha, beta = x
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        r = top + np.log(total) - log_l
        shares /= total
        slope = np.clip(r, -HUBER_DELTA, HUBER_DELTA)
        value = np.where(np.abs(r) <= HUBER_DELTA, 0.5 * r * r, HUBER_DELTA * (np.abs(r) - 0.5 * HUBER_DELTA)).sum()
        parts = (shares[0], shares[1], shares[2], -log_n * shares[0], -log_d * shares[1])
        return float(value), np.array([(slope * part).sum() for part in parts])

    steps = [np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5), *2 * [np.arange(0, 2.5, 0.5)]]
    grid = list(itertools.product(*steps))
    chosen = np.random.default_rng(0).choice(len(grid), min(starts, len(grid)), replace=False)
    options = {"maxiter": 15_000, "maxfun": 15_000, "ftol": 1e-15, "gtol": 1e-12}
    best = min(
        (minimize(objective, np.array(grid[i], float), jac=True, method="L-BFGS-B", options=options) for i in chosen),
        key=lambda result: float(result.fun),
    )
    a, b, e, alpha, beta = best.x
    constants = [float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), float(alpha), float(beta)]
    return {"constants": constants, "objective": float(best.fun)}


def vpnls_fit(n: Floats, d: Floats, loss: Floats) -> dict[str, Any]:
    """VPNLS with its scipy solver; its objective is another function, a sum of Huber in nats."""
    from vpnls.api import huber  # type: ignore[import-not-found]
    from vpnls.scipy import fit_vpnls_scipy  # type: ignore[import-not-found]

    fit = fit_vpnls_scipy(n / 1e6, d / 1e9, loss, loss=huber(HUBER_DELTA))
    constants = [fit.E, fit.A * 1e6**fit.alpha, fit.B * 1e9**fit.beta, fit.alpha, fit.beta]
    return {"constants": [float(value) for value in constants], "objective": float("nan")}


if __name__ == "__main__":
    main()
