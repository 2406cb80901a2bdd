"""From the files of a run to what its report says: facts, bars, samples and tables.

Every function takes a `RunFiles` and gives plain values for the template, or None (an empty list) where the run has no
such file: nothing is invented.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from parlance.core import formatting as form
from parlance.core.formatting import interval, listing, mapping, number, text
from parlance.pipeline.report_files import RunFiles

STAGES = {
    "ngram": "n-gram model",
    "pretrain": "Pre-training",
    "sft": "Fine-tuning",
    "reward": "Reward model",
    "ppo": "PPO",
}
"""Titles of stages; others are shown by their own name."""

POLICIES = {"base": "Base", "sft": "Fine-tuned", "ppo": "PPO", "reference": "Reference"}

COLOUR_OF_STAGE = {"pretrain": "base", "sft": "sft", "reward": "reward", "ppo": "ppo"}

COUNTS = ("removed", "documents", "bytes")
"""Fields of a cleaning step on the corpus card."""

LISTED = 12
"""Sources shown by name."""

SAMPLES_SHOWN, SAMPLE_CHARACTERS = 10, 1200
"""Samples in a report, and characters of each text; a longer one is cut with a note."""


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart made of text; `share` of the longest bar, 0..1."""

    name: str
    value: str
    share: float
    colour: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; cells of all columns but the first are set as numbers."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Name and value of the run and its model, for the line under the title."""
    summary, model = run.get("summary.json"), mapping(run.get("summary.json").get("model"))
    tokenizer, tokens = run.get("tokenizer/report.json"), run.last("pretrain", "items")
    pairs: list[tuple[str, str | None]] = [
        ("Recipe", text(summary.get("recipe"))),
        ("Started", form.moment(summary.get("started"))),
        ("Seed", _shown(summary.get("seed"), form.figure)),
        ("Architecture", text(model.get("architecture"))),
        ("Parameters", _shown(model.get("parameters"), form.count)),
        ("Layers, width, heads", _joined(model, ("layers", "width", "heads"))),
        ("Context", _shown(model.get("context_length"), lambda value: f"{form.count(value)} tokens")),
        ("Precision", text(model.get("precision"))),
        ("Vocabulary", _shown(tokenizer.get("vocab_size", model.get("vocab_size")), form.count)),
        ("Tokenizer", text(tokenizer.get("kind"))),
        ("Bytes per token", _shown(tokenizer.get("bytes_per_token"), lambda value: form.decimal(value, 2))),
        ("Tokens trained on", _shown(tokens, form.magnitude)),
    ]
    return [(name, value) for name, value in pairs if value is not None]


def best_models(run: RunFiles) -> tuple[tuple[str, float] | None, tuple[str, float] | None]:
    """(name, bits per byte) of the best trained network and of the best count-based model."""
    scored = [(name, bits) for name, bits, _ in _ladder_rows(run)]
    ours = [row for row in scored if not _count_based(row[0])]
    counted = [row for row in scored if _count_based(row[0])]
    return min(ours, key=lambda row: row[1], default=None), min(counted, key=lambda row: row[1], default=None)


def ladder(run: RunFiles) -> list[Bar]:
    """Models of the run by bits per byte, worst first."""
    rows = sorted(_ladder_rows(run), key=lambda row: -row[1])
    longest = max((bits for _, bits, _ in rows), default=1.0)
    return [
        Bar(name, form.decimal(bits), bits / longest, "plain" if _count_based(name) else "base", note)
        for name, bits, note in rows
    ]


def reward_model(run: RunFiles) -> list[dict[str, Any]]:
    """Accuracy on held-out pairs of the reward model, of its baselines, and by how clear the labels are; 0..1."""
    document = run.get("evaluation/reward_model.json")
    candidates = [("Reward model", document.get("accuracy"), "reward")]
    candidates += [(form.label(name), value, "plain") for name, value in mapping(document.get("baselines")).items()]
    for entry in listing(document.get("by_gap")):
        low, high = number(mapping(entry).get("gap_low")), number(mapping(entry).get("gap_high"))
        if low is not None and high is not None:
            name = f"Reward model, labels {form.decimal(low, 2)} to {form.decimal(high, 2)} apart"
            candidates.append((name, entry, "reward"))
    rows = []
    for name, value, colour in candidates:
        found = interval(value)
        if found:
            middle, low, high = found
            low, high = (middle if low is None else low), (middle if high is None else high)
            shown = form.with_interval(found, "percent")
            rows.append({"name": name, "value": shown, "colour": colour, "low": low, "high": high, "middle": middle})
    return rows


def policy_tables(run: RunFiles) -> list[Table]:
    """Policies side by side: sampled answers, and greedy ones where they were evaluated."""
    document = run.get("evaluation/policy.json")
    tables = [_policy_table(document, "")]
    greedy = mapping(document.get("greedy"))
    tables.append(_policy_table(greedy if "policies" in greedy else {"policies": greedy}, "Greedy decoding"))
    return [table for table in tables if table is not None]


def policy_note(run: RunFiles) -> str:
    """How the policies were compared, and by whom."""
    document = run.get("evaluation/policy.json")
    measured = _sentence(document, ("prompts", "prompts"), ("temperature", "sampling temperature"))
    return " ".join(part for part in (measured, _labelled(document)) if part)


def reward_note(run: RunFiles) -> str:
    """What the reward model was measured on, and who labelled it."""
    document = run.get("evaluation/reward_model.json")
    measured = _sentence(document, ("pairs", "pairs"), ("prompts", "prompts"))
    return " ".join(part for part in (measured, _labelled(document)) if part)


def samples(run: RunFiles) -> list[dict[str, Any]]:
    """Prompts with the answers of each model, cut to a readable length."""
    shown = []
    for entry in listing(run.documents.get("evaluation/samples.json"))[:SAMPLES_SHOWN]:
        sample = mapping(entry)
        prompt, scores = text(sample.get("prompt")), mapping(sample.get("scores"))
        if prompt is None:
            continue
        answers = []
        for key in ("base", "sft", "ppo", "reference"):
            answer = sample.get(key)
            if isinstance(answer, str):
                score = number(scores.get(key))
                answers.append(
                    {
                        "name": POLICIES[key],
                        "colour": key if key != "reference" else "plain",
                        "score": None if score is None else form.decimal(score, 2),
                        "text": _cut(answer),
                    }
                )
        shown.append({"prompt": _cut(prompt), "answers": answers})
    return shown


def corpus(run: RunFiles) -> dict[str, Any] | None:
    """Sources and licences with their documents, what was not read, a table of cleaning steps and one of splits."""
    card = run.get("corpus/card.json")
    steps, splits = [mapping(step) for step in listing(card.get("steps"))], mapping(card.get("splits"))
    cleaning = [(text(step.get("step")), {field: step.get(field) for field in COUNTS}) for step in steps]
    parts = [(name, mapping(values)) for name, values in splits.items()]
    shown = {
        "sources": _counted(card.get("sources"), number(card.get("source_count")), "documents"),
        "licences": _counted(card.get("licences"), None, "documents"),
        "skipped": _counted(mapping(card.get("reading")).get("skipped"), None, "files"),
        "steps": _records(cleaning, "Cleaning step", ("Removed", "Documents left", "Bytes left")),
        "splits": _records(parts, "Split", ("Documents", "Bytes", "Groups"), ("documents", "bytes", "groups")),
        "split_method": text(card.get("split_method")),
    }
    return shown if any(shown.values()) else None


def stage_bars(run: RunFiles) -> list[Bar]:
    """Seconds of each stage."""
    rows = []
    for entry in listing(run.get("summary.json").get("stages")):
        stage = mapping(entry)
        name, seconds = text(stage.get("name")), number(stage.get("seconds"))
        if name is not None and seconds is not None:
            rows.append((name, seconds, text(stage.get("status")) or ""))
    longest = max((seconds for _, seconds, _ in rows), default=0.0) or 1.0
    return [
        Bar(
            STAGES.get(name, form.label(name)),
            form.duration(seconds),
            seconds / longest,
            COLOUR_OF_STAGE.get(name, "plain"),
            "" if status in ("done", "finished", "ok") else status,
        )
        for name, seconds, status in rows
    ]


def resources(run: RunFiles) -> list[tuple[str, str]]:
    """Whole time, peak memory, and energy with its bounds and method."""
    summary = run.get("summary.json")
    energy = mapping(summary.get("energy"))
    used, low, high = (number(energy.get(key)) for key in ("kilowatt_hours", "low", "high"))
    bounds = f" ({form.energy(low)} to {form.energy(high)})" if low is not None and high is not None else ""
    rows = [
        ("Time of the whole run", _shown(summary.get("seconds"), form.duration)),
        ("Peak memory", _shown(summary.get("peak_memory_bytes"), form.size)),
        ("Energy", None if used is None else form.energy(used) + bounds),
        ("How the energy was found", None if used is None else text(energy.get("method"))),
    ]
    return [(name, value) for name, value in rows if value is not None]


def environment(run: RunFiles) -> list[tuple[str, str]]:
    """Machine and versions."""
    document = run.get("environment.json")
    rows: list[tuple[str, str | None]] = [
        ("Processor", text(document.get("processor"))),
        ("Cores", _shown(document.get("cores"), form.count)),
        ("Threads", _shown(document.get("threads"), form.count)),
        ("Memory", _shown(document.get("memory_bytes"), form.size)),
        ("GPU", text(document.get("cuda"))),
        ("Platform", text(document.get("platform"))),
        ("Python", text(document.get("python"))),
    ]
    rows += [(name, text(version)) for name, version in mapping(document.get("versions")).items()]
    return [(name, value) for name, value in rows if value is not None]


def _policy_table(document: dict[str, Any], caption: str) -> Table | None:
    policies = {name: mapping(values) for name, values in mapping(document.get("policies")).items()}
    order: list[str] = [name for name in ("base", "sft", "ppo") if name in policies]
    order += [name for name in policies if name not in order]
    titles = {
        "labeller_score": ("Simulated labeller's score", "decimal"),
        "reward_score": ("Reward-model score", "decimal"),
        "kl_to_sft": ("KL to the fine-tuned model, nats per answer", "two decimals"),
        "ended_share": ("Answers that end by themselves", "percent"),
        "distinct_ratio": ("Answers that differ", "percent"),
        "mean_words": ("Words per answer", "one decimal"),
    }
    fields = [*titles, *(field for values in policies.values() for field in values if field not in titles)]
    rows = []
    for field in dict.fromkeys(fields):
        title, kind = titles.get(field, (form.label(field), "decimal"))
        cells = [interval(policies[name].get(field)) for name in order]
        if any(cell is not None for cell in cells):
            rows.append([title, *("" if cell is None else form.with_interval(cell, kind) for cell in cells)])
    return Table(["", *(POLICIES.get(name, form.label(name)) for name in order)], rows, caption) if rows else None


def _ladder_rows(run: RunFiles) -> list[tuple[str, float, str]]:
    """(name, bits per byte, note) of each evaluated model."""
    rows = []
    for entry in listing(run.get("evaluation/language_modelling.json").get("models")):
        model = mapping(entry)
        name, bits = text(model.get("name")), number(model.get("bits_per_byte"))
        nats, parameters = number(model.get("nats_per_token")), number(model.get("parameters"))
        if name is not None and bits is not None:
            notes = [f"{form.magnitude(parameters)} parameters"] if parameters is not None else []
            notes += [f"{form.decimal(nats)} nats per token"] if nats is not None else []
            rows.append((name, bits, ", ".join(notes)))
    return rows


def _count_based(name: str) -> bool:
    return re.search(r"gram|uniform", name.lower()) is not None


def _records(
    records: Sequence[tuple[str | None, dict[str, Any]]],
    first: str,
    head: tuple[str, ...],
    fields: tuple[str, ...] = COUNTS,
) -> Table | None:
    """Named records as a table of counts; a cell without a number stays empty."""
    rows = [
        [form.label(name), *(_shown(record.get(field), form.count) or "" for field in fields)]
        for name, record in records
        if name
    ]
    return Table([first, *head], rows) if any(any(row[1:]) for row in rows) else None


def _sentence(document: dict[str, Any], *fields: tuple[str, str]) -> str | None:
    """ "Measured on 400 pairs, 100 prompts." of the fields that are there."""
    parts = []
    for field, words in fields:
        value = number(document.get(field))
        if value is not None:
            parts.append(f"{words} {form.figure(value)}" if field == "temperature" else f"{form.figure(value)} {words}")
    return f"Measured on {', '.join(parts)}." if parts else None


def _counted(value: Any, total: float | None, things: str) -> list[str]:
    """ "name: 12 documents" for the largest entries of an object of counts, and how many more there are."""
    counts = [(name, amount) for name, entry in mapping(value).items() if (amount := number(entry)) is not None]
    counts.sort(key=lambda entry: -entry[1])
    lines = [f"{name}: {form.count(amount)} {things}" for name, amount in counts[:LISTED]]
    more = max(total or 0, len(counts)) - len(lines)
    return [*lines, f"and {form.count(more)} more"] if lines and more > 0 else lines


def _joined(values: dict[str, Any], fields: Sequence[str]) -> str | None:
    numbers = [number(values.get(field)) for field in fields]
    return ", ".join(form.count(value) for value in numbers if value is not None) if None not in numbers else None


def _shown(value: Any, show: Callable[[float], str]) -> str | None:
    found = number(value)
    return None if found is None else show(found)


def _labelled(document: dict[str, Any]) -> str | None:
    """Who labelled or judged, as a sentence."""
    labeller = text(document.get("labeller"))
    if labeller is None:
        return None
    return f"The labeller is {labeller}." if simulated(document) else f"Labels and wins: {labeller}."


def simulated(document: dict[str, Any]) -> bool:
    """Whether a result file says that its labeller is no person."""
    return (text(document.get("labeller")) or "").startswith("simulated")


def _cut(words: str) -> str:
    if len(words) <= SAMPLE_CHARACTERS:
        return words
    return f"{words[:SAMPLE_CHARACTERS]}\N{HORIZONTAL ELLIPSIS} [cut: {form.count(len(words))} characters in all]"
