"""Weights in the order in which the compiled loops read them: panels of 16 outputs, see `panel_products.py`.

    packed = pack(weight, "bfloat16")           # a tensor (out, in) or a QuantisedTensor
    packed.data                                 # its bytes

Not here: choosing codes (`inference/quantisation`). Scales are kept as float16 numbers times one power of two for the
whole matrix: float16 scales are kept exactly, as long as those of a matrix do not differ by more than 2^29.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.inference.kernels.panel_products import FLOAT32, INPUTS, INT4, INT8, LANES, PAIRS
from parlance.inference.quantisation.rounding import nearest
from parlance.models.quantised_tensors import GROUP, QuantisedTensor

Weights = Literal["float32", "bfloat16", "int8", "int4"]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix in panels."""

    data: NDArray[np.uint8]
    """(bytes,)."""
    form: int
    """FLOAT32, PAIRS, INT8 or INT4."""
    panels: int
    """Of 16 outputs."""
    blocks: int
    """Of so many inputs as the form has in one."""
    factor: float
    """What products are multiplied with: a power of two."""


def pack(weight: Tensor | QuantisedTensor, kind: Weights) -> PackedMatrix:
    """A matrix (out, in) as `kind`, with zeros up to whole panels and blocks. Given codes stay, whatever the kind."""
    if isinstance(weight, QuantisedTensor):
        return _pack_codes(weight)
    weight = weight.detach().float()
    if kind == "int8" or kind == "int4":
        filled = _filled(weight, weight.shape[0], -(-weight.shape[1] // GROUP) * GROUP)
        return _pack_codes(nearest(filled, 8 if kind == "int8" else 4))
    form = FLOAT32 if kind == "float32" else PAIRS
    panels, blocks = -(-weight.shape[0] // LANES), -(-weight.shape[1] // INPUTS[form])
    weight = _filled(weight, panels * LANES, blocks * INPUTS[form])
    if form == FLOAT32:
        ordered = weight.view(panels, LANES, blocks, 2).permute(0, 2, 3, 1)
    else:
        ordered = weight.bfloat16().view(panels, LANES, blocks, 2, 2).permute(0, 2, 3, 1, 4)
    data = ordered.contiguous().view(-1).view(torch.uint8).numpy()
    return PackedMatrix(data, form, panels, blocks, 1.0)


def _filled(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With zeros to (rows, columns)."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1], 0, rows - matrix.shape[0]))


def _pack_codes(matrix: QuantisedTensor) -> PackedMatrix:
    form = INT8 if matrix.bits == 8 else INT4
    out, inputs = matrix.codes.shape
    panels, blocks = -(-out // LANES), -(-inputs // INPUTS[form])
    codes = _filled(matrix.codes, panels * LANES, blocks * 64).view(panels, LANES, blocks, 2, GROUP)
    scales = _filled(matrix.scales.float(), panels * LANES, blocks * 2)
    factor = 1.0
    if bool(scales.any()):
        # The largest to about 2^14 of at most 2^16, so that the smallest keep their precision.
        factor = float(2.0 ** (np.floor(np.log2(float(scales.max()))) - 14))
    small = (scales.double() / factor).half().view(panels, LANES, blocks, 2).permute(0, 2, 3, 1).contiguous()
    if form == INT8:
        unsigned = (codes.short() + 128).to(torch.uint8).view(panels, LANES, blocks, 2, 8, 4)
    else:
        nibbles = (codes + 8).to(torch.uint8).view(panels, LANES, blocks, 2, 2, 4, 4)
        unsigned = nibbles[:, :, :, :, 0] | (nibbles[:, :, :, :, 1] << 4)
    ordered = unsigned.permute(0, 2, 3, 4, 1, 5).reshape(panels, blocks, -1)
    data = torch.cat((small.view(panels, blocks, -1).view(torch.uint8), ordered), dim=2)
    return PackedMatrix(data.reshape(-1).numpy(), form, panels, blocks, factor)


def interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Rows of two matrices (or biases) of one shape, 16 of the one and 16 of the other by turns, filled with zeros."""
    panels = -(-first.shape[0] // LANES)
    both = []
    for part in (first, second):
        flat = part.reshape(part.shape[0], -1)
        both.append(_filled(flat, panels * LANES, flat.shape[1]).view(panels, 1, LANES, -1))
    joined = torch.cat(both, dim=1).reshape(2 * panels * LANES, -1)
    return joined if first.ndim == 2 else joined[:, 0]


def interleaved_codes(first: QuantisedTensor, second: QuantisedTensor) -> QuantisedTensor:
    """The same of quantised matrices."""
    codes, scales = interleaved(first.codes, second.codes), interleaved(first.scales, second.scales)
    return QuantisedTensor(codes, scales, first.bits)
