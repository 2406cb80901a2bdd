"""`parlance run` as a user types it: the default recipe, own texts, and the commands that use what came out."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import STEPS, OwnTexts, parlance

from parlance.cli.main import main

WEIGHTS = "model.safetensors"
CHECKPOINTS = ("base", "sft", "reward", "policy")


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_default_recipe_leaves_every_result_and_no_scaffolding(default_run: Path) -> None:
    for folder in CHECKPOINTS:
        names = {path.name for path in (default_run / folder).iterdir()}
        assert {WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json", "stage.json"} <= names
    for name in ("language_modelling", "reward_model", "policy", "samples"):
        assert (default_run / "evaluation" / f"{name}.json").is_file()
    for name in ("recipe.yaml", "environment.json", "summary.json", "report.html", "corpus/card.json", "ngram"):
        assert (default_run / name).exists()
    left = [path for path in default_run.rglob("*") if path.name == "training" or path.name.endswith(".partial")]
    assert left == []


def test_every_number_of_the_results_is_finite(default_run: Path) -> None:
    files = [default_run / "summary.json", *(default_run / "evaluation").glob("*.json")]
    for file in files:
        found = list(numbers(json.loads(file.read_text())))
        assert found, file
        assert all(map(math.isfinite, found)), file
    assert all(map(math.isfinite, numbers(metrics(default_run))))


def test_the_summary_tells_the_stages_in_order_with_their_time(default_run: Path) -> None:
    summary = json.loads((default_run / "summary.json").read_text())
    names = [stage["name"] for stage in summary["stages"]]
    assert set(names) == {
        *("corpus", "tokenizer", "ngram", "pretrain", "demonstrations", "sft"),
        *("rankings", "reward", "ppo", "evaluation"),
    }
    assert [name for name in names if name in STEPS] == list(STEPS)
    assert sum(stage["seconds"] for stage in summary["stages"]) == pytest.approx(summary["seconds"], rel=0.2)
    assert 1e8 < summary["peak_memory_bytes"] < 3e9


def test_training_learns_and_the_log_says_each_step_once(default_run: Path) -> None:
    rows = metrics(default_run)
    for stage, steps in STEPS.items():
        mine = [row["step"] for row in rows if row["stage"] == stage]
        assert mine == sorted(set(mine))
        assert mine[-1] == steps
    ladder = json.loads((default_run / "evaluation" / "language_modelling.json").read_text())["models"]
    bits = {model["name"]: model["bits_per_byte"] for model in ladder}
    assert 0 < bits["5-gram"] < bits["unigram"]
    assert 0 < bits["Transformer"] < bits["unigram"]


def test_the_report_fetches_nothing(default_run: Path) -> None:
    page = (default_run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "<script" not in page
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^\s>"']*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert "@import" not in page


def test_the_run_directory_stands_for_its_most_advanced_model(
    default_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "module.py"
    file.write_text("def add(a, b):\n    return a + b\n")
    scores = {}
    for model in ("", "policy", "base", "ngram"):
        assert main(["score", str(default_run / model), str(file), "--json"]) == 0
        scores[model] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores[""]["nats"] == scores["policy"]["nats"] != scores["base"]["nats"]
    assert all(score["bytes"] == 32 and 0 < score["bits_per_byte"] < 20 for score in scores.values())


def test_chat_answers_what_is_piped_into_it(default_run: Path) -> None:
    answer = parlance(
        "chat", default_run, "--max-tokens=8", "--temperature=1", stdin="def add(a, b):\n    return a + b\n"
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()


def test_generate_repeats_itself_with_the_same_seed(default_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(default_run / "base"), "def dedent(", "--max-tokens=12"]
    outside = parlance(*words)
    assert outside.returncode == 0, outside.stderr
    assert main(words) == 0
    assert capsys.readouterr().out == outside.stdout
    assert len(outside.stdout.strip()) > 0
    assert main([*words, "--seed=1"]) == 0
    assert capsys.readouterr().out != outside.stdout


def test_own_texts_alone_make_a_base_model(own: OwnTexts, tmp_path: Path) -> None:
    done = parlance(*own.run(), "--out", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert [stage["name"] for stage in summary["stages"]] == ["corpus", "tokenizer", "ngram", "pretrain", "evaluation"]
    folders = {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()}
    assert folders == {"corpus", "tokenizer", "tokens", "ngram", "base", "evaluation"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "PPO" not in page
    assert "simulated" not in page
    assert main(["generate", str(tmp_path / "run"), "def f(", "--max-tokens=4"]) == 0


def test_own_demonstrations_and_preferences_make_an_aligned_model(aligned_run: Path) -> None:
    for folder in CHECKPOINTS:
        assert (aligned_run / folder / WEIGHTS).is_file()
    reward = json.loads((aligned_run / "evaluation" / "reward_model.json").read_text())
    assert "simulated" not in reward["labeller"]
    assert reward["pairs"] > 0
    policy = json.loads((aligned_run / "evaluation" / "policy.json").read_text())
    assert "reward model" in policy["labeller"]
    assert all(map(math.isfinite, numbers([reward, policy])))
    held_out = {json.loads(line)["prompt"] for line in (aligned_run / "rankings" / "test.jsonl").open()}
    trained = {json.loads(line)["prompt"] for line in (aligned_run / "rankings" / "train.jsonl").open()}
    assert held_out
    assert not held_out & trained
