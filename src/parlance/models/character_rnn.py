"""Reader of character LSTMs trained with TensorFlow 1 and dumped as raw tensors: folders of ml5.js's CharRNN.

A folder holds `manifest.json` (tensor name -> file name and shape), one file of little-endian float32 for each tensor,
and `vocab.json` (character -> id). The cell is TensorFlow's BasicLSTMCell: kernel rows are those of the input and then
of the last output, its columns are the gates i, j, f, o, and 1 is added to f as it runs. All of it has a place in
`Recurrent`; the 1 goes into the bias.

    model, tokenizer = read_character_rnn(Path("charlotte_bronte"))
    ids = tokenizer.encode("There was ")
    logits, state = model.forward(torch.tensor([ids]))

The tokenizer has the file's characters under their ids and, behind them, `<unk>` and Parlance's special tokens; the
model gets rows for those. It never predicts them (their logit is -30), and reads the end of text as the line break
that a text begins after, where it knows one.

Source: tensorflow/python/ops/rnn_cell_impl.py (BasicLSTMCell), for the order of the gates and the forget bias.
"""

from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parlance.core.artifacts import os_errors, read_json
from parlance.core.errors import UserError
from parlance.models.recurrent import Recurrent, RecurrentConfig
from parlance.text.tokenizers import Tokenizer
from parlance.text.tokenizers.assembly import characters

FORGET_BIAS = 1.0
"""Added to the pre-activation of f at run time by TensorFlow; not in the files."""
ABSENT_LOGIT = -30.0
"""Of the tokens that the file's model does not have: a probability of about 1e-13."""
STEP_COUNTER = "Variable"
"""A scalar of the training program; no weight."""


def read_character_rnn(folder: Path) -> tuple[Recurrent, Tokenizer]:
    """The model and the tokenizer of a folder. Raises UserError, naming the file, for anything it cannot honour."""
    alphabet = _alphabet(folder / "vocab.json")
    tensors = _tensors(folder)
    embedding = _take(tensors, "embedding", folder)
    head, head_bias = _take(tensors, "rnnlm/softmax_w", folder), _take(tensors, "rnnlm/softmax_b", folder)
    V, D = len(alphabet), embedding.shape[-1]
    cells: list[tuple[Tensor, Tensor]] = []
    while f"{_cell(len(cells))}/kernel" in tensors:
        name = _cell(len(cells))
        cells.append((_take(tensors, f"{name}/kernel", folder), _take(tensors, f"{name}/bias", folder)))
    if not cells:
        raise UserError(f"{folder / 'manifest.json'}: there is no tensor {_cell(0)}/kernel")
    if tensors:
        raise UserError(f"{folder / 'manifest.json'}: unknown tensor {min(tensors)}")
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "embedding": (embedding, (V, D)),
        "rnnlm/softmax_w": (head, (D, V)),
        "rnnlm/softmax_b": (head_bias, (V,)),
    }
    for number, (kernel, bias) in enumerate(cells):
        expected[f"{_cell(number)}/kernel"] = kernel, (2 * D, 4 * D)
        expected[f"{_cell(number)}/bias"] = bias, (4 * D,)
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(tensor.shape)}, not {shape} as {V} characters and width {D} ask for"
            )
    tokenizer = characters(alphabet)
    model = Recurrent(
        RecurrentConfig(
            vocab_size=tokenizer.vocab_size, layers=len(cells), width=D, cell="lstm", residual=False, head_bias=True
        )
    )
    with torch.no_grad():
        model.embed_tokens.weight.zero_()
        model.embed_tokens.weight[:V] = embedding
        if "\n" in alphabet:
            model.embed_tokens.weight[tokenizer.end_of_text] = embedding[alphabet.index("\n")]
        model.lm_head.weight.zero_()
        model.lm_head.weight[:V] = head.t()
        assert model.lm_head.bias is not None
        model.lm_head.bias.fill_(ABSENT_LOGIT)
        model.lm_head.bias[:V] = head_bias
        for layer, (kernel, bias) in zip(model.layers, cells, strict=True):
            rows = _our_order(kernel.t())
            layer.get_parameter("weight_ih").copy_(rows[:, :D])
            layer.get_parameter("weight_hh").copy_(rows[:, D:])
            layer.get_parameter("bias").copy_(_our_order(bias))
            layer.get_parameter("bias")[D : 2 * D] += FORGET_BIAS
    return model, tokenizer


def _cell(layer: int) -> str:
    return f"rnnlm/multi_rnn_cell/cell_{layer}/basic_lstm_cell"


def _our_order(gates: Tensor) -> Tensor:
    """Rows i, j, f, o (TensorFlow) as i, f, o, j (ours, where j is called u)."""
    i, j, f, o = gates.chunk(4)
    return torch.cat((i, f, o, j))


def _alphabet(path: Path) -> list[str]:
    """The characters in the order of their ids."""
    vocabulary = read_json(path)
    if not isinstance(vocabulary, dict) or not all(isinstance(index, int) for index in vocabulary.values()):
        raise UserError(f"{path} is not a vocabulary: it must be an object of characters and their ids")
    alphabet = sorted(vocabulary, key=lambda character: (vocabulary[character], character))
    if [vocabulary[character] for character in alphabet] != list(range(len(alphabet))):
        raise UserError(f"{path}: the ids are not 0 to {len(alphabet) - 1}, each once")
    odd = [character for character in alphabet if len(character) != 1]
    if odd:
        raise UserError(f"{path}: {odd[0]!r} is not one character")
    return alphabet


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor that the manifest names."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise UserError(f"{folder / 'manifest.json'} is not a list of tensors: it must be an object of names")
    return {name: _tensor(folder, name, entry) for name, entry in manifest.items() if name != STEP_COUNTER}


def _tensor(folder: Path, name: str, entry: Any) -> Tensor:
    where = f"{folder / 'manifest.json'}: {name}"
    file, shape = (entry.get("filename"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    if not isinstance(file, str) or file != PurePath(file).name:
        raise UserError(f"{where} names no file of this folder")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
        raise UserError(f"{where} has no shape")
    path = folder / file
    with os_errors("read", path):
        data = path.read_bytes()
    if len(data) != 4 * int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{path} has {len(data)} bytes; float32 of shape {tuple(shape)} has another number")
    tensor = torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32).reshape(shape))
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{path} holds numbers that are infinite or not numbers")
    return tensor


def _take(tensors: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    if name not in tensors:
        raise UserError(f"{folder / 'manifest.json'}: there is no tensor {name}")
    return tensors.pop(name)
