"""A matrix as the integers nearest to it, with a scale for every 32 weights of a row.

    matrix = nearest(weight, bits=8)
    (matrix.weight() - weight).abs() <= matrix.scales / 2          # group by group; with 8 bits, almost

A scale is a float16 before the integers are chosen, so that no error is added when it is stored. With 8 bits it is the
largest size in the group / 127. With 4 bits it is the one of a few dozen candidates whose integers -8..7 are nearest in
the square: the largest size / 7 and smaller ones, which clip it. What that is worth is in docs/lab-notebook.md.
"""

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.quantised_tensors import GROUP, QuantisedTensor

SHRINKING = tuple(1.0 - step / 64 for step in range(33))
"""Scales that are tried for 4 bits, as shares of the one that clips nothing."""


def nearest(weight: Tensor, bits: int) -> QuantisedTensor:
    """The integers nearest to `weight` (outputs, inputs), where `inputs` is a multiple of 32.

    Raises UserError where a weight is too large for a float16 scale.
    """
    weight = weight.detach()
    scales = group_scales(weight, bits)
    return QuantisedTensor(codes_of(weight, scales, bits), scales, bits)


def group_scales(weight: Tensor, bits: int) -> Tensor:
    """Float16 scales (outputs, inputs / 32), at least 0, for `weight` (outputs, inputs): see above. UserError."""
    groups = weight.float().reshape(len(weight), -1, GROUP)  # (outputs, groups, 32)
    high = groups.abs().amax(-1) / (127 if bits == 8 else 7)
    if float(high.max()) > torch.finfo(torch.float16).max:
        raise UserError(
            f"the model has weights as large as {float(groups.abs().max()):.3g}, too large for integers with 16-bit "
            "scales"
        )
    if bits == 8:
        return high.half()
    best, least = torch.zeros_like(high).half(), torch.full_like(high, torch.inf)
    for share in SHRINKING:
        scales = (high * share).half()
        error = (_rounded(groups, scales, bits) * scales.float().unsqueeze(-1) - groups).square().sum(-1)
        better = error < least
        best, least = torch.where(better, scales, best), torch.where(better, error, least)
    return best


def codes_of(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The integers (outputs, inputs) int8 nearest to `weight` in units of `scales` (outputs, inputs / 32)."""
    return _rounded(weight.float().reshape(len(weight), -1, GROUP), scales, bits).to(torch.int8).flatten(1)


def _rounded(groups: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Whole numbers of `scales` (outputs, groups) nearest to `groups` (outputs, groups, 32), within the range."""
    unit = scales.float().unsqueeze(-1)
    unit = torch.where(unit == 0, 1.0, unit)  # a group of zeros
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    return (groups / unit).round().clamp(low, high)
