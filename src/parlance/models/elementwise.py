"""Element-wise parts of a block with gradients written by hand: a third of autograd's passes over memory.

On a processor with fast matrix products a small model's step is made of such passes. Measured on one Zen 4 core in
bfloat16, forward and backward of 3 072 tokens of width 128: the norm 0.56 ms instead of 1.8, the squared ReLU of width
512 1.25 instead of 2.75. Compiled code fuses them anyway.

    y = unit_rms(x, 1e-6)                   # F.rms_norm without a weight
    y = relu_squared(x)                     # F.relu(x).square()

Both are differentiable once.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def unit_rms(x: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) over the last dimension, which is summed in at least fp32; x's shape and dtype."""
    return cast(Tensor, _UnitRMS.apply(x, epsilon))  # type: ignore[no-untyped-call]


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return cast(Tensor, _ReluSquared.apply(x))  # type: ignore[no-untyped-call]


class _UnitRMS(torch.autograd.Function):
    """dx = s (dy - y mean(y dy)), where y = s x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: float) -> Tensor:
        precise = torch.promote_types(x.dtype, torch.float32)
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        scale = size.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_().to(x.dtype)
        y: Tensor = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True)
        return torch.addcmul(grad, y, along, value=-1 / y.shape[-1]).mul_(scale), None


class _ReluSquared(torch.autograd.Function):
    """dx = 2 max(x, 0) dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        y: Tensor = positive * positive
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        product: Tensor = grad * positive
        return product.mul_(2)
