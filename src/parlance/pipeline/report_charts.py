"""The curves of a report: pre-training with its predicted interval, the prediction, fine-tuning, and PPO.

charts = loss_charts(run)      # [] for a run without metrics
"""

from dataclasses import dataclass
from typing import Any, Literal

from parlance.core import formatting as form
from parlance.core.formatting import listing, mapping, number, text
from parlance.pipeline.report_figures import Band, Point, Series, line_chart
from parlance.pipeline.report_files import RunFiles


@dataclass(frozen=True)
class Chart:
    """A figure with its legend: (colour, form of the mark, words)."""

    title: str
    svg: str
    legend: list[tuple[str, str, str]]
    caption: str = ""


def loss_charts(run: RunFiles) -> list[Chart]:
    """Curves of pre-training (with the predicted interval), of the prediction, of fine-tuning and the reward model."""
    charts = [_pretraining_chart(run), _prediction_chart(run)]
    charts.append(_stage_chart(run, "sft", "Fine-tuning", "loss", "loss (nats per answer token)"))
    charts.append(_stage_chart(run, "reward", "Reward model", "loss", "pairwise loss (nats)"))
    charts.append(_stage_chart(run, "reward", "Reward model, order of pairs", "accuracy", "share ordered right"))
    return [chart for chart in charts if chart is not None]


def alignment_charts(run: RunFiles) -> list[Chart]:
    """What PPO did over its episodes; shares are drawn together."""
    panels = [
        ("reward", "Reward-model score", "mean score", "What PPO maximises: the reward model's opinion."),
        (
            "labeller_score",
            "Simulated labeller's score",
            "mean score",
            "What it is meant to improve: the simulated labeller's own opinion.",
        ),
        ("kl", "Distance from the fine-tuned model", "KL (nats per sequence)", ""),
        ("response_tokens", "Length of the answers", "tokens per answer", ""),
        ("entropy", "Entropy of the policy", "nats per token", ""),
    ]
    charts = []
    for field, title, unit, caption in panels:
        points = run.curve("ppo", "episodes", field)
        if points:
            svg = line_chart(f"ppo-{field}", [Series("ppo", points)], x_label="episodes", y_label=unit)
            charts.append(Chart(title, svg, [], caption))
    shares: list[tuple[str, str, Literal["line", "dashed"], str]] = [
        ("ended_share", "ppo", "line", "answers that end by themselves"),
        ("distinct_ratio", "ink", "line", "answers that differ"),
        ("clip_fraction", "plain", "dashed", "updates clipped"),
    ]
    series, legend = [], []
    for field, colour, style, words in shares:
        points = run.curve("ppo", "episodes", field)
        if points:
            series.append(Series(colour, points, style))
            legend.append((colour, str(style), words))
    if series:
        svg = line_chart("ppo-shares", series, x_label="episodes", y_label="share", unit_range=True)
        charts.append(Chart("Shares", svg, legend))
    return charts


def _pretraining_chart(run: RunFiles) -> Chart | None:
    training = run.curve("pretrain", "seconds", "loss")
    validation = run.curve("pretrain", "seconds", "validation_loss")
    if not training and not validation:
        return None
    prediction = run.get("base/prediction.json")
    low, high = number(prediction.get("low")), number(prediction.get("high"))
    legend = [("base", "line", "training")] if training else []
    series = [Series("base", training)] if training else []
    if validation:
        series.append(Series("ink", validation, "points"))
        legend.append(("ink", "dot", "validation"))
    band = None
    if low is not None and high is not None:
        band = Band(low, high)
        legend.append(("plain", "band", "predicted final validation loss"))
    svg = line_chart(
        "pretrain", series, x_label="training time (s)", y_label="loss (nats per token)", log_x=True, band=band
    )
    return Chart("Pre-training", svg, legend)


def _prediction_chart(run: RunFiles) -> Chart | None:
    document = run.get("base/prediction.json")
    kind = text(document.get("x")) or "budget"
    pilots, others = _pilot_points(document.get("pilot")), _pilot_points(document.get("others"))
    predicted, planned = number(document.get("predicted_loss")), number(document.get("planned_x"))
    reached, reached_x = number(document.get("reached_loss")), number(document.get("reached_x"))
    low, high = number(document.get("low")), number(document.get("high"))
    if not pilots or predicted is None or planned is None or min(predicted, planned) <= 0:
        return None
    series = [Series("base", pilots, "points")]
    legend = [("base", "dot", "pilot runs")]
    if others:
        series.append(Series("plain", others, "points"))
        legend.append(("plain", "dot", "pilot runs of other sizes"))
    law = _points(document.get("curve"))
    if law:
        series.append(Series("plain", law, "dashed"))
        legend.append(("plain", "dashed", "predicted"))
    band, words = None, ""
    if low is not None and high is not None and 0 < low <= high:
        band, words = Band(low, high, x=planned), f" ({form.decimal(low)} to {form.decimal(high)})"
        legend.append(("plain", "whisker", "predicted interval"))
    outcome = ""
    if reached is not None and reached_x is not None:
        series.append(Series("ink", [(reached_x, reached)], "target"))
        legend.append(("ink", "diamond", "reached"))
        outcome = f"; reached {form.decimal(reached)}"
    svg = line_chart(
        "prediction",
        series,
        x_label={"tokens": "training tokens", "seconds": "training time (s)"}.get(kind, kind),
        y_label="validation loss (nats per token)",
        log_x=True,
        log_y=True,
        band=band,
    )
    caption = f"Predicted {form.decimal(predicted)}{words} before the run{outcome}."
    return Chart("Prediction and outcome", svg, legend, caption)


def _pilot_points(rows: Any) -> list[Point]:
    """Tokens and loss of pilots, shortest first."""
    found = [(number(mapping(row).get("x")), number(mapping(row).get("loss"))) for row in listing(rows)]
    return sorted((x, loss) for x, loss in found if x is not None and loss is not None and min(x, loss) > 0)


def _points(rows: Any) -> list[Point]:
    """Pairs of numbers above zero."""
    pairs = [[number(value) for value in listing(row)] for row in listing(rows)]
    return [(x, y) for x, y in (pair for pair in pairs if len(pair) == 2) if x and y and min(x, y) > 0]


def _stage_chart(run: RunFiles, stage: str, title: str, field: str, unit: str) -> Chart | None:
    """A figure of training as a line, of validation as points, over steps."""
    training, validation = run.curve(stage, "step", field), run.curve(stage, "step", f"validation_{field}")
    if not training and not validation:
        return None
    legend = [(stage, "line", "training")] if training else []
    series = [Series(stage, training)] if training else []
    if validation:
        series.append(Series("ink", validation, "points"))
        legend.append(("ink", "dot", "validation"))
    return Chart(title, line_chart(f"{stage}-{field}", series, x_label="steps", y_label=unit), legend)
