"""`parlance pretrain --preset`: a model of characters from start to end, resumed to the same bits."""

import json
from pathlib import Path

import pytest
import torch

from parlance.cli.main import main
from parlance.models.checkpoints import load_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("presets") / "corpus"
    folder.mkdir()
    text = "".join(f"line {n} of {n * n % 97}, and more.\n" for n in range(1200))
    for split, part in (("train", text[:20_000]), ("validation", text[20_000:24_000]), ("test", text[24_000:])):
        record = {"id": split, "text": part, "source": "made here", "metadata": {}}
        (folder / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    return folder


SMALL = [
    "--tokenizer",
    "char:60",
    "--set",
    "layers=1",
    "--set",
    "width=64",
    "--set",
    "model.ngram_tables=[[2,3600],[3,500]]",
]


@pytest.mark.parametrize("kind", ["transformer", "feedforward"])
def test_speedrun_learns_and_is_saved_in_its_own_form(corpus, kind, tmp_path):
    words = ["pretrain", str(corpus), "--model", kind, "--preset", "speedrun", *SMALL, "--steps", "12", "--out"]
    assert main([*words, str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 2.5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == f"parlance-{kind}"
    # The same command gives the same bits, dropout included.
    assert main([*words, str(tmp_path / "again")]) == 0
    first, second = (load_model(tmp_path / name) for name in ("out", "again"))
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_preset_is_for_networks_that_have_it(corpus, tmp_path, capsys):
    words = ["pretrain", str(corpus), "--preset", "speedrun", "--out", str(tmp_path / "out")]
    assert main([*words, "--model", "ngram"]) == 2
    assert "--preset speedrun is for networks" in capsys.readouterr().err
    assert main([*words, "--model", "recurrent", "--steps", "1"]) == 2
    assert "is there for transformer, feedforward alone" in capsys.readouterr().err
