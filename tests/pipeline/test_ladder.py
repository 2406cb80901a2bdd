"""The ladder: every model is trained and measured once, and its picture says what the figures say."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from parlance.core.errors import UserError
from parlance.pipeline import ladder
from parlance.pipeline.ladder import NETWORKS, LadderConfig, run_ladder
from parlance.pipeline.ladder_chart import ladder_chart, spread
from parlance.text.preparation import PreparationConfig, prepare_corpus
from parlance.text.readers import FileCorpus
from parlance.text.tokenizers import train_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("ladder")
    (home / "texts").mkdir()
    for number in range(40):
        text = " ".join(
            f"{word} {number * 7 + place}" for place, word in enumerate(["one", "two", "three", "four", "five"] * 8)
        )
        (home / "texts" / f"{number}.txt").write_text(text)
    options = PreparationConfig(near_duplicates=False)
    prepare_corpus({"": FileCorpus([home / "texts"])}, home / "corpus", options, seed=0)
    return home / "corpus"


def test_all_models_are_measured_once_and_a_stopped_comparison_goes_on(corpus, tmp_path, monkeypatch):
    config = LadderConfig(
        seconds=0.5, context_length=16, orders=(1, 3), networks=("feed-forward", "Elman"), points=2, held_out_bytes=400
    )
    tokenizer = train_tokenizer([], "byte")
    result = run_ladder(corpus, tokenizer, tmp_path, config, seed=0, device=CPU)
    rows = {row["name"]: row for row in result["models"]}
    assert list(rows) == ["1-gram", "3-gram", "feed-forward", "Elman"]
    assert rows["3-gram"]["curve"][0][1] < rows["1-gram"]["curve"][0][1] < 8
    assert all(0 < bits < 12 for row in result["models"] for _, bits in row["curve"])
    for name in ("feed-forward", "Elman"):
        times = [seconds for seconds, _ in rows[name]["curve"]]
        assert times == sorted(times)
        assert rows[name]["tokens"] > 0
    assert json.loads((tmp_path / "ladder.json").read_text()) == result
    assert "Elman" in (tmp_path / "ladder.svg").read_text()
    # What is there is not made again; what is missing is.
    trained = []
    original = ladder._network
    monkeypatch.setattr(ladder, "_network", lambda rung, *rest: trained.append(rung.name) or original(rung, *rest))
    (tmp_path / "rows" / "Elman.json").unlink()
    again = run_ladder(corpus, tokenizer, tmp_path, config, seed=0, device=CPU)
    assert trained == ["Elman"]
    assert again["models"][:3] == result["models"][:3]


def test_a_network_that_is_not_known_is_refused(corpus, tmp_path):
    with pytest.raises(UserError, match=r"no network 'RNN' in the ladder: feed-forward, convolutional"):
        run_ladder(corpus, train_tokenizer([], "byte"), tmp_path, LadderConfig(networks=("RNN",)), seed=0, device=CPU)


def test_the_picture_names_every_model_with_its_figure():
    models = [{"name": rung.name, "curve": [[1, 3.0], [60, 1.5 + place / 10]]} for place, rung in enumerate(NETWORKS)]
    models.append({"name": "5-gram", "curve": [[0.5, 1.9]]})
    svg = ladder_chart({"models": models})
    for row in models:
        assert row["name"] in svg
    for row in models[:-1]:
        assert f"{row['name']} {row['curve'][-1][1]:.3f}" in svg
    assert ladder_chart({"models": models}) == svg
    assert not re.search(r"https?://(?!www\.w3\.org)", svg)


def test_labels_keep_their_order_and_do_not_overlap():
    values = [1.0, 1.01, 1.02, 3.0, 2.99, 1.015]
    places = spread(values, 0.5)
    assert sorted(range(6), key=places.__getitem__) == sorted(range(6), key=values.__getitem__)
    ordered = sorted(places)
    assert all(later - earlier >= 0.5 - 1e-9 for earlier, later in pairwise(ordered))
    assert spread([5.0], 1.0) == [5.0]
