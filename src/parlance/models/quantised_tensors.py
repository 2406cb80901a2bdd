"""Matrices as small integers with a scale for every 32 of them along the input, and how checkpoint folders store them.

The form of the library compressed-tensors that `transformers` opens ("pack-quantized"): beside a module's name
stand `weight_packed` (outputs, inputs x bits / 32) int32, `weight_scale` (outputs, groups) and `weight_shape`;
`quantization_config` of `config.json` says the bits. Codes are -8..7 or -127..127 and lie in the words lowest first,
with half the range added. Weight (i, j) is code (i, j) times scale (i, j / 32): no zero points, no order of columns.

    stored = packed_tensors("model.layers.0.mlp.up_proj", nearest(weight, bits=4))
    matrix = unpacked("...", stored["..._packed"], stored["..._scale"], stored["..._shape"])
    matrix.weight(torch.float32)

What cannot be honoured (zero points, quantised activations, other methods) is a `UserError` that names it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parlance.core.errors import UserError

GROUP = 32
"""Inputs that share a scale."""
BITS = (4, 8)
PARTS = ("weight_packed", "weight_scale", "weight_shape")
"""What stands in a file for the `weight` of a quantised module."""
METHOD, FORMAT = "compressed-tensors", "pack-quantized"


@dataclass(frozen=True)
class QuantisedTensor:
    """A matrix (outputs, inputs) of integers."""

    codes: Tensor
    """(outputs, inputs) int8: -8..7 with 4 bits, -128..127 with 8."""
    scales: Tensor
    """(outputs, inputs / GROUP), float16 where they were made here."""
    bits: int
    """4 or 8."""

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that the codes stand for, in `dtype`; the products are of float32."""
        outputs, inputs = self.codes.shape
        groups = self.codes.view(outputs, -1, GROUP).float() * self.scales.float().unsqueeze(-1)
        return groups.view(outputs, inputs).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """(outputs, inputs) int8 to (outputs, inputs x bits / 32) int32; `inputs` is a multiple of GROUP."""
    words = (codes.to(torch.int64) + (1 << (bits - 1))).view(codes.shape[0], -1, 32 // bits)
    words = (words << (torch.arange(32 // bits) * bits)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: Tensor, bits: int, inputs: int) -> Tensor:
    """The codes (outputs, inputs) int8 that `pack` put into `words`."""
    shifted = words.unsqueeze(-1) >> (torch.arange(32 // bits, dtype=torch.int32) * bits)
    codes = (shifted & ((1 << bits) - 1)) - (1 << (bits - 1))
    return codes.to(torch.int8).view(words.shape[0], -1)[:, :inputs]


def packed_tensors(module: str, matrix: QuantisedTensor) -> dict[str, Tensor]:
    """The tensors of a file that stand for the weight of `module`."""
    parts = (pack(matrix.codes, matrix.bits), matrix.scales, torch.tensor(matrix.codes.shape))
    return {f"{module}.{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)}


def unpacked(where: str, words: Tensor, scales: Tensor, shape: Tensor) -> QuantisedTensor:
    """The matrix that three tensors of a file stand for; groups that are wider than GROUP get a scale for each GROUP.

    `where` names it in errors. Raises UserError where their shapes do not fit together.
    """
    problem = UserError(
        f"{where}: the shapes of its quantised parts do not fit together: packed {tuple(words.shape)}, scales "
        f"{tuple(scales.shape)}, weight_shape {shape.flatten().tolist()[:4]}"
    )
    if words.ndim != 2 or scales.ndim != 2 or shape.numel() != 2 or words.dtype != torch.int32:
        raise problem
    outputs, inputs = shape.flatten().tolist()
    bits = 32 * words.shape[1] // inputs if inputs > 0 else 0
    fits = bits in BITS and words.shape == (outputs, -(-inputs * bits // 32)) and scales.shape[0] == outputs
    width = inputs // scales.shape[1] if fits and scales.shape[1] else 0
    if not fits or not width or width * scales.shape[1] != inputs or inputs % GROUP or width % GROUP:
        raise problem
    if width > GROUP:
        scales = scales.repeat_interleave(width // GROUP, dim=1)
    return QuantisedTensor(unpack(words, bits, inputs), scales, bits)


# --- config.json -----------------------------------------------------------------------------------------------------


def quantization_values(targets: Mapping[int, Collection[str]], ignore: Collection[str] = ()) -> dict[str, Any]:
    """`quantization_config` of a checkpoint: for each number of bits the modules (names or classes) that have them, and
    those that no such name or class means."""
    groups = {
        f"group_{number}": {
            "targets": list(names),
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": GROUP,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
        for number, (bits, names) in enumerate(targets.items())
    }
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }


def check_quantization(values: Any, where: Path) -> None:
    """Raises UserError unless `quantization_config` of the file `where` is one whose matrices are read as they are."""
    if not isinstance(values, dict) or values.get("quant_method") != METHOD:
        method = values.get("quant_method") if isinstance(values, dict) else values
        raise UserError(
            f"{where}: its weights are quantised by {method!r}, and only {METHOD} ({FORMAT}) is read here; "
            "take the folder it was made from, and quantise that with parlance quantize"
        )

    def refuse(field: str, value: Any) -> UserError:
        return UserError(f"{where}: quantization_config has {field} {value!r}, which is not read here")

    if values.get("kv_cache_scheme") is not None:
        raise refuse("kv_cache_scheme", values["kv_cache_scheme"])
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        raise refuse("config_groups", groups)
    for group in groups.values():
        form = group.get("format") or values.get("format")
        if form != FORMAT:
            raise refuse("format", form)
        for field in ("input_activations", "output_activations"):
            if group.get(field) is not None:
                raise refuse(field, group[field])
        weights = group.get("weights")
        if not isinstance(weights, dict):
            raise refuse("weights", weights)
        allowed: dict[str, tuple[Any, ...]] = {
            "num_bits": BITS,
            "type": (None, "int"),
            "symmetric": (None, True),
            "strategy": ("group", "channel"),
            "dynamic": (None, False),
            "actorder": (None, False, "weight", "static"),
        }
        for field, choices in allowed.items():
            if weights.get(field) not in choices:
                raise refuse(field, weights.get(field))
