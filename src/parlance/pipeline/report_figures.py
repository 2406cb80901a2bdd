"""Line charts of a report as inline SVG that follows the page's colours, light or dark.

Charts are drawn with placeholder colours that are replaced by CSS variables (`var(--base)`), text stays text, and the
metadata and document type that carry links are cut out. Equal data gives equal bytes. matplotlib is imported when a
chart is drawn, never before.

    svg = line_chart("loss", [Series("base", [(1, 3.0), (10, 2.1)])], x_label="time (s)", y_label="loss (nats)")
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from parlance.core.formatting import compact

Point = tuple[float, float]

COLOURS = {
    name: f"#0000{index:02x}"
    for index, name in enumerate(("ink", "muted", "grid", "base", "sft", "reward", "ppo", "plain"), start=1)
}
"""Placeholder of each CSS variable; nothing else in a chart has these colours."""

WIDTH, HEIGHT = 4.7, 2.7
"""Inches; at 72 points an inch, the text is 9 px high on a phone and 12 px on a desk."""

MOST_POINTS = 300
"""Points kept of one line."""


@dataclass(frozen=True)
class Series:
    """One line or set of points."""

    colour: str
    """A name in `COLOURS`."""
    points: Sequence[Point]
    style: Literal["line", "dashed", "points", "target"] = "line"


@dataclass(frozen=True)
class Band:
    """A predicted interval: a horizontal band, or with `x` a vertical bar with caps at that place."""

    low: float
    high: float
    colour: str = "plain"
    x: float | None = None


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of neighbours, so that a noisy line keeps its level."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(
    name: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    band: Band | None = None,
    unit_range: bool = False,
) -> str:
    """An `<svg>` element. `name` keeps element ids apart on one page; `unit_range` shows y from 0 to 1.

    On logarithmic axes, points that are not positive are left out.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_style(name)):
        canvas = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        for one in series:
            points = [(x, y) for x, y in one.points if not (log_x and x <= 0) and not (log_y and y <= 0)]
            _draw(axes, one, thin(points) if one.style in ("line", "dashed") else points)
        if band is not None:
            _draw_band(axes, band)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if unit_range:
            axes.set_ylim(-0.02, 1.02)
        whole = all(x == int(x) for one in series for x, _ in one.points)
        _scale(axes.xaxis, axes.set_xscale, log_x, whole)
        _scale(axes.yaxis, axes.set_yscale, log_y)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _style(name: str) -> dict[str, Any]:
    ink, muted, grid = COLOURS["ink"], COLOURS["muted"], COLOURS["grid"]
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8.5,
        "text.parse_math": False,
        "text.color": ink,
        "axes.labelcolor": muted,
        "axes.edgecolor": muted,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.solid_capstyle": "round",
    }


def _draw(axes: Any, series: Series, points: Sequence[Point]) -> None:
    colour = COLOURS[series.colour]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if series.style == "points":
        axes.plot(xs, ys, linestyle="none", marker="o", markersize=4.5, color=colour)
    elif series.style == "target":
        axes.plot(xs, ys, linestyle="none", marker="D", markersize=6, color=colour, zorder=5)
    elif series.style == "dashed":
        axes.plot(xs, ys, linestyle=(0, (4, 3)), linewidth=1.2, color=colour)
    else:
        axes.plot(xs, ys, linewidth=1.5, color=colour, marker="o" if len(points) == 1 else None)


def _draw_band(axes: Any, band: Band) -> None:
    colour = COLOURS[band.colour]
    if band.x is None:
        axes.axhspan(band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    else:
        middle = (band.low + band.high) / 2
        axes.errorbar([band.x], [middle], [(band.high - band.low) / 2], color=colour, capsize=4, linewidth=1.6)


def _scale(axis: Any, set_scale: Any, logarithmic: bool, whole: bool = False) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

    if logarithmic:
        set_scale("log")
        low, high = axis.get_view_interval()
        ticks = log_ticks(float(low), float(high))
        axis.set_minor_locator(NullLocator())
        spread = high >= 4 * low
    else:
        low, high = axis.get_view_interval()
        locator = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=whole)
        ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
        spread = False
    # Evenly spaced ticks share their number of decimals; 0.5, 1, 2 on a logarithmic axis do not.
    words = [compact(tick) for tick in ticks] if spread else aligned(ticks)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(words))


def aligned(ticks: Sequence[float]) -> list[str]:
    """The words of ticks, all with as many decimals as the one that needs most."""
    words = [compact(tick) for tick in ticks]
    if any(word[-1].isalpha() for word in words):
        return words
    decimals = max((len(word.partition(".")[2]) for word in words), default=0)
    return [f"{tick:.{decimals}f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]


def log_ticks(low: float, high: float) -> list[float]:
    """At most about eight round ticks on a logarithmic axis: 1-2-5 steps, decades where those are too many, and evenly
    spaced numbers where the axis spans less than a factor of four."""
    if high < 4 * low:
        first = math.floor(math.log10(high - low)) - 1
        for step in (factor * 10.0**power for power in (first, first + 1) for factor in (1, 2, 5)):
            ticks = [round(index * step, 12) for index in range(math.ceil(low / step), math.floor(high / step) + 1)]
            if len(ticks) <= 6:
                return ticks
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) <= 8 else [tick for tick in inside if math.log10(tick) % 1 == 0]


def _inline(svg: str, name: str) -> str:
    """Cut everything but the element, let CSS size and colour it, and make its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg)
    svg = re.sub(r'^<svg ([^>]*?)height="[^"]*"', r'<svg aria-hidden="true" \1', svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    for colour, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    # The page's own typeface; sizes and anchors stay.
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()
