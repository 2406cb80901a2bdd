"""The picture of the ladder: bits per byte against training time, every model by name; one SVG file on white.

Equal data gives equal bytes. matplotlib is imported when the picture is drawn.

    write_text(Path("ladder.svg"), ladder_chart(results))
"""

import io
import re
from collections.abc import Sequence
from typing import Any

COLOURS = ("#1b6ca8", "#c8553d", "#2e8b57", "#7b4fa3", "#b8860b", "#d0417e", "#3a9aa5", "#6b4c3b", "#55606e")
"""One a network, in their order; told apart in print too, by the names at the ends of the lines."""
INK, MUTED, GRID = "#222222", "#666666", "#e3e3e3"


def ladder_chart(result: dict[str, Any]) -> str:
    """An SVG document of what `run_ladder` returns."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    style = {"svg.hashsalt": "ladder", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    rows = result["models"]
    counted = [row for row in rows if len(row["curve"]) == 1]
    trained = [row for row in rows if len(row["curve"]) > 1]
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(8.2, 5.0))
        FigureCanvasSVG(canvas)
        axes = canvas.add_axes((0.08, 0.11, 0.66, 0.86))
        if counted:
            points = [row["curve"][0] for row in counted]
            axes.plot(
                [x for x, _ in points], [y for _, y in points], color=MUTED, marker="s", markersize=4, lw=1, ls=":"
            )
            for row, (x, y) in zip(counted, points, strict=True):
                axes.annotate(row["name"], (x, y), (-5, -10), textcoords="offset points", color=MUTED, ha="right")
        for row, colour in zip(trained, COLOURS * len(trained), strict=False):
            # On the way in windows, at the end on whole documents: not one line.
            xs, ys = zip(*row["curve"][:-1], strict=True)
            axes.plot(xs, ys, color=colour, marker="o", markersize=3, lw=1.6)
            axes.plot(*row["curve"][-1], color=colour, marker="D", markersize=6)
        bottom, top = _limits([y for row in rows for _, y in row["curve"]])
        ends = [(row["curve"][-1][0], min(row["curve"][-1][1], top)) for row in trained]
        places = spread([y for _, y in ends], (top - bottom) / 26)
        for row, colour, y in zip(trained, COLOURS * len(trained), places, strict=False):
            label = f"{row['name']} {row['curve'][-1][1]:.3f}"
            axes.annotate(
                label,
                (row["curve"][-1][0], min(row["curve"][-1][1], top)),
                (1.02, y),
                xycoords="data",
                textcoords=axes.get_yaxis_transform(),
                color=colour,
                va="center",
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5},
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_ylim(bottom, top)
        axes.set_xlabel("training time (s)", color=INK)
        axes.set_ylabel("bits per byte of held-out text", color=INK)
        axes.grid(color=GRID, lw=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    svg = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>|<!DOCTYPE[^>]*>", "", svg, flags=re.DOTALL)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Bottom and top of the axis: all values, but for untrained models far above the rest."""
    ordered = sorted(values)
    top = min(ordered[-1], 2.2 * ordered[0])
    margin = 0.06 * (top - ordered[0]) + 0.02
    return ordered[0] - margin, top + margin


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the order of `values` and near them: labels that do not overlap."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    places = [0.0] * len(values)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _end(groups[-2], values, gap) > _start(groups[-1], values, gap):
            groups[-2].extend(groups.pop())
    for group in groups:
        start = _start(group, values, gap)
        for number, index in enumerate(group):
            places[index] = start + gap * (number + 0.5)
    return places


def _start(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    """Lower edge of the labels of a group that is centred on its mean."""
    return sum(values[index] for index in group) / len(group) - gap * len(group) / 2


def _end(group: Sequence[int], values: Sequence[float], gap: float) -> float:
    return _start(group, values, gap) + gap * len(group)
