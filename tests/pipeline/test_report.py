"""The report of a made-up run: its sections, its escaping, its independence of any network, runs with missing parts."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parlance.core import formatting as form
from parlance.core.errors import UserError
from parlance.pipeline.report import write_report
from parlance.pipeline.report_figures import MOST_POINTS, Series, aligned, line_chart, log_ticks, thin

LABELLER = "simulated: word and trigram overlap with the author's docstring, and form"
ATTACK = "<script>alert('x')</script> & \"quoted\" $x^2$"


def save(folder: Path, path: str, value: Any) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(value if isinstance(value, str) else json.dumps(value))


def fake_run(folder: Path) -> Path:
    """A whole run with alignment, with figures of a plausible size."""
    stages = [("corpus", 6.1), ("tokenizer", 2.4), ("ngram", 3.3), ("pretrain", 301.4), ("demonstrations", 2.2)]
    stages += [("sft", 35.2), ("rankings", 11.6), ("reward", 20.8), ("ppo", 96.0), ("evaluation", 17.5)]
    summary = {
        "command": "parlance run --recipe small --budget 8m --seed 1 --out runs/demo",
        "recipe": "small",
        "started": "2026-03-01T10:15:30+00:00",
        "seconds": 482.7,
        "budget_seconds": 480.0,
        "seed": 1,
        "stages": [{"name": name, "seconds": seconds, "status": "done"} for name, seconds in stages],
        "peak_memory_bytes": 1_873_000_000,
        "energy": {
            "kilowatt_hours": 0.00183,
            "low": 0.00078,
            "high": 0.0039,
            "method": "estimate: processor time x 7 W per busy core (bounds 3 and 15 W); a GPU is not counted",
        },
        "model": {
            "parameters": 4_823_040,
            "layers": 6,
            "width": 256,
            "heads": 4,
            "context_length": 256,
            "vocab_size": 4096,
            "precision": "bfloat16",
            "architecture": "Transformer, decoder",
        },
        "choices": [
            "Width 256 and 6 layers: the largest model whose predicted loss still falls within 240 s on this machine.",
            "bfloat16: the processor has AMX, matrix products are 4.1 times faster than in fp32.",
            "Vocabulary of 4096: " + ATTACK,
        ],
    }
    save(folder, "summary.json", summary)
    environment = {"platform": "Linux-6.1-x86_64", "python": "3.11.9", "processor": "Example CPU @ 2.1 GHz", "cores": 2}
    environment |= {"threads": 2, "memory_bytes": 16_700_000_000, "fast_bfloat16": True, "cuda": None}
    save(folder, "environment.json", {**environment, "versions": {"parlance": "0.1.0", "torch": "2.13.0+cpu"}})
    save(folder, "recipe.yaml", "name: small\nseed: 1\npretrain:\n  seconds: 240\n  learning_rate: 0.003\n")
    # The form that parlance.text.preparation writes.
    steps = [("read", 0, 1840, 12_400_000), ("too short", 12, 1828, 12_399_800), ("undecodable", 3, 1825, 12_310_000)]
    steps += [("exact duplicate", 50, 1775, 12_050_000), ("near duplicate", 102, 1673, 11_200_000)]
    card = {
        "kind": "corpus",
        "reading": {"files": 1850, "documents": 1840, "bytes": 12_400_000, "replaced": 2, "skipped": {"binary": 10}},
        "sources": {"python-3.11.9 standard library": 1700, "notes": 140},
        "source_count": 2,
        "licences": {"PSF-2.0": 1700, "not stated": 140},
        "steps": [dict(zip(("step", "removed", "documents", "bytes"), step, strict=True)) for step in steps],
        "split_method": "whole groups",
        "splits": {
            "train": {"documents": 1505, "bytes": 9_810_000, "groups": 310, "group_names": []},
            "validation": {"documents": 68, "bytes": 545_000, "groups": 17, "group_names": ["heapq"]},
            "test": {"documents": 100, "bytes": 845_000, "groups": 18, "group_names": ["ast"]},
        },
        "config": {"min_characters": 16},
        "sample_ids": ["heapq.py"],
        "python": "3.11.9",
    }
    save(folder, "corpus/card.json", card)
    save(folder, "tokenizer/report.json", {"kind": "bpe", "vocab_size": 4096, "bytes_per_token": 3.42})
    # The form that parlance.training.dial writes.
    curve = [[180_000 * 37**step, 4.12 * 37 ** (-0.1 * step)] for step in (0, 0.5, 1)]
    prediction = {
        "x": "tokens",
        "pilot": [{"x": 180_000, "loss": 4.12}, {"x": 360_000, "loss": 3.75}],
        "others": [{"x": 200_000, "loss": 4.4}],
        "planned_x": curve[-1][0],
        "predicted_loss": curve[-1][1],
        "low": 2.3,
        "high": 3.0,
        "curve": curve,
        "reached_loss": 2.874,
        "reached_x": 7_364_608,
    }
    save(folder, "base/prediction.json", prediction)
    save(folder, "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in fake_metrics()))
    models = [("uniform", 8.0), ("unigram", 2.91), ("3-gram", 1.93), ("5-gram", 1.71), ("Transformer", 1.22)]
    ladder = [{"name": name, "bits_per_byte": bits} for name, bits in models]
    ladder[-1] |= {"nats_per_token": 2.894, "parameters": 4_823_040}
    save(folder, "evaluation/language_modelling.json", {"bytes": 545_000, "split": "test", "models": ladder})
    reward = {
        "pairs": 600,
        "prompts": 100,
        "accuracy": {"value": 0.742, "low": 0.705, "high": 0.779},
        "baselines": {
            "length only": {"value": 0.581, "low": 0.54, "high": 0.62},
            "form only": {"value": 0.634, "low": 0.59, "high": 0.67},
        },
        "labeller": LABELLER,
        "by_gap": [
            {"gap_low": 0.02, "gap_high": 0.09, "pairs": 200, "value": 0.61, "low": 0.54, "high": 0.68},
            {"gap_low": 0.09, "gap_high": 0.21, "pairs": 200, "value": 0.74, "low": 0.68, "high": 0.80},
            {"gap_low": 0.21, "gap_high": 0.72, "pairs": 200, "value": 0.88, "low": 0.83, "high": 0.92},
        ],
    }
    save(folder, "evaluation/reward_model.json", reward)
    save(folder, "evaluation/policy.json", fake_policy())
    samples = []
    for index in range(3):
        prompt = f"### Instruction:\nWhat does the function `heapq.heappush` do? ({index})\n\n### Response:\n"
        answers = {
            "reference": "Push the value item onto the heap, maintaining the heap invariant.",
            "base": "The function is a list of the function is a list of the following: " * 3 + ATTACK,
            "sft": "Return the value of the item in the heap.",
            "ppo": "Push an item onto the heap, keeping the heap invariant.",
        }
        samples.append({"prompt": prompt, **answers, "scores": {"sft": 0.41 + index, "ppo": 0.83}})
    save(folder, "evaluation/samples.json", samples)
    return folder


def fake_policy() -> dict[str, Any]:
    def scores(middle: float, **others: float) -> dict[str, Any]:
        return {"labeller_score": {"value": middle, "low": middle - 0.03, "high": middle + 0.03}, **others}

    return {
        "prompts": 200,
        "temperature": 0.7,
        "labeller": LABELLER,
        "policies": {
            "base": scores(0.112, reward_score=-1.93, ended_share=0.11, distinct_ratio=1.0, mean_words=58.2),
            "sft": scores(
                0.483, reward_score=0.02, kl_to_sft=0.0, ended_share=0.96, distinct_ratio=0.93, mean_words=17.1
            ),
            "ppo": scores(
                0.561, reward_score=1.31, kl_to_sft=6.4, ended_share=0.99, distinct_ratio=0.88, mean_words=14.9
            ),
        },
        "win_rate": {"value": 0.643, "low": 0.58, "high": 0.705},
        "greedy": {"policies": {"sft": scores(0.51), "ppo": scores(0.57)}},
    }


def fake_metrics() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, 900):
        seconds = step * 240 / 899
        loss = 2.2 + 6.2 * (1 + seconds) ** -0.42 + 0.06 * math.sin(step * 12.9898)
        row = {"stage": "pretrain", "step": step, "seconds": seconds, "items": step * 8192, "loss": loss}
        if step % 180 == 0 or step == 899:
            row["validation_loss"] = loss + 0.05 if step < 899 else 2.874
        rows.append(row)
    for stage, start, steps in (("sft", 2.9, 120), ("reward", 0.69, 80)):
        for step in range(1, steps + 1):
            loss = start * (0.55 + 0.45 * math.exp(-step / 30)) + 0.02 * math.sin(step * 7.13)
            row = {"stage": stage, "step": step, "seconds": step * 0.3, "items": step * 32, "loss": loss}
            if step % 40 == 0:
                row["validation_loss"] = loss + 0.04
            if stage == "reward":
                row["accuracy"] = 0.5 + 0.3 * (1 - math.exp(-step / 25)) + 0.04 * math.sin(step * 7.13)
            if stage == "reward" and step % 40 == 0:
                row["validation_accuracy"] = 0.73
            rows.append(row)
    for step in range(1, 41):
        progress, wave = step / 40, math.sin(step * 3.7)
        row = {"stage": "ppo", "step": step, "seconds": step * 2.4, "episodes": step * 64}
        row |= {"reward": 1.3 * progress + 0.08 * wave, "labeller_score": 0.48 + 0.09 * progress + 0.01 * wave}
        row |= {"kl": 6.4 * progress**1.5, "entropy": 1.9 - 0.5 * progress, "clip_fraction": 0.08 + 0.02 * wave}
        row |= {
            "response_tokens": 24 - 4 * progress + wave,
            "ended_share": 0.96 + 0.03 * progress,
            "distinct_ratio": 0.94,
        }
        rows.append(row)
    return rows


class Page(HTMLParser):
    """Text, section ids, all ids and tags of a page; checks that tags nest."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words)).replace(form.THIN, " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
            if tag == "section":
                self.sections.append(str(values["id"]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def render(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text()
    return html, Page(html)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Page]:
    folder = fake_run(tmp_path_factory.mktemp("runs") / "demo")
    return folder, *render(folder)


def test_every_section_is_there(whole: tuple[Path, str, Page]) -> None:
    _, _, page = whole
    expected = [
        "model",
        "loss",
        "ladder",
        "alignment",
        "samples",
        "reward",
        "corpus",
        "resources",
        "choices",
        "reproduce",
    ]
    assert page.sections == expected
    assert page.tags >= {"svg", "table", "nav", "figure"}


def test_headline_and_goals_say_what_the_files_say(whole: tuple[Path, str, Page]) -> None:
    words = whole[2].text
    assert "a language model of 4.82 million parameters from 9.81 MB of text in 8 min 3 s." in words
    assert "at 1.220 bits per byte, against 1.710 for the 5-gram model." in words
    assert "wins 64.3 % (58.0 to 70.5) of prompts against the fine-tuned model, as a simulated labeller judges" in words
    assert "Time of the whole run 8 min 3 s at most 8 min ✗ missed" in words
    assert "2.874 nats per token predicted 2.300 to 3.000 ✓ met" in words
    assert "1.220 bits per byte below 1.710 (5-gram) ✓ met" in words
    assert "74.2 % (70.5 to 77.9) above 63.4 % (form only) ✓ met" in words
    assert "0.561 (0.531 to 0.591) above 0.483 (fine-tuned) ✓ met" in words


def test_other_figures_are_shown(whole: tuple[Path, str, Page]) -> None:
    words = whole[2].text
    for expected in (
        "4 823 040",
        "1.87 GB",
        "1.83 Wh (0.78 Wh to 3.9 Wh)",
        "estimate: processor time",
        "Near duplicate 102 1 673 11 200 000",
        "python-3.11.9 standard library: 1 700 documents",
        "binary: 10 files",
        "Divided by whole groups.",
        "Reward-model score −1.930 0.020 1.310",
        "nats per answer 0.00 6.40",
        "parlance run --recipe small",
        "learning_rate: 0.003",
        "2.13.0+cpu",
        "score 0.83",
        "Greedy decoding",
        "Measured on 600 pairs, 100 prompts. The labeller is simulated: word and trigram overlap",
        "Reward model, labels 0.09 to 0.21 apart 74.0 % (68.0 to 80.0)",
        "2026-03-01 10:15 UTC",
    ):
        assert expected in words


def test_nothing_is_executed_or_fetched(whole: tuple[Path, str, Page]) -> None:
    _, html, page = whole
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "<script" not in html
    assert page.text.count("<script>alert('x')</script> & \"quoted\" $x^2$") == 4, "shown as text, nowhere else"
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http" not in without_namespaces
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r"\son\w+=", html)


def test_page_is_small_deterministic_and_its_ids_are_its_own(whole: tuple[Path, str, Page]) -> None:
    folder, html, page = whole
    assert len(html.encode()) < 600_000
    assert len(set(page.ids)) == len(page.ids)
    for target in re.findall(r'(?:href="|url\()#([^")]+)', html):
        assert target in page.ids
    assert render(folder)[0] == html


def test_charts_follow_the_colours_of_the_page(whole: tuple[Path, str, Page]) -> None:
    html = whole[1]
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 5 + 6
    for chart in charts:
        assert not re.search(r"#[0-9a-f]{6}\b", chart)
        assert set(re.findall(r"var\(--(\w+)\)", chart)) <= set(re.findall(r"--(\w+):", html))
        assert " pt" not in chart[:200]


def test_a_run_without_alignment_has_fewer_sections(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    for path in ("reward_model", "policy", "samples"):
        (folder / f"evaluation/{path}.json").unlink()
    rows = [row for row in fake_metrics() if row["stage"] == "pretrain"]
    save(folder, "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _, page = render(folder)
    assert page.sections == ["model", "loss", "ladder", "corpus", "resources", "choices", "reproduce"]
    assert "After alignment" not in page.text


def test_a_run_that_has_only_just_begun(tmp_path: Path) -> None:
    save(tmp_path, "recipe.yaml", "name: small\n")
    _, page = render(tmp_path)
    assert page.sections == ["reproduce"]
    assert "None" not in page.text


def test_broken_files_become_notes(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    save(folder, "evaluation/policy.json", '{"prompts": 20')
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    broken = [
        *lines[:400],
        '{"stage": "pretrain", "loss"',
        "[1, 2]",
        '{"stage": "pretrain", "seconds": "x", "loss": NaN}',
    ]
    save(folder, "metrics.jsonl", "\n".join([*broken, *lines[400:], '{"stage": "ppo", "st']))
    _, page = render(folder)
    assert page.sections[-1] == "notes"
    assert "evaluation/policy.json could not be read" in page.text
    assert "3 lines of metrics.jsonl" in page.text
    assert "wins" not in page.text
    assert "alignment" in page.sections, "the curves of PPO are still there"


@pytest.mark.parametrize("junk", [None, 3, "words", [], {}, [1, None], {"value": None}, float("nan"), -1e300, 10**400])
def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path, junk: Any) -> None:
    folder = fake_run(tmp_path / "run")
    for path in ("summary.json", "base/prediction.json", "evaluation/policy.json", "corpus/card.json"):
        document = json.loads((folder / path).read_text())
        save(folder, path, dict.fromkeys(document, junk))
    for path in ("evaluation/samples.json", "evaluation/reward_model.json", "environment.json"):
        save(folder, path, junk)
    save(
        folder, "evaluation/language_modelling.json", {"models": [junk, {"name": "Transformer", "bits_per_byte": junk}]}
    )
    save(folder, "metrics.jsonl", json.dumps({"stage": "pretrain", "seconds": 1.0, "loss": junk, "items": junk}))
    _, page = render(folder)
    assert "None" not in page.text
    assert "nan" not in page.text.replace("dominant", "")


def test_verdicts_are_unclear_where_the_interval_holds_the_limit(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    policy = fake_policy()
    policy["win_rate"] = {"value": 0.53, "low": 0.47, "high": 0.59}
    policy["policies"]["ppo"]["labeller_score"] = {"value": 0.40, "low": 0.37, "high": 0.43}
    save(folder, "evaluation/policy.json", policy)
    save(folder, "base/prediction.json", {"low": 3.0, "high": 3.2, "reached_loss": 2.9})
    words = render(folder)[1].text
    assert "53.0 % (47.0 to 59.0) above 50.0 % ? unclear" in words
    assert "0.400 (0.370 to 0.430) above 0.483 (fine-tuned) ✗ missed" in words
    assert "✗ missed, lower than predicted" in words


def test_long_samples_are_cut_with_a_note(tmp_path: Path) -> None:
    save(tmp_path, "evaluation/samples.json", [{"prompt": "p", "ppo": "a" * 50_000}] * 50)
    html, page = render(tmp_path)
    assert "[cut: 50 000 characters in all]" in page.text
    assert len(html) < 40_000


def test_folders_that_are_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no file of a run"):
        write_report(tmp_path)


def test_formats() -> None:
    assert [form.duration(value) for value in (4.24, 59.97, 482.7, 480, 3599.9, 12_000)] == [
        "4.2 s",
        "1 min",
        "8 min 3 s",
        "8 min",
        "1 h",
        "3 h 20 min",
    ]
    assert [form.size(value) for value in (512, 2_500, 9_810_000, 1.873e9)] == [
        "512 bytes",
        "2.5 kB",
        "9.81 MB",
        "1.87 GB",
    ]
    assert form.size(999_700) == "1 MB"
    assert form.magnitude(999_700) == "1 million"
    assert [form.compact(value) for value in (0.5, 250, 2500, 25_000, 1.5e6)] == ["0.5", "250", "2500", "25k", "1.5M"]
    assert form.figure(-1234567) == f"−1{form.THIN}234{form.THIN}567"
    assert form.energy(0.00183) == "1.83 Wh"
    assert form.number(True) is None


def test_sources_beyond_the_first_are_counted(tmp_path: Path) -> None:
    save(tmp_path, "corpus/card.json", {"sources": {f"book {n:02}": 100 - n for n in range(50)}, "source_count": 950})
    words = render(tmp_path)[1].text
    assert "book 11: 89 documents and 938 more" in words
    assert "book 12" not in words


def test_evenly_spaced_ticks_have_equal_decimals() -> None:
    assert aligned([0.5, 0.75, 1.0]) == ["0.50", "0.75", "1.00"]
    assert aligned([-10.0, 0.0, 10.0]) == ["−10", "0", "10"]
    assert aligned([0.0, 5000.0, 10_000.0]) == ["0", "5000", "10k"]


def test_log_ticks_are_round_inside_and_few() -> None:
    for low, high in ((1.6, 3.1), (1.85, 1.93), (0.7, 430), (1e5, 3e9), (2.0, 2.0001), (1, 3.99)):
        ticks = log_ticks(low, high)
        assert 3 <= len(ticks) <= 9
        assert all(low <= tick <= high for tick in ticks)


def test_thinning_keeps_the_mean() -> None:
    points = [(float(index), float(index % 7)) for index in range(3 * MOST_POINTS)]
    kept = thin(points)
    assert len(kept) == MOST_POINTS
    assert sum(y for _, y in kept) / len(kept) == pytest.approx(sum(y for _, y in points) / len(points))


def test_a_chart_of_one_point_and_of_words_that_look_like_markup() -> None:
    svg = line_chart("one", [Series("base", [(1.0, 2.0)])], x_label="<b> & $x$", y_label="y", log_x=True)
    assert "&lt;b&gt; &amp; $x$" in svg


def test_matplotlib_is_not_imported_with_the_module() -> None:
    code = "import sys, parlance.pipeline.report; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_without_independent_labels_says_so(tmp_path: Path) -> None:
    policy = fake_policy() | {"labeller": "the reward model (what PPO optimises; not an independent judge)"}
    save(tmp_path, "evaluation/policy.json", policy)
    words = render(tmp_path)[1].text
    assert "as the reward model judges, which PPO itself optimises" in words
    assert "Labels and wins: the reward model (what PPO optimises; not an independent judge)." in words
