"""The model files of llama2.c (`stories15M.bin`): a small LLaMA in one flat file, little-endian fp32.

    model = read_llama2c(Path("stories260K.bin"))          # a Transformer
    write_llama2c(Path("again.bin"), model)                # the first version of the format

| version | header | tensors |
|---|---|---|
| 0 | seven int32: D, F, layers, H, K, V (negative where the head is a matrix of its own), T | embedding, then by kind |
| 1 | `ak42` as uint32, int32 1, the seven, a byte (1: tied), zeros up to byte 256 | norms, embedding, then by kind |
| 2 | the same with int32 2 | 8-bit weights: refused |

"By kind": one kind of tensor for all layers, then the next. Version 0 ends with two tables of rotary angles, which are
passed over when they are read and computed when they are written. Rotary pairs are neighbours (2i, 2i+1) in the file
and halves (i, i + E/2) here. Its tokenizers (`tok512.bin`) are read by `parlance.text.tokenizers.importing`.

What such a file cannot say is always the same: no biases, a rotary base of 10 000, norms with an epsilon of 1e-5.

Source: the format as its programs `export.py` and `run.c` have it.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from parlance.core.artifacts import os_errors, write_file
from parlance.core.errors import UserError
from parlance.models.families.family import Entry, interleaved, same
from parlance.models.positions import rotary_frequencies
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

_MAGIC = 0x616B3432
_HEADER = struct.Struct("<7i")
_BEGIN_1 = 256
"""Byte at which the tensors of version 1 begin."""


def read_llama2c(path: Path) -> Transformer:
    """The model of a file, its weights mapped where they lie as ours do.

    Raises UserError where the file is of another kind, of version 2, cut, too long, or holds what is no number.
    """
    with os_errors("read", path):
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_BEGIN_1)
    if len(head) >= 8 and struct.unpack_from("<I", head)[0] == _MAGIC:
        version, begin = struct.unpack_from("<i", head, 4)[0], _BEGIN_1
        if version != 1 or len(head) < _BEGIN_1:
            what = "8-bit weights (version 2)" if version == 2 else f"version {version}"
            raise UserError(f"{path} is a llama2.c model of {what}, which is not read: export it as version 0 or 1")
        config = _config(path, _HEADER.unpack_from(head, 8), tied=head[8 + _HEADER.size] == 1)
    else:
        version, begin = 0, _HEADER.size
        if len(head) < begin:
            raise UserError(f"{path} is not a model of llama2.c: it has {len(head)} bytes, less than its header")
        numbers = _HEADER.unpack_from(head)
        config = _config(path, (*numbers[:5], abs(numbers[5]), numbers[6]), tied=numbers[5] > 0)
    tables = 2 * _table_size(config) if version == 0 else 0
    expected = begin + 4 * (_parameter_count(config) + tables)
    if size != expected:
        state = "cut" if size < expected else "too long"
        raise UserError(f"{path} is {state}, or not a model of llama2.c: {size} bytes, its header says {expected}")
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    # Private pages: nothing is copied, and nothing written to a tensor reaches the file.
    values = torch.from_numpy(np.memmap(path, dtype="<f4", mode="c", offset=begin))
    parameters: dict[str, Tensor] = {}
    place = 0
    for entry in _entries(config, version):
        if entry is None:
            place += tables
            continue
        (name,) = entry.ours
        count = int(np.prod(shapes[name]))
        stored = values[place : place + count].view(shapes[name])
        if not bool(torch.isfinite(stored.sum())):
            raise UserError(f"{path}: {entry.theirs} holds values that are not finite numbers (NaN or infinity)")
        (parameters[name],) = (part.contiguous() for part in entry.split(stored))
        place += count
    model.load_state_dict(parameters, assign=True)
    return model


def write_llama2c(path: Path, model: Transformer) -> None:
    """Write a model as version 0; reading it gives the same bits.

    Raises UserError, naming the part, where the model has one that such a file cannot say.
    """
    config = model.config
    sizes = (
        config.width,
        config.feed_forward_width,
        config.layers,
        config.heads,
        config.key_value_heads,
        config.vocab_size,
        config.context_length,
    )
    said = _config(path, sizes, tied=config.tie_embeddings).canonical()
    for (name, value), (_, ours) in zip(said, config.canonical(), strict=True):
        if value != ours:
            raise UserError(f"this model cannot be written for llama2.c, which has {name} {value!r} and not {ours!r}")
    parameters = dict(model.named_parameters())

    def write(file: BinaryIO) -> None:
        vocab_size = config.vocab_size if config.tie_embeddings else -config.vocab_size
        file.write(_HEADER.pack(*sizes[:5], vocab_size, sizes[6]))
        for entry in _entries(config, version=0):
            if entry is None:
                _write(file, *_rotary_tables(config))
            else:
                _write(file, entry.join([parameters[name].detach().float().cpu() for name in entry.ours]))

    write_file(path, write)


def _write(file: BinaryIO, *tensors: Tensor) -> None:
    for tensor in tensors:
        file.write(tensor.contiguous().numpy().astype("<f4", copy=False).data)


def _config(path: Path, numbers: tuple[int, ...], *, tied: bool) -> TransformerConfig:
    width, mlp, layers, heads, kv_heads, vocab, length = numbers
    try:
        if min(numbers) < 1 or width % heads or (width // heads) % 2:
            raise ValueError
        return TransformerConfig(
            vocab_size=vocab,
            context_length=length,
            width=width,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_width=width // heads,
            mlp_width=mlp,
            qk_norm=False,
            norm_epsilon=1e-5,
            tie_embeddings=tied,
        )
    except ValueError as error:  # those of the configuration too
        raise UserError(
            f"{path} is not a model of llama2.c: width {width}, feed-forward {mlp}, {layers} layers, {heads} heads, "
            f"{kv_heads} key heads, {vocab} tokens and context {length} do not fit together"
        ) from error


def _entries(config: TransformerConfig, version: int) -> Iterator[Entry | None]:
    """The tensors of a file in order; None: the tables of rotary angles."""

    def layered(theirs: str, ours: str) -> Iterator[Entry]:
        for number in range(config.layers):
            names = f"{theirs} of layer {number}", f"layers.{number}.{ours}.weight"
            if theirs in ("wq", "wk"):
                yield interleaved(*names, heads=config.heads if theirs == "wq" else config.key_value_heads)
            else:
                yield same(*names)

    embedding, norm = same("tok_embeddings", "embed_tokens.weight"), same("norm", "norm.weight")
    norms = (
        list(layered("attention_norm", "input_layernorm")),
        list(layered("ffn_norm", "post_attention_layernorm")),
    )
    attention = [entry for part in "qkvo" for entry in layered(f"w{part}", f"self_attn.{part}_proj")]
    mlp = [
        entry
        for theirs, ours in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
        for entry in layered(theirs, f"mlp.{ours}")
    ]
    if version == 0:
        yield from (embedding, *norms[0], *attention, *norms[1], *mlp, norm, None)
    else:
        yield from (*norms[0], *norms[1], norm, embedding, *attention, *mlp)
    if not config.tie_embeddings:
        yield same("output", "lm_head.weight")


def _parameter_count(config: TransformerConfig) -> int:
    """Known before a model is made, whose size a file of another kind could put at anything."""
    inner = config.head_width * (2 * config.heads + 2 * config.key_value_heads)
    layer = config.width * (2 + inner + 3 * config.feed_forward_width)
    return config.layers * layer + config.width + config.vocab_size * config.width * (1 if config.tie_embeddings else 2)


def _table_size(config: TransformerConfig) -> int:
    return config.context_length * config.head_width // 2


def _rotary_tables(config: TransformerConfig) -> tuple[Tensor, Tensor]:
    """cos and sin (T, E/2) of every position's angles."""
    frequencies, _ = rotary_frequencies(config, config.context_length, torch.device("cpu"))
    angles = torch.arange(config.context_length).float()[:, None] * frequencies
    return angles.cos(), angles.sin()
