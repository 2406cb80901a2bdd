"""`parlance plan` as a user types it: figures, tables, one JSON object, and wrong words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parlance.cli.main import main
from parlance.models.checkpoints import save_model
from parlance.models.transformer import Transformer
from parlance.scaling.laws import CORRECTED


def plan(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The object that --json prints."""
    assert main(["plan", *(str(word) for word in words), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Losses of the corrected law at nine budgets, seven sizes each, with a little noise."""
    generator = np.random.default_rng(0)
    lines = ["parameters,tokens,loss"]
    for flops in np.geomspace(6e18, 3e21, 6):
        for size in CORRECTED.optimum(flops).parameters * np.geomspace(0.2, 5, 7):
            loss = CORRECTED.predict(size, flops / 6 / size) * np.exp(0.002 * generator.standard_normal())
            lines.append(f"{size:.6g},{flops / 6 / size:.6g},{loss:.6f}")
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def test_the_example_comes_near_the_published_run(capsys: pytest.CaptureFixture[str]) -> None:
    """LLaMA 65B: about 21 days, 449 MWh, without being told its utilisation."""
    words = ("--params", "65b", "--tokens", "1.4t", "--gpu", "a100-80gb", "--gpus", "2048")
    made = plan(capsys, *words)
    assert made["days"] == pytest.approx(21, rel=0.15)
    assert made["kilowatt_hours"] == pytest.approx(449_000, rel=0.15)
    assert made["flops_6nd"] == pytest.approx(5.46e23, rel=0.01)
    assert made["fits"]
    assert made["layout"]["bytes"]["total"] < 80 * 2**30
    axes = ("data", "shard", "expert", "context", "tensor", "pipeline")
    assert len(made["layouts"]) > 20
    assert all(np.prod([row[axis] for axis in axes]) == 2048 for row in made["layouts"])
    assert main(["plan", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "65 billion parameters",
        "estimated: 52.0% of the peak",
        "by published runs",
        "tokens a second and device",
        "PUE 1.1",
        "wts",
    ):
        assert part in out, part


def test_a_money_budget_becomes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(capsys, "--money", "1000", "--gpu", "h100-80gb", "--gpus", "8", "--mfu", "0.4")
    assert made["dollars"] == pytest.approx(1000, rel=0.2)
    assert made["mfu"] == 0.4
    assert made["sizes"] == "parameters and tokens: best division of the compute"
    assert made["predicted_loss"] == pytest.approx(CORRECTED.predict(made["active_parameters"], made["tokens"]))


def test_experts_spend_all_of_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """6 N D counts the weights that a token meets: of 40 billion in 8 experts, two a token, 12 billion."""
    experts = ("--experts", "8", "--experts-per-token", "2", "--gpus", "64", "--flops", "1e22")
    made = plan(capsys, "--params", "40b", *experts)
    assert made["flops_6nd"] == pytest.approx(1e22)
    assert made["parameters"] == pytest.approx(40e9, rel=0.05)
    best = plan(capsys, *experts)
    assert best["flops_6nd"] == pytest.approx(1e22)
    assert best["active_parameters"] == pytest.approx(CORRECTED.optimum(1e22).parameters, rel=0.05)
    assert best["parameters"] > 2 * best["active_parameters"]


def test_what_is_not_known_is_not_stated(capsys: pytest.CaptureFixture[str]) -> None:
    """Small runs have no loss, little of anything is not zero, and an own device has no price."""
    device = "peak=30,memory=12,bandwidth=360,watts=170"
    words = ("--params", "100k", "--tokens", "10m", "--batch", "10000", "--gpu", device)
    made = plan(capsys, *words)
    assert (made["predicted_loss"], made["gpu"], made["dollars"]) == (None, "described", None)
    assert made["batch_note"] == "--batch 10000 rounded to 5 whole sequences that the devices divide"
    assert made["days_range"][0] < made["days"] < made["days_range"][1]
    assert main(["plan", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "none: the law was fitted to 70 million parameters or more" in out
    assert " 0 device hours" not in out
    assert " ms " in out
    assert "plain data parallel" not in out, "one device"


def test_a_checkpoint_has_its_sizes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_transformer: Callable[..., Transformer]
) -> None:
    model = tiny_transformer()
    save_model(tmp_path / "model", model, end_of_text=256, pad=257)
    for place in (tmp_path / "model", tmp_path / "model" / "config.json"):
        made = plan(capsys, place, "--tokens", "1m", "--gpu", "rtx-3090")
        assert made["parameters"] == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)
        assert (made["gpus"], made["shape"]["context"]) == (1, 64)
        assert made["dollars"] is None
    assert main(["plan", str(tmp_path / "model"), "--params", "7b"]) == 2
    assert "has its sizes" in capsys.readouterr().err


def test_own_runs_make_the_law(capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "isoflop.svg"
    law = plan(capsys, "--runs", runs, "--picture", picture)
    assert law["status"] == "converged"
    assert law["alpha"] == pytest.approx(CORRECTED.alpha, rel=0.1)
    low, high = law["intervals"]["e"]
    assert low < law["e"] < high
    assert picture.read_text().rstrip().endswith("</svg>")
    made = plan(capsys, "--runs", runs, "--flops", "1e22", "--gpus", "64")
    assert made["law"]["loss"]["low"] < made["predicted_loss"] < made["law"]["loss"]["high"]
    assert made["predicted_loss"] == pytest.approx(CORRECTED.optimum(1e22).loss, rel=0.01)
    assert made["tokens"] == pytest.approx(CORRECTED.optimum(1e22).tokens, rel=0.15)
    assert main(["plan", "--runs", str(runs)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "N ~ C^0.5" in out
    largest = 10 * 3e21
    low, value, high = (law["optimum"]["parameters"][end] for end in ("low", "value", "high"))
    assert law["optimum"]["flops"] == pytest.approx(largest, rel=1e-3)
    assert low < value < high
    assert f"N {value:.3g} ({low:.3g} to {high:.3g})" in out


def test_runs_that_do_not_tell_recommend_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Twenty tokens a parameter in every run."""
    table = tmp_path / "runs.csv"
    generator = np.random.default_rng(0)
    sizes = np.geomspace(1e8, 1e10, 12)
    losses = [CORRECTED.predict(n, 20 * n) * np.exp(0.003 * generator.standard_normal()) for n in sizes]
    rows = [f"{n},{20 * n},{loss}" for n, loss in zip(sizes, losses, strict=True)]
    table.write_text("\n".join(["N,D,loss", *rows]))
    assert main(["plan", "--runs", str(table), "--flops", "1e21"]) == 2
    assert "do not tell how to divide compute" in capsys.readouterr().err
    assert main(["plan", "--runs", str(table), "--params", "1b", "--tokens", "20b"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "nats a token" in out
    assert "Best division not recommended" in out


def test_a_picture_has_an_honest_name_and_a_folder(
    capsys: pytest.CaptureFixture[str], runs: Path, tmp_path: Path
) -> None:
    for picture, message in ((tmp_path / "x.png", "ends in .svg"), (tmp_path / "absent" / "x.svg", "make it first")):
        assert main(["plan", "--runs", str(runs), "--picture", str(picture)]) == 2
        assert message in capsys.readouterr().err
        assert not picture.exists()
    assert not (tmp_path / "absent").exists()


def test_a_configuration_that_does_not_tell_alone_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {"model_type": "bert", "architectures": ["BertForMaskedLM"],
              "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 32}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path / "config.json"), "--tokens", "1m"]) == 2
    assert "config.json alone does not tell this model's sizes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "say what to train"),
        ("--tokens 5b", "say what to train"),
        ("--params 0", "--params 0: it must be above zero"),
        ("--params 65x", "--params 65x: write a number"),
        ("--params 7b --gpu abacus", "known: v100-32gb"),
        ("--params 7b --gpus 64 --layout tensor=64", "the 32 heads cannot be divided into 64"),
        ("--params 7b --mfu 45", "share between 0 and 1"),
        ("--params 7b --price nan", "--price must be a number above zero"),
        ("--params 7b --layers 2 --width 64", "do not fit"),
        ("--params 7b --experts-per-token 3", "is more than the 1 experts"),
        ("--params 7b --precision fp8 --gpu a100-80gb", "no 8-bit matrix products"),
        ("--params 7b --tokens 1b --flops 1e20", "give two of"),
        ("--money 5 --flops 1e20", "one of the two"),
        ("--money 100 --gpu h200", "give --price"),
        ("--params 7b --picture x.svg", "give --runs too"),
        ("--params 7b --tokens 1000 --batch 1g", "larger than the 1000 tokens"),
        ("--params 7b --gpus 16 --layout shard=16,zero=0", "leave zero out"),
        ("--params 7b --gpu peak=100", "needs memory, bandwidth, watts too"),
        ("--runs absent.csv", "cannot read absent.csv: no such file"),
        ("absent --tokens 1b", "absent is not a checkpoint folder"),
    ],
)
def test_wrong_words_are_one_sentence(capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert main(["plan", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_too_few_runs_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "few.csv"
    table.write_text("N,D,loss\n1e8,1e9,3.5\n2e8,1e9,3.4\n3e8,2e9,3.2\n")
    assert main(["plan", "--runs", str(table)]) == 2
    assert "needs 5 runs or more, not 3" in capsys.readouterr().err


def test_a_plan_imports_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from parlance.cli.main import main; "
        "assert main(['plan', '--params', '7b', '--json']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)
