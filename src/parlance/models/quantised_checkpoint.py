"""Checkpoint folders whose matrices are integers: which matrices those are, and how such a folder is written and read.

Of a decoder, the matrices of every block have the bits that are asked for, a head of its own and what else stands
outside the blocks 8. The embedding, which a step reads one row of, and tables of positions are 16-bit numbers (the
library compressed-tensors opens no integers there, so neither in a head that is the embedding); norms and biases stay
as they are. The folder is of the family of the model it came from, for `transformers` with that library.
GPT-2's files hold matrices the other way round, which it cannot open: such a model, and one of no published family, is
written in our own form, for Parlance alone.

    write_quantised(folder, source_values, config, parameters, {"layers.0.mlp.up_proj.weight": matrix, ...}, ...)
    read_quantised(folder)["layers.0.mlp.up_proj.weight"].codes        # for kernels that compute with integers

`load_model` opens these folders like any other, each matrix as the numbers that it stands for. The form of the tensors
is in `quantised_tensors.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.checkpoints import (
    GENERATION_IDS,
    checkpoint_tensors,
    read_config,
    table_of,
    write_checkpoint,
)
from parlance.models.families import own
from parlance.models.families.family import Entry, Family, Stacked, Values
from parlance.models.quantised_tensors import GROUP, QuantisedTensor, packed_tensors, quantization_values
from parlance.models.tensor_files import TensorFiles
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Linear
from parlance.models.transformer_config import TransformerConfig

OUTER_BITS = 8
"""Of the head and what else stands outside the blocks."""
_IDS = (*GENERATION_IDS, "mask_token_id")
_HEAD = r"re:.*(lm_head|embed_out)$"
"""Names that programs have for the head, whatever its name in the file."""


def quantised_names(model: Transformer, bits: int) -> dict[str, int]:
    """The parameters of a model that become integers, and their bits. Raises UserError where one cannot."""
    names = {
        f"{name}.weight": bits for name, module in model.layers.named_modules(prefix="layers") if is_linear(module)
    }
    names |= {f"{name}.weight": OUTER_BITS for name, module in model.named_children() if is_linear(module)}
    if model.config.experts is not None:
        raise UserError("this model has experts, whose matrices are not quantised by this version")
    for name in names:
        width = model.get_parameter(name).shape[1]
        if width % GROUP:
            raise UserError(
                f"{name} has {width} inputs, and integers come in groups of {GROUP}: only widths that {GROUP} divides "
                "can be quantised"
            )
    return names


def is_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a matrix that is multiplied with."""
    return isinstance(module, Linear)


def write_quantised(
    folder: Path,
    source: Values,
    config: TransformerConfig,
    parameters: Mapping[str, Tensor],
    matrices: Mapping[str, QuantisedTensor],
    *,
    family: Family,
    dtype: torch.dtype,
) -> str:
    """Write a folder whose `matrices` (by our names) are integers; the other `parameters` are of `dtype`.

    `source`: the config.json that the token ids come from; `family`: of the model it describes. Returns the name of
    the family that the folder is of: see above.
    """
    if not _takes(family, config, matrices):
        family = own.TRANSFORMER
    whole: list[Entry | Stacked] = []
    packed: dict[str, Tensor] = {}
    targets: dict[int, list[str]] = {}
    for entry in family.table(config):
        if not isinstance(entry, Entry) or not set(entry.ours) <= matrices.keys():
            whole.append(entry)
        elif not entry.optional:
            parts = [matrices[name] for name in entry.ours]
            module, bits = entry.theirs.removesuffix(".weight"), parts[0].bits
            joined = QuantisedTensor(
                entry.join([part.codes for part in parts]).contiguous(),
                entry.join([part.scales for part in parts]).contiguous(),
                bits,
            )
            packed |= packed_tensors(module, joined)
            # What stands outside the blocks is named; the rest are all other modules of a class.
            names = targets.setdefault(bits, [])
            ours = entry.ours[0]
            target = "Linear" if ours.startswith("layers.") else _HEAD if ours == "lm_head.weight" else module
            names += [] if target in names else [target]
    values = {
        "architectures": [family.architectures[0]],
        "model_type": family.name,
        **family.write(config),
        "dtype": str(dtype).removeprefix("torch."),
        **{name: source[name] for name in _IDS if source.get(name) is not None},
        "quantization_config": quantization_values(targets, ignore=[_HEAD] if config.tie_embeddings else []),
    }
    tensors = {name: _halved(tensor) for name, tensor in checkpoint_tensors(whole, parameters, dtype).items()}
    write_checkpoint(folder, values, tensors | packed)
    return family.name


def _halved(tensor: Tensor) -> Tensor:
    """A table in 16 bits, where they can hold it; vectors as they are."""
    half = tensor.half()
    return half if tensor.dtype == torch.float32 and tensor.ndim > 1 and half.isfinite().all() else tensor


def _takes(family: Family, config: TransformerConfig, matrices: Mapping[str, QuantisedTensor]) -> bool:
    """Whether the files of a published family hold all these matrices with the inputs of an output side by side."""
    if family.name == own.TRANSFORMER.name:
        return False
    for entry in family.table(config):
        if isinstance(entry, Entry) and set(entry.ours) <= matrices.keys():
            rows = [torch.empty(matrices[name].codes.shape[0], 1) for name in entry.ours]
            if entry.join(rows).shape != (sum(len(part) for part in rows), 1):
                return False
    return True


def read_quantised(folder: Path) -> dict[str, QuantisedTensor]:
    """The matrices of a folder that are integers, by our names; empty for any other folder. Raises UserError."""
    family, config = read_config(folder)
    out: dict[str, QuantisedTensor] = {}
    with TensorFiles(folder) as files:
        for entry in table_of(folder, family, config):
            if not isinstance(entry, Entry) or entry.theirs not in files.names:
                continue
            matrix = files.quantised(entry.theirs)
            if matrix is not None:
                parts = zip(entry.ours, entry.split(matrix.codes), entry.split(matrix.scales), strict=True)
                out |= {name: QuantisedTensor(codes, scales, matrix.bits) for name, codes, scales in parts}
    return out


def is_quantised(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a folder whose matrices are integers."""
    return values.get("quantization_config") is not None
