"""What `parlance run` prints at its end, from the files of a made-up run."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parlance.cli.results import print_run

SAMPLE = {
    "prompt": "def push(heap, item):\n    [bold]heap[/bold].append(item)",
    "reference": "Push an item onto the heap.",
    "base": "the the the \x1b[2J",
    "sft": "Return the heap.",
    "ppo": "Push the item.",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    def interval(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    def policy(score: float, kl: float) -> dict[str, Any]:
        return {"labeller_score": interval(score), "kl_to_sft": kl, "ended_share": 0.98, "distinct_ratio": 0.9}

    save(tmp_path, "summary.json", {"seconds": 482.3, "peak_memory_bytes": 1.5e9, "energy": {"kilowatt_hours": 0.002}})
    models = [{"name": "5-gram", "bits_per_byte": 1.71}, {"name": "Transformer", "bits_per_byte": 1.52}]
    save(tmp_path, "evaluation/language_modelling.json", {"bytes": 545_000, "models": models})
    policies = {"sft": policy(0.412, 0.0), "ppo": policy(0.523, 3.25)}
    found = {"prompts": 200, "labeller": "simulated: a rule", "win_rate": interval(0.64), "policies": policies}
    save(tmp_path, "evaluation/policy.json", found)
    reward = {"accuracy": interval(0.74), "baselines": {"length only": interval(0.58)}}
    save(tmp_path, "evaluation/reward_model.json", reward)
    save(tmp_path, "base/prediction.json", {"low": 2.5, "high": 3.0, "reached_loss": 2.87})
    save(tmp_path, "evaluation/samples.json", [SAMPLE] * 5)
    return tmp_path


def save(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def printed(run: Path, *, width: int, terminal: bool) -> str:
    file = io.StringIO()
    print_run(run, Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


def test_tables_and_verdicts(run: Path) -> None:
    words = " ".join(printed(run, width=200, terminal=False).split())
    for expected in (
        "Held-out text (545 kB)",
        "5-gram 1.710",
        "Transformer 1.520",
        "aligned 0.523 3.250",
        "PPO beats SFT on 64.0 % (59.0 to 69.0) of the prompts; judge: simulated: a rule",
        "orders 74.0 % (69.0 to 79.0) of held-out pairs as the labeller does; length only 58.0 %",
        "predicted 2.500 to 3.000, reached 2.870 nats per token",
        "time 8 min 2 s, peak memory 1.5 GB, energy about 2 Wh (estimate)",
        f"report: {run / 'report.html'}",
        f"chat {run}",
    ):
        assert expected in words


def test_answers_stand_side_by_side_on_a_wide_terminal(run: Path) -> None:
    wide = [line for line in printed(run, width=140, terminal=True).splitlines() if "Push the item." in line]
    assert len(wide) == 3, "three samples"
    assert all("Return the heap." in line for line in wide)
    for narrow in (printed(run, width=80, terminal=True), printed(run, width=140, terminal=False)):
        lines = [line for line in narrow.splitlines() if "Push the item." in line]
        assert [line.split() for line in lines] == [["aligned", "Push", "the", "item."]] * 3


def test_text_of_models_is_text(run: Path) -> None:
    out = printed(run, width=140, terminal=False)
    assert "[bold]heap[/bold].append(item)" in out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


def test_a_run_without_alignment(run: Path) -> None:
    for name in ("policy", "reward_model", "samples"):
        (run / f"evaluation/{name}.json").unlink()
    out = printed(run, width=100, terminal=False)
    assert "Transformer" in out
    assert "PPO" not in out
    assert "generate" in out


def test_energy_is_called_what_it_is(run: Path) -> None:
    for method, word in (
        ("measured: RAPL counters; a GPU is not counted", "measured"),
        ("estimate: processor time x 7 W; a GPU is not counted", "estimate"),
        ("estimate: processor time x 7 W; 1 GPU measured by NVML", "measured in part"),
    ):
        save(run, "summary.json", {"energy": {"kilowatt_hours": 0.002, "method": method}})
        assert f"energy about 2 Wh ({word})" in printed(run, width=200, terminal=False)
