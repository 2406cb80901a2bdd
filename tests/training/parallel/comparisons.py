"""What ranks compute in the tests of parallel schemes: small models, batches, and how far gradients are apart."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig
from parlance.text.packing import IGNORE
from parlance.training.gradients import SingleProcess
from parlance.training.objectives import NextTokenObjective, TokenBatch

SMALL = {
    "vocab_size": 40,
    "context_length": 32,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "head_width": 4,
    "mlp_width": 24,
}


def transformer(dtype: torch.dtype = torch.float32, **sizes: Any) -> Transformer:
    """A model with every weight drawn, those that training starts at 0 or 1 too; the same on every rank."""
    model = Transformer(TransformerConfig(**(SMALL | sizes)))
    model.compute_dtype = dtype
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return model


def batch(rows: int = 2, length: int = 16, seed: int = 0, vocab_size: int = SMALL["vocab_size"]) -> TokenBatch:
    """Random tokens, of which some are not in the loss, and more of them in later rows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size, (rows, length + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    share = torch.linspace(0.05, 0.4, rows)[:, None]
    targets[torch.rand(rows, length, generator=generator) < share] = IGNORE
    return TokenBatch(tokens[:, :-1].contiguous(), targets, noise=seed)


def step(model: torch.nn.Module, batches: Sequence[TokenBatch]) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Summed loss, count, and the gradient of every parameter."""
    for parameter in model.parameters():
        parameter.grad = None
    sums = SingleProcess().backward(model, NextTokenObjective(), batches)
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sums.loss, sums.count, gradients


def furthest(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of each tensor, the largest difference over the largest element; the names must be the same.

    Where all elements are tiny beside those of the other tensors (as the gradient of a key's bias, which is zero but
    for rounding), the difference is over a hundredth of the others'.
    """
    assert list(expected) == list(got), set(expected) ^ set(got)
    least = 1e-2 * max(float(tensor.abs().max()) for tensor in expected.values())
    return {
        name: float((got[name] - tensor).abs().max()) / max(least, float(tensor.abs().max()))
        for name, tensor in expected.items()
    }


def check_step(got: Sequence[tuple[float, int, dict[str, torch.Tensor]]], dtype: torch.dtype, *args: Any) -> None:
    """Fail unless every rank's loss, count and gradients are those of one process: `step(transformer(...), batches)`.

    args: sizes of the model, batches. In fp32 within 1e-5; in bfloat16 about as near to fp32 as one process's are.
    """
    sizes, batches = args
    loss, count, expected = step(transformer(**sizes), batches)
    rounded = expected if dtype == torch.float32 else step(transformer(dtype, **sizes), batches)[2]
    for got_loss, got_count, gradients in got:
        assert got_count == count
        if dtype == torch.float32:
            apart = furthest(expected, gradients)
            assert abs(got_loss - loss) < 1e-5 * loss, (got_loss, loss)
            assert max(apart.values()) < 1e-5, apart
        else:
            assert abs(got_loss - loss) < 0.02 * loss, (got_loss, loss)
            assert _distance(expected, gradients) < 2 * _distance(expected, rounded) < 0.2


def _distance(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> float:
    """Of all tensors together, the norm of the difference over the norm."""
    pairs = [(expected[name], got[name]) for name in expected]
    off = torch.stack([(one - other).norm() for one, other in pairs]).norm()
    return float(off / torch.stack([one.norm() for one, _ in pairs]).norm())


@functools.cache
def group_of(ways: int, stride: int = 1) -> dist.ProcessGroup:
    """Of the world divided into groups of `ways` ranks that are `stride` apart, the one that this rank is in."""
    size, mine = dist.get_world_size(), None
    for first in range(0, size, ways * stride):
        for offset in range(stride):
            ranks = [first + offset + stride * number for number in range(ways)]
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                mine = group
    assert mine is not None
    return mine
