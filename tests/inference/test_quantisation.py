"""Integers for weights: as near as they can be, better where a text says what matters, and what they cost."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.inference.model import load
from parlance.inference.quantisation.calibrated import _fitted_scales, calibrated, calibrated_matrices
from parlance.inference.quantisation.quantise import (
    QuantisationConfig,
    bits_per_byte,
    calibration_windows,
    quantise,
    read_texts,
)
from parlance.inference.quantisation.rounding import codes_of, group_scales, nearest
from parlance.models.checkpoints import save_model
from parlance.models.quantised_checkpoint import quantised_names

TEXT = "".join(f"line {number}: the quick brown fox\n" for number in range(200))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tiny_transformer, tiny_tokenizer, tmp_path) -> Path:
    """A checkpoint folder with its tokenizer."""
    save_model(tmp_path / "m", tiny_transformer(mlp_width=96), end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path / "m")
    return tmp_path / "m"


def test_eight_bits_are_half_a_step_away_at_most():
    weight = random(16, 96)
    matrix = nearest(weight, 8)
    step = matrix.scales.float().repeat_interleave(32, dim=1)
    # A scale that is rounded down cuts the largest weight off, by at most 127 steps / 2^11.
    assert ((matrix.weight() - weight).abs() <= step * (0.5 + 127 / 2**11)).all()
    assert (matrix.weight() - weight).abs().mean() < 0.3 * step.mean()
    assert int(matrix.codes.abs().max()) == 127


def test_four_bits_take_the_best_of_the_scales():
    weight = random(4, 64, seed=3)
    matrix = nearest(weight, 4)
    for row, group in itertools.product(range(4), range(2)):
        part = weight[row, 32 * group : 32 * group + 32]
        errors = []
        for share in torch.arange(64, 31, -1) / 64:
            scale = (part.abs().max() / 7 * share).half().float()
            errors.append(float(((part / scale).round().clamp(-8, 7) * scale - part).square().sum()))
        found = (matrix.weight()[row, 32 * group : 32 * group + 32] - part).square().sum()
        assert float(found) == pytest.approx(min(errors), rel=1e-5)
        assert min(errors) < errors[0]


def test_zeros_and_giants():
    weight = torch.zeros(2, 64)
    weight[0, 40] = 3.0
    for bits in (4, 8):
        matrix = nearest(weight, bits)
        assert matrix.weight()[0, 40] == pytest.approx(3.0, rel=1e-3)
        assert matrix.weight().count_nonzero() == 1
        assert (matrix.scales >= 0).all()
    with pytest.raises(UserError, match=r"weights as large as 1e\+08"):
        nearest(torch.full((1, 32), 1e8), 4)


def test_inputs_that_do_not_depend_on_each_other_leave_the_nearest():
    weight = random(8, 64)
    assert torch.equal(calibrated(weight, torch.eye(64), 8).codes, nearest(weight, 8).codes)
    assert torch.equal(calibrated(weight, torch.zeros(64, 64), 4).codes, nearest(weight, 4).codes)


def test_scales_are_those_of_least_squares():
    weight, inputs = random(3, 96), random(200, 96, seed=1) @ random(96, 96, seed=2)
    scales = group_scales(weight, 4)
    codes = codes_of(weight, scales, 4).float()
    found = _fitted_scales(weight, codes, (inputs.T @ inputs).double(), scales).float()
    for row in range(3):
        # Columns: what each group of codes gives on the inputs.
        columns = torch.stack([inputs[:, 32 * g : 32 * g + 32] @ codes[row, 32 * g : 32 * g + 32] for g in range(3)], 1)
        wanted = torch.linalg.lstsq(columns.double(), (inputs @ weight[row]).double()).solution
        torch.testing.assert_close(found[row], wanted.float(), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_less_is_lost_on_the_inputs_that_are_seen(bits):
    weight = random(24, 128)
    inputs = random(500, 16, seed=1) @ random(16, 128, seed=2) + 0.1 * random(500, 128, seed=3)

    def lost(matrix) -> float:
        return float((inputs @ (matrix.weight() - weight).T).square().sum())

    assert lost(calibrated(weight, inputs.T @ inputs, bits)) < 0.5 * lost(nearest(weight, bits))


@torch.inference_mode()
def test_a_calibrated_model_is_nearer_than_the_nearest(tiny_transformer):
    def made():
        return tiny_transformer(mlp_width=96, positions="alibi", kv_heads=1, qk_norm=False)

    windows = torch.randint(0, 256, (40, 32), generator=torch.Generator().manual_seed(1))
    test = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(2))
    exact, rounded, best = made(), made(), made()
    names = quantised_names(exact, 4)
    with Progress("test", total=len(names)) as progress:
        matrices = calibrated_matrices(best, windows, names, progress)
    assert matrices.keys() == names.keys()
    assert {matrix.bits for matrix in matrices.values()} == {4, 8}
    for name, bits in names.items():
        rounded.get_parameter(name).copy_(nearest(exact.get_parameter(name), bits).weight())
        best.get_parameter(name).copy_(matrices[name].weight())

    def error(model) -> float:
        return float((model.forward(test)[0] - exact.forward(test)[0]).square().mean())

    assert error(best) < 0.7 * error(rounded)
    again = calibrated_matrices(made(), windows, names, Progress("test"))
    assert all(torch.equal(again[name].codes, matrices[name].codes) for name in names)


def test_a_folder_and_its_figures(folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    config = QuantisationConfig(bits=4, method="calibrated", calibration_tokens=2000, window=32, held_out_bytes=500)
    texts = read_texts(tmp_path / "text.txt", config)
    assert TEXT.startswith(texts.calibration[0])
    assert len(texts.held_out[0]) == 500
    assert TEXT[len(texts.calibration[0]) :].startswith(texts.held_out[0])
    assert texts.calibration[0].endswith("fox\n")
    assert 0.89 < len(texts.calibration[0]) / len(TEXT) <= 0.9
    facts = quantise(folder, tmp_path / "q", config, texts)
    assert facts["bits_per_byte_before"] == pytest.approx(
        load(folder, "cpu", "float32").score(texts.held_out[0]).bits_per_byte
    )
    opened = load(tmp_path / "q", "cpu", "float32")
    assert facts["bits_per_byte_after"] == pytest.approx(opened.score(texts.held_out[0]).bits_per_byte)
    assert facts["loss_percent"] == pytest.approx(
        100 * (facts["bits_per_byte_after"] / facts["bits_per_byte_before"] - 1)
    )
    assert facts["bytes_after"] < 0.4 * facts["bytes_before"]
    assert facts["family"] == "qwen3"
    assert (tmp_path / "q" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    with pytest.raises(UserError, match="quantised already"):
        quantise(tmp_path / "q", tmp_path / "again", config, texts)
    with pytest.raises(UserError, match="needs --text"):
        quantise(folder, tmp_path / "again", config)
    assert not (tmp_path / "again").exists()


def test_a_corpus_is_read_by_its_splits(folder, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split, texts in (("train", ["abc " * 50, "def " * 50]), ("validation", ["ghi " * 20, "jkl " * 20])):
        lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
        (corpus / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    config = QuantisationConfig(calibration_tokens=128, window=32, held_out_bytes=100)
    texts = read_texts(corpus, config)
    assert texts.calibration[0].startswith("abc")
    assert [len(text) for text in texts.held_out] == [80, 20]
    opened = load(folder, "cpu", "float32")
    windows = calibration_windows(opened, texts.calibration, config)
    assert windows.shape == (4, 32)
    assert windows[0, :4].tolist() == [256, *b"abc"]
    assert windows[-1, -4:].tolist() == [*b"def "]
    nats = sum(opened.score(text).nats for text in texts.held_out)
    assert bits_per_byte(opened, texts.held_out) == pytest.approx(nats / 100 / 0.6931472)


def test_bad_input_is_one_sentence(folder, tiny_transformer, tiny_tokenizer, tmp_path, capsys):
    from parlance.cli.main import main

    def fails(*words: str | Path) -> str:
        assert main(["quantize", *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return err.splitlines()[-1]

    out = tmp_path / "out"
    (tmp_path / "empty").write_text("")
    assert "--bits 3: weights have 8 or 4 bits" in fails(folder, "--bits", "3", "--out", out)
    assert "already exists; nothing is overwritten" in fails(folder, "--out", folder)
    assert "has no text to hold out" in fails(folder, "--text", tmp_path / "empty", "--out", out)
    assert "cannot read" in fails(folder, "--text", tmp_path / "missing", "--out", out)
    assert "needs --text" in fails(folder, "--method", "calibrated", "--out", out)
    assert "holds no model" in fails(tmp_path / "nowhere", "--out", out)
    save_model(tmp_path / "odd", tiny_transformer(mlp_width=80), end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path / "odd")
    assert "has 80 inputs, and integers come in groups of 32" in fails(tmp_path / "odd", "--out", out)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


def test_the_command_writes_a_model_that_the_others_open(folder, tmp_path, capsys):
    from parlance.cli.main import main

    (tmp_path / "text.txt").write_text(TEXT)
    words = ["quantize", folder, "--bits", "8", "--text", tmp_path / "text.txt", "--out", tmp_path / "q", "--json"]
    assert main([str(word) for word in words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["method"] == "nearest"
    assert abs(facts["loss_percent"]) < 1
    assert main(["score", str(tmp_path / "q"), str(tmp_path / "text.txt"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert main(["convert", str(tmp_path / "q"), str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert main(["score", str(tmp_path / "whole"), str(tmp_path / "text.txt"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(scored, rel=1e-4)
    assert main(["convert", str(tmp_path / "q"), str(tmp_path / "q.gguf"), "--to", "gguf", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "qwen3"
    assert main(["convert", str(tmp_path / "q"), str(tmp_path / "x"), "--type", "q8_0"]) == 2
    assert "--type belongs to --to gguf" in capsys.readouterr().err
