"""What `parlance run` prints at its end: a table of results, three sample dialogues, and where the report is.

Everything is read from the run directory's `summary.json`, `base/prediction.json` and `evaluation/*.json`; what is not
there is left out. On a wide terminal the answers of a sample stand side by side, elsewhere below each other.
"""

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from parlance.cli.invocation import program
from parlance.cli.output import printable
from parlance.core import formatting as form
from parlance.pipeline.report_files import RunFiles, read_run_files

SAMPLES = 3
SIDE_BY_SIDE = 100
"""Columns from which on a terminal shows answers side by side."""
PROMPT_LINES = 12
"""Of a longer prompt only the first lines are shown."""
ANSWERS = (("base", "base"), ("sft", "instructed"), ("ppo", "aligned"))
"""Models by their key in the evaluation files, and the name they are shown by."""


def print_run(folder: Path, console: Console | None = None) -> None:
    """Print the results of a finished run."""
    console = console or Console()
    run = read_run_files(folder)
    for part in (language_models(run), policies(run), verdicts(run), resources(run)):
        if part is not None:
            console.print(part)
            console.print()
    wide = console.is_terminal and console.width >= SIDE_BY_SIDE
    samples = [form.mapping(sample) for sample in form.listing(run.documents.get("evaluation/samples.json"))[:SAMPLES]]
    for number, sample in enumerate(samples, start=1):
        console.print(dialogue(sample, number, wide=wide))
        console.print()
    console.print(Text(f"report: {folder / 'report.html'}"))
    model = "chat" if samples else "generate"
    console.print(Text(f"try:    {program()} {model} {folder}" + ("" if samples else ' "..."')))


def language_models(run: RunFiles) -> RenderableType | None:
    """Bits per byte of every model on held-out text."""
    found = run.get("evaluation/language_modelling.json")
    table = Table(title=_title("Held-out text", found.get("bytes"), form.size), title_justify="left", box=None)
    table.add_column("model")
    for column in ("bits per byte", "nats per token", "parameters"):
        table.add_column(column, justify="right")
    for row in map(form.mapping, form.listing(found.get("models"))):
        bits, nats, parameters = (
            form.number(row.get(key)) for key in ("bits_per_byte", "nats_per_token", "parameters")
        )
        name = form.text(row.get("name"))
        if name is not None and bits is not None:
            table.add_row(
                name,
                form.decimal(bits),
                "" if nats is None else form.decimal(nats),
                "" if parameters is None else form.magnitude(parameters),
            )
    return table if table.row_count else None


def policies(run: RunFiles) -> RenderableType | None:
    """How the instructed and the aligned model answer held-out prompts."""
    found = run.get("evaluation/policy.json")
    rows = form.mapping(found.get("policies"))
    columns = [
        ("labeller_score", "simulated labeller", form.decimal),
        ("reward_score", "reward", form.decimal),
        ("kl_to_sft", "KL to SFT", form.decimal),
        ("ended_share", "ended", form.percent),
        ("distinct_ratio", "distinct", form.percent),
    ]
    present = [column for column in columns if any(column[0] in form.mapping(row) for row in rows.values())]
    if not present:
        return None
    prompts = form.number(found.get("prompts"))
    table = Table(title=_title("Answers to held-out prompts", prompts, form.count), title_justify="left", box=None)
    table.add_column("model")
    for _, name, _ in present:
        table.add_column(name, justify="right")
    for key, name in ANSWERS:
        if key in rows:
            values = [(form.interval(form.mapping(rows[key]).get(column)), show) for column, _, show in present]
            table.add_row(name, *("" if value is None else show(value[0]) for value, show in values))
    return table


def verdicts(run: RunFiles) -> RenderableType | None:
    """One line each: the win rate, the reward model, the prediction."""
    lines = []
    policy, reward = run.get("evaluation/policy.json"), run.get("evaluation/reward_model.json")
    if (wins := form.interval(policy.get("win_rate"))) is not None:
        judge = form.text(policy.get("labeller")) or "not stated"
        lines.append(f"PPO beats SFT on {form.with_interval(wins, 'percent')} of the prompts; judge: {judge}")
    if (accuracy := form.interval(reward.get("accuracy"))) is not None:
        line = f"reward model: orders {form.with_interval(accuracy, 'percent')} of held-out pairs as the labeller does"
        for name, value in form.mapping(reward.get("baselines")).items():
            if (baseline := form.interval(value)) is not None:
                line += f"; {name} {form.percent(baseline[0])}"
        lines.append(line)
    prediction = run.get("base/prediction.json")
    low, high, reached = (form.number(prediction.get(key)) for key in ("low", "high", "reached_loss"))
    if low is not None and high is not None and reached is not None:
        lines.append(
            f"validation loss: predicted {form.decimal(low)} to {form.decimal(high)}, reached {form.decimal(reached)} "
            "nats per token"
        )
    return Group(*(Text(printable(line)) for line in lines)) if lines else None


def resources(run: RunFiles) -> RenderableType | None:
    """Time, memory and energy of the whole run."""
    summary = run.get("summary.json")
    parts = []
    if (seconds := form.number(summary.get("seconds"))) is not None:
        parts.append(f"time {form.duration(seconds)}")
    if (memory := form.number(summary.get("peak_memory_bytes"))) is not None:
        parts.append(f"peak memory {form.size(memory)}")
    figures = form.mapping(summary.get("energy"))
    if (energy := form.number(figures.get("kilowatt_hours"))) is not None:
        method = form.text(figures.get("method")) or ""
        part = "measured in part" if "measured" in method else "estimate"
        kind = "measured" if method.startswith("measured") else part
        parts.append(f"energy about {form.energy(energy)} ({kind})")
    return Text(", ".join(parts)) if parts else None


def dialogue(sample: dict[str, Any], number: int, *, wide: bool) -> RenderableType:
    """A prompt, its reference, and what each model answered."""
    given = [(name, form.text(sample.get(key)) or "(nothing)") for key, name in ANSWERS if key in sample]
    reference = form.text(sample.get("reference"))
    below = [] if reference is None else [("reference", reference)]
    parts: list[RenderableType] = [Rule(f"sample {number}", align="left", characters="-"), prompt(sample)]
    if wide:
        row = Table(box=None, expand=True, pad_edge=False, show_header=False)
        for _ in given:
            row.add_column(ratio=1)
        row.add_row(*(Panel(Text(printable(answer)), title=name, title_align="left") for name, answer in given))
        return Group(*parts, _below_each_other(below), row)
    return Group(*parts, _below_each_other(below + given))


def prompt(sample: dict[str, Any]) -> RenderableType:
    """The first lines of a sample's prompt."""
    lines = printable(form.text(sample.get("prompt")) or "").splitlines()
    shown = lines[:PROMPT_LINES] + (["..."] if len(lines) > PROMPT_LINES else [])
    return Text("\n".join(shown), style="dim")


def _below_each_other(answers: list[tuple[str, str]]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, answer in answers:
        table.add_row(name, Text(printable(answer)))
    return table


def _title(words: str, amount: Any, show: Any) -> str:
    value = form.number(amount)
    return words if value is None else f"{words} ({show(value)})"
