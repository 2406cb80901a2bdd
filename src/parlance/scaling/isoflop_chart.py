"""The picture of approach 2: loss against model size at each budget with its parabola, and best size against budget.

One SVG file on white, no network, equal data gives equal bytes. matplotlib is imported when the picture is drawn.

    write_text(Path("isoflop.svg"), isoflop_chart(fit_isoflop(runs)))
"""

import io
import math
import re
from typing import Any

import numpy as np

from parlance.scaling.frontier import Frontier, Parabola

INK, MUTED, GRID = "#222222", "#666666", "#e3e3e3"
DARK, LIGHT = (0x15, 0x3B, 0x5C), (0x7F, 0xC4, 0xC9)
"""Colours of the largest and the smallest budget; those between are mixed."""


def isoflop_chart(frontier: Frontier) -> str:
    """An SVG document of a frontier that `fit_isoflop` found."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "isoflop", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(9.4, 4.4))
        FigureCanvasSVG(canvas)
        left = canvas.add_axes((0.075, 0.13, 0.46, 0.84))
        right = canvas.add_axes((0.635, 0.13, 0.35, 0.84))
        _losses(left, frontier)
        _sizes(right, frontier)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.grid(color=GRID, lw=0.6)
            axes.set_axisbelow(True)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return re.sub(r"<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", buffer.getvalue(), flags=re.DOTALL)


def _losses(axes: Any, frontier: Frontier) -> None:
    for number, parabola in enumerate(frontier.parabolas):
        colour = _colour(number, len(frontier.parabolas))
        sizes = [run.parameters for run in parabola.runs]
        axes.plot(sizes, [run.loss for run in parabola.runs], ls="", marker="o", markersize=3.5, color=colour)
        if parabola.status == "no minimum":
            continue
        x, y = _curve(parabola)
        axes.plot(x, y, color=colour, lw=1.3, label=f"{parabola.flops:.2g} FLOPs")
        if parabola.status == "fitted":
            axes.plot(parabola.parameters, parabola.loss, marker="D", markersize=5, color=colour)
    axes.set_xlabel("parameters", color=INK)
    axes.set_ylabel("final loss (nats per token)", color=INK)
    axes.legend(frameon=False, fontsize=7.5, labelcolor=MUTED, loc="upper right")


def _sizes(axes: Any, frontier: Frontier) -> None:
    budgets = [point[0] for point in frontier.points]
    ends = np.array([min(budgets) / 2.0, max(budgets) * 10.0])
    axes.plot(ends, [frontier.parameters(end) for end in ends.tolist()], color=MUTED, lw=1.2, ls="--")
    fitted = [parabola.flops for parabola in frontier.parabolas]
    for budget, size, _ in frontier.points:
        colour = _colour(fitted.index(budget), len(fitted)) if budget in fitted else INK
        axes.plot(budget, size, marker="D", markersize=5, color=colour)
    axes.set_yscale("log")
    axes.annotate(
        f"N = {frontier.coefficient:.3g} C^{frontier.parameter_exponent:.3f}",
        (0.05, 0.94),
        xycoords="axes fraction",
        color=INK,
    )
    axes.set_xlabel("compute (FLOPs)", color=INK)
    axes.set_ylabel("best number of parameters", color=INK)


def _curve(parabola: Parabola) -> tuple[list[float], list[float]]:
    """The parabola over the sizes that were run."""
    start, end = (math.log(parabola.runs[index].parameters) for index in (0, -1))
    x = np.linspace(start, end, 60)
    y = parabola.curvature * (x - math.log(parabola.parameters)) ** 2 + parabola.loss
    return np.exp(x).tolist(), y.tolist()


def _colour(number: int, count: int) -> str:
    share = number / max(count - 1, 1)
    mixed = (round(light + share * (dark - light)) for light, dark in zip(LIGHT, DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
