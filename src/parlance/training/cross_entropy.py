"""The cross-entropy of a head over a large vocabulary, with its gradients, never holding all logits at once.

The plain way (`F.cross_entropy` of the head's product) keeps the logits of every position, a copy in fp32, their
log-softmax and two gradients of that size until the backward pass: 1.6 GB for 2 048 positions of GPT-2's 50 257 tokens.
Here each chunk of positions goes through one buffer of at most `BUFFER_BYTES`: product, softmax in place, minus one at
the targets, and both products of the backward pass, all during the forward pass. What is kept is the two gradients.
Nothing is computed twice: three products of (N, D, V) as in the plain way.

It does not smooth labels, weigh tokens, or differentiate twice. Under `torch.no_grad` it computes the loss alone.

    loss = chunked_cross_entropy(hidden, head.weight, None, targets)        # nats, summed
    loss.backward()

The logits have the dtype of `hidden`; softmax, loss and the sum of the weight's gradient over chunks are fp32. Making
the gradient in the forward pass is the idea of Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from parlance.text.packing import IGNORE

BUFFER_BYTES = 2**28
"""Most memory for logits at a time. Larger chunks waste less on adding up the gradient of the weights."""
BLOCK_ELEMENTS = 2**18
"""Logits whose softmax is made at a time: what a core's cache holds, in fp32."""
ALIGNMENT = 64
"""Rows of the buffer start at multiples of this many elements: with rows of 50 257 floats an fp32 product writes at
62 GFLOP/s, with rows of 50 304 at 88 to 95 (one Zen 4 core)."""
WEIGHT_ROWS = 8192
"""Rows of the weight's gradient made at a time where it has to be cast to fp32."""


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum over n of -log softmax(hidden[n] weight^T + bias)[targets[n]], in nats; fp32 scalar with gradient.

    hidden: (N, D), its dtype is that of the products; weight: (V, D); bias: (V,) or None; targets: (N,) int64,
    0..V-1 or `IGNORE`. Gradients go to hidden, weight and bias, each in its own dtype. Equal to `F.cross_entropy` up to
    rounding: the relative difference of loss and gradients is below 1e-6 in fp32 and 1e-2 in bfloat16.
    """
    inputs = [hidden, weight] + ([] if bias is None else [bias])
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _LossWithGradients.apply(hidden, weight, bias, targets)  # type: ignore[no-any-return, no-untyped-call]
    return _loss_and_gradients(hidden, weight, bias, targets, False)[0]


class _LossWithGradients(torch.autograd.Function):
    """The loss; its gradients are ready when the backward pass asks for them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        loss, *ctx.gradients = _loss_and_gradients(hidden, weight, bias, targets, True)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Not kept, so that autograd takes these tensors over instead of copying them.
        gradients, ctx.gradients = ctx.gradients, None
        scale = float(upstream)
        if scale != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return (*gradients, None)


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, differentiate: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The summed loss, and its gradients by hidden, weight and bias (None where not asked for)."""
    N, V = len(hidden), len(weight)
    dtype, device = hidden.dtype, hidden.device
    used, used_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    losses = torch.empty(N, device=device)
    d_hidden = torch.empty_like(hidden) if differentiate else None
    d_weight = torch.empty(weight.shape, device=device) if differentiate else None
    d_bias = torch.zeros(V, device=device) if differentiate and bias is not None else None

    row = -(-V // ALIGNMENT) * ALIGNMENT
    rows = _even_chunk(N, BUFFER_BYTES // (row * dtype.itemsize))
    buffer = torch.empty(rows, row, dtype=dtype, device=device)[:, :V]
    for start in range(0, N, rows):
        part = slice(start, min(N, start + rows))
        some, logits = hidden[part], buffer[: part.stop - start]
        if used_bias is None:
            torch.mm(some, used.t(), out=logits)
        else:
            torch.addmm(used_bias, some, used.t(), out=logits)
        losses[part] = _softmax_gradient(logits, targets[part], differentiate)
        if d_hidden is not None and d_weight is not None:
            torch.mm(logits, used, out=d_hidden[part])
            _add_weight_gradient(d_weight, logits, some, start == 0)
        if d_bias is not None:
            d_bias += logits.sum(0, dtype=torch.float32)
    if N == 0 and d_weight is not None:
        d_weight.zero_()
    return (
        losses.sum(),
        d_hidden,
        None if d_weight is None else d_weight.to(weight.dtype),
        None if bias is None or d_bias is None else d_bias.to(bias.dtype),
    )


def _even_chunk(total: int, most: int) -> int:
    """Size of the chunks when `total` things go into as few as possible, of nearly equal size, at most `most`."""
    chunks = max(1, -(-total // max(1, most)))
    return max(1, -(-total // chunks))


def _softmax_gradient(logits: Tensor, targets: Tensor, replace: bool) -> Tensor:
    """The losses (R,) of logits (R, V); where `replace`, the logits become their gradient, softmax minus one-hot."""
    R, V = logits.shape
    kept = targets != IGNORE
    columns = targets.clamp(min=0).masked_fill(~kept, 0).unsqueeze(1)
    at_target = logits.gather(1, columns).float()
    normalisers = torch.empty(R, 1, device=logits.device)
    rows = max(1, BLOCK_ELEMENTS // V)
    for start in range(0, R, rows):
        block = logits[start : start + rows]
        largest = block.amax(1, keepdim=True).float()
        powers = torch.sub(block, largest).exp_()  # fp32, as `largest` is
        total = powers.sum(1, keepdim=True)
        normalisers[start : start + rows] = largest + total.log()
        if replace:
            torch.mul(powers, kept[start : start + rows, None] / total, out=powers)
            block.copy_(powers)
    log_probability = at_target - normalisers
    if replace:
        # p - 1 from the logarithm: in bfloat16, p itself is too coarse near 1.
        logits.scatter_(1, columns, (torch.expm1(log_probability) * kept.unsqueeze(1)).to(logits.dtype))
    return torch.where(kept, -log_probability.squeeze(1), 0.0)


def _add_weight_gradient(total: Tensor, d_logits: Tensor, hidden: Tensor, first: bool) -> None:
    """total (V, D) fp32 += d_logits (R, V)^T hidden (R, D); `first`: = instead."""
    if d_logits.dtype == torch.float32:
        if first:
            torch.mm(d_logits.t(), hidden, out=total)
        else:
            total.addmm_(d_logits.t(), hidden)
        return
    for start in range(0, len(total), WEIGHT_ROWS):
        rows = slice(start, start + WEIGHT_ROWS)
        product = torch.mm(d_logits[:, rows].t(), hidden)
        if first:
            total[rows].copy_(product)
        else:
            total[rows].add_(product)
