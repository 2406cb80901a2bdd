"""The character LSTM of TensorFlow's layout against TensorFlow's formula in numpy, on made and on real weights."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.inference.scoring import document_log_probs
from parlance.models.character_rnn import ABSENT_LOGIT, read_character_rnn

CELL = "rnnlm/multi_rnn_cell/cell_{}/basic_lstm_cell/{}"


def write(folder: Path, tensors: dict[str, np.ndarray], alphabet: str) -> None:
    manifest = {}
    for name, tensor in tensors.items():
        file = name.replace("/", "_")
        (folder / file).write_bytes(tensor.astype("<f4").tobytes())
        manifest[name] = {"filename": file, "shape": list(tensor.shape)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "vocab.json").write_text(json.dumps({character: i for i, character in enumerate(alphabet)}))


def made(width: int = 4, alphabet: str = "ab\nc ", layers: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "Variable": (),
        "embedding": (len(alphabet), width),
        "rnnlm/softmax_w": (width, len(alphabet)),
        "rnnlm/softmax_b": (len(alphabet),),
    }
    for layer in range(layers):
        shapes[CELL.format(layer, "kernel")] = (2 * width, 4 * width)
        shapes[CELL.format(layer, "bias")] = (4 * width,)
    return {name: np.asarray(random.normal(size=shape), dtype=np.float32) for name, shape in shapes.items()}


def read(folder: Path) -> dict[str, np.ndarray]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        name: np.fromfile(folder / entry["filename"], "<f4").reshape(entry["shape"]).astype(np.float64)
        for name, entry in manifest.items()
    }


def tensorflow_logits(tensors: dict[str, np.ndarray], ids: list[int], layers: int = 2) -> np.ndarray:
    """BasicLSTMCell with forget_bias 1, state zero at the start, in float64: (T, V)."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    width = tensors["embedding"].shape[1]
    h, c = np.zeros((layers, width)), np.zeros((layers, width))
    out = []
    for index in ids:
        x = tensors["embedding"][index].astype(np.float64)
        for layer in range(layers):
            gates = np.concatenate([x, h[layer]]) @ tensors[CELL.format(layer, "kernel")]
            i, j, f, o = np.split(gates + tensors[CELL.format(layer, "bias")], 4)
            c[layer] = c[layer] * sigmoid(f + 1.0) + sigmoid(i) * np.tanh(j)
            h[layer] = x = np.tanh(c[layer]) * sigmoid(o)
        out.append(x @ tensors["rnnlm/softmax_w"] + tensors["rnnlm/softmax_b"])
    return np.stack(out)


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.inference_mode()
def test_made_weights_give_the_formulas_logits(tmp_path, layers):
    tensors = made(layers=layers)
    write(tmp_path, tensors, "ab\nc ")
    model, tokenizer = read_character_rnn(tmp_path)
    ids = tokenizer.encode("a cab\nabba c" * 3)
    assert max(ids) < 5
    logits, _ = model.forward(torch.tensor([ids]))
    expected = tensorflow_logits(tensors, ids, layers)
    assert np.abs(logits[0, :, :5].double().numpy() - expected).max() < 1e-4
    assert torch.equal(logits[0, :, 5:], torch.full((len(ids), tokenizer.vocab_size - 5), ABSENT_LOGIT))
    # A document begins after the end-of-text token, which reads as a line break.
    end, line = ([tokenizer.end_of_text], tokenizer.encode("\n"))
    assert torch.equal(model.forward(torch.tensor([end]))[0], model.forward(torch.tensor([line]))[0])


def test_a_vocabulary_without_line_breaks_will_do(tmp_path):
    write(tmp_path, made(alphabet="abc"), "abc")
    model, tokenizer = read_character_rnn(tmp_path)
    assert tokenizer.decode(tokenizer.encode("cab")) == "cab"
    assert not bool(model.embed_tokens.weight[3:].any())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding": None}, "no tensor embedding"),
        ({CELL.format(0, "kernel"): None}, "no tensor rnnlm/multi_rnn_cell/cell_0"),
        ({CELL.format(1, "bias"): None}, "cell_1/basic_lstm_cell/bias"),
        ({"other": np.zeros(3)}, "unknown tensor other"),
        ({"embedding": np.zeros((5, 3))}, "shape"),
        ({"rnnlm/softmax_b": np.zeros(4)}, "shape"),
        ({"embedding": np.full((5, 4), np.nan)}, "not numbers"),
    ],
)
def test_wrong_tensors_are_refused_in_words(tmp_path, changes, words):
    tensors = {name: tensor for name, tensor in (made() | changes).items() if tensor is not None}
    write(tmp_path, tensors, "ab\nc ")
    with pytest.raises(UserError, match=words):
        read_character_rnn(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("embedding", "1234", "embedding has 4 bytes"),
        ("embedding", None, "cannot read"),
        ("manifest.json", "[]", "manifest.json"),
        ("manifest.json", '{"embedding": {"filename": "../embedding", "shape": [1]}}', "no file"),
        ("manifest.json", '{"embedding": {"filename": "embedding", "shape": "?"}}', "no shape"),
        ("vocab.json", '{"a": 0, "b": 2}', "ids are not 0 to 1"),
        ("vocab.json", '{"a": 0, "bc": 1}', "not one character"),
        ("vocab.json", '{"a": "0"}', "not a vocabulary"),
        ("vocab.json", None, "cannot read"),
    ],
)
def test_damaged_files_are_refused_in_words(tmp_path, file, content, words):
    write(tmp_path, made(), "ab\nc ")
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        read_character_rnn(tmp_path)


@pytest.mark.data
@torch.inference_mode()
def test_the_real_model_reads_and_writes_english(data_folder):
    folder = data_folder / "charrnn_lstm" / "charlotte_bronte"
    model, tokenizer = read_character_rnn(folder)
    with gzip.open(data_folder / "gutenberg_ml5" / "bronte.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(20_000)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    logits, _ = model.forward(torch.tensor([ids[:400]]))
    assert np.abs(logits[0, :, :108].double().numpy() - tensorflow_logits(read(folder), ids[:400])).max() < 1e-4
    log_probs = document_log_probs(model, [ids], tokenizer.end_of_text)[0]
    assert -log_probs.mean() / math.log(2) == pytest.approx(1.9647, abs=2e-3)  # bits a character
    sampling = SamplingConfig(max_tokens=400, temperature=0.5, seed=1)
    written = tokenizer.decode(list(stream(model, tokenizer.encode("There was "), sampling, {tokenizer.end_of_text})))
    known = set(text.lower().split())
    words = written.lower().split()
    assert len(words) > 50
    assert sum(word in known for word in words) > 0.6 * len(words)
