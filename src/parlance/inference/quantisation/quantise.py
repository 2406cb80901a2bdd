"""A checkpoint folder to one whose matrices are integers, with what that costs: `parlance quantize`.

    facts = quantise(Path("runs/demo/base"), Path("base-int4"), QuantisationConfig(bits=4, method="calibrated"), text)
    facts["bits_per_byte_before"], facts["bits_per_byte_after"]

Bits per byte are of held-out text, before with the weights as they are, after with the folder that was written, both
computed in float32. The text is a corpus folder (calibrated on its training split, measured on its validation split) or
a file (its last tenth is held out). What a folder holds is in `models/quantised_checkpoint.py`.
"""

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from parlance.core.artifacts import atomic_directory, os_errors
from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.inference.model import Model, load
from parlance.inference.quantisation.calibrated import calibrated_matrices
from parlance.inference.quantisation.rounding import nearest
from parlance.inference.scoring import document_log_probs
from parlance.models.checkpoints import read_config, read_values
from parlance.models.conversion import TOKENIZER_FILES
from parlance.models.quantised_checkpoint import is_quantised, quantised_names, write_quantised
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.tensor_files import stored_type, weight_bytes_of
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.documents import decode_utf8
from parlance.text.splits import read_split

HELD_OUT = 0.1
"""Share of a file, at its end, that is held out."""
_SPREAD = 16
"""The text that windows are taken from is up to this many times as long as they are."""


class QuantisationConfig(Config):
    """How weights become integers."""

    bits: Literal[4, 8] = 4
    """Of the blocks' matrices; a head of its own has 8."""
    method: Literal["nearest", "calibrated"] = "nearest"
    """The nearest integers, or those that keep what the matrices compute on a text (GPTQ)."""
    calibration_tokens: int = Field(default=65_536, ge=1)
    """Tokens of the text that the model reads for `calibrated`."""
    window: int = Field(default=512, ge=1)
    """Tokens it reads at once, at most the model's context."""
    held_out_bytes: int = Field(default=200_000, ge=1)
    """About how much held-out text is scored, at most."""


@dataclass(frozen=True)
class Texts:
    """A text in two parts, as documents."""

    calibration: Sequence[str]
    held_out: Sequence[str]


def read_texts(path: Path, config: QuantisationConfig) -> Texts:
    """The documents of a corpus folder, or of a file, as many as `config` has use for. Raises UserError."""
    enough = 16 * _SPREAD * config.calibration_tokens  # bytes; tokens of more than 16 bytes are rare
    if path.is_dir():
        held_out = _first((document.text for document in read_split(path, "validation")), config.held_out_bytes)
        found = Texts(_first((document.text for document in read_split(path, "train")), enough), held_out)
    else:
        with os_errors("read", path):
            text = decode_utf8(path.read_bytes())[0]
        cut = round(len(text) * (1 - HELD_OUT))
        cut = text.rfind("\n", 0, cut) + 1 or cut
        found = Texts(_first([text[:cut]], enough), _first([text[cut:]], config.held_out_bytes))
    if not any(found.held_out) or not any(found.calibration):
        part = "calibrate on" if any(found.held_out) else "hold out"
        raise UserError(f"{path} has no text to {part}; name a longer file, or a corpus with train and validation")
    return found


def _first(texts: Sequence[str] | Iterator[str], size: int) -> list[str]:
    """The first texts, up to about `size` characters; the last one may be cut."""
    out: list[str] = []
    for text in texts:
        if size <= 0:
            break
        out.append(text[:size])
        size -= len(out[-1])
    return out


def quantise(source: Path, out: Path, config: QuantisationConfig, texts: Texts | None = None) -> dict[str, Any]:
    """Write the model of `source` as the folder `out` with matrices of `config.bits`; returns facts and figures.

    Without `texts` nothing is measured, and only the nearest integers can be taken. Raises UserError for models that
    are no decoder, have a width that 32 does not divide, or are quantised already; `out` appears whole or not at all.
    """
    start = time.monotonic()
    values = read_values(source)
    family, shape = read_config(source)
    if not isinstance(shape, TransformerConfig) or not shape.causal:
        raise UserError(f"{source} is not a decoder-only Transformer, and only those are quantised")
    if is_quantised(values):
        raise UserError(f"{source} is quantised already: quantise the folder that it was made from")
    if config.method == "calibrated" and texts is None:
        raise UserError("--method calibrated needs --text: a file, or a corpus folder")
    opened = load(source, "cpu", "float32")
    model = opened.language_model
    assert isinstance(model, Transformer)
    bits_of = quantised_names(model, config.bits)
    facts: dict[str, Any] = {"bits": config.bits, "method": config.method, "parameters": model.parameter_count()}
    before = None if texts is None else bits_per_byte(opened, texts.held_out)
    matrices = _matrices(opened, bits_of, config, texts)
    with atomic_directory(out) as folder:
        name = write_quantised(
            folder,
            values,
            shape,
            dict(model.named_parameters()),
            matrices,
            family=family,
            dtype=stored_type(source),
        )
        for file in (*TOKENIZER_FILES, "generation_config.json"):
            if (source / file).is_file():
                with os_errors("copy", source / file):
                    shutil.copyfile(source / file, folder / file)
        if texts is not None and before is not None:
            after = bits_per_byte(load(folder, "cpu", "float32"), texts.held_out)
            facts |= {"bits_per_byte_before": before, "bits_per_byte_after": after}
            facts["loss_percent"] = 100 * (after / before - 1)
            facts["held_out_bytes"] = sum(len(text.encode("utf-8", "replace")) for text in texts.held_out)
    return facts | {
        "family": name,
        "bytes_before": weight_bytes_of(source),
        "bytes_after": weight_bytes_of(out),
        "seconds": time.monotonic() - start,
    }


def _matrices(
    opened: Model, bits_of: dict[str, int], config: QuantisationConfig, texts: Texts | None
) -> dict[str, QuantisedTensor]:
    model = opened.language_model
    assert isinstance(model, Transformer)
    if config.method == "nearest" or texts is None:
        return {name: nearest(model.get_parameter(name), bits) for name, bits in bits_of.items()}
    windows = calibration_windows(opened, texts.calibration, config)
    with Progress("quantise", total=sum("layers." in name for name in bits_of), unit="matrices") as progress:
        return calibrated_matrices(model, windows, bits_of, progress)


def calibration_windows(opened: Model, texts: Sequence[str], config: QuantisationConfig) -> Tensor:
    """(N, T) int64: pieces of the texts, as evenly spread over them as they come to `calibration_tokens`."""
    tokenizer = opened.tokenizer
    start = _start(opened)
    tokens: list[int] = []
    for text in texts:
        tokens += [start, *tokenizer.encode(text)]
        if len(tokens) >= _SPREAD * config.calibration_tokens:
            break
    length = min(config.window, len(tokens), opened.language_model.context_length or config.window)
    count = max(1, min(config.calibration_tokens, len(tokens)) // length)
    places = torch.linspace(0, len(tokens) - length, count).long()
    return torch.tensor(tokens)[places[:, None] + torch.arange(length)]


def bits_per_byte(opened: Model, texts: Sequence[str]) -> float:
    """-log2 p of all texts over their bytes, each a document. Raises UserError where the vocabulary knows nothing."""
    documents = [ids for ids in opened.tokenizer.encode_batch(texts) if ids]
    log_probs = document_log_probs(opened.language_model, documents, _start(opened))
    lengths = opened.tokenizer.token_byte_lengths
    size = sum(int(lengths[ids].sum()) for ids in documents)
    if not size:
        raise UserError("the model's vocabulary knows nothing of the held-out text")
    return -sum(float(part.sum()) for part in log_probs) / math.log(2) / size


def _start(opened: Model) -> int:
    """The token that a document begins behind."""
    before, _ = opened.tokenizer.surrounding
    return before[-1] if before else opened.tokenizer.end_of_text
