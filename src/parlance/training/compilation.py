"""`torch.compile` for training, where it pays: block by block, so that one compilation serves every layer.

Fusing the element-wise work makes a step 1.6 times as fast on a CPU with fast matrix products (docs/lab-notebook.md);
compiling costs 10 to 40 s the first time and a few seconds after that: what was compiled is kept in the user's cache
folder (not where torch keeps it by default, which a reboot empties). Without a C++ compiler, or
when a compiled loss or gradient differs from the eager one, training goes on without it and says so.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from parlance.core.devices import cache_folder
from parlance.core.progress import say
from parlance.models.transformer import Transformer
from parlance.training.objectives import NextTokenObjective, TokenBatch, cross_entropy_sum

WORTH_SECONDS = 60.0
"""Shorter runs are not compiled."""

LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference between the compiled and the eager loss of the first batch."""
GRADIENT_TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference between a compiled and an eager gradient, as a share of the largest of its tensor. Rounding alone
makes up to 0.11 in bf16 (sums over all tokens: gains and biases of norms)."""
SMALL_GRADIENT = 5e-2
"""A tensor whose gradient is smaller than this share of the middle one's may be all rounding (biases of keys are: the
softmax does not see them): that share counts instead."""
HALF_FACTOR = 2.0**15
"""What the gradients of the mean loss are multiplied by in fp16, where they would be zero."""


def compiler_available() -> bool:
    """Whether a C++ compiler that torch's code generator can call is on the path."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_training(
    model: Transformer,
    objective: NextTokenObjective,
    batch: TokenBatch,
    objection: Callable[[str], str] = str,
) -> bool:
    """Compile the model's blocks and the objective's head for the shape of `batch`; returns whether that succeeded.

    Runs two forward and backward passes (gradients are dropped), and keeps a copy of the gradients meanwhile. On
    failure everything is as before. Of several processes all compile or none: `objection` gives the words of one that
    cannot (`World.objection`).
    """
    missing = model.device.type == "cpu" and not compiler_available()
    # Before anything is computed: blocks may exchange, and who does not compute leaves the others waiting.
    if told := objection("there is no C++ compiler on this machine (training is about a third slower)" * missing):
        say(f"not compiling: {told}")
        return False
    # Read by torch when it first compiles; what the user chose stays.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    try:
        with _no_zero_matrices(model):
            eager = _loss_and_gradients(model, objective, batch)
            for block in model.layers:
                block.compile(fullgraph=True, dynamic=False)
            objective.cross_entropy = torch.compile(cross_entropy_sum, dynamic=False)
            compiled = _loss_and_gradients(model, objective, batch)
        told = _difference(eager, compiled, model.compute_dtype)
    except Exception as error:  # any failure of the code generator, of whatever class, means: go on without it
        told = f"{type(error).__name__} ({str(error).partition(chr(10))[0][:120]})"
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    if told := objection(told):
        _undo(model, objective)
        say(f"not compiling: {told}")
    return not told


@contextmanager
def _no_zero_matrices(model: Transformer) -> Iterator[None]:
    """Within the block matrices that are zero are drawn: behind a zero output a fresh block may compute anything."""
    zero = [here for value in model.parameters() if value.ndim > 1 and not (here := _local(value.detach())).any()]
    try:
        for matrix in zero:
            # A generator for each: processes that hold the same matrix draw the same, whatever else they hold.
            drawn = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
            matrix.copy_(drawn * matrix.shape[-1] ** -0.5)
        yield
    finally:
        for matrix in zero:
            matrix.zero_()


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    if not torch.distributed.is_initialized():
        return tensor
    from parlance.training.parallel.sharding import local

    return local(tensor)


def _loss_and_gradients(
    model: Transformer, objective: NextTokenObjective, batch: TokenBatch
) -> tuple[float, dict[str, Tensor]]:
    """The summed loss, and this process's gradients by the parameter's name."""
    terms = objective(model, batch)
    factor = HALF_FACTOR / max(1, terms.count) if model.compute_dtype == torch.float16 else 1.0
    (terms.loss_sum * factor).backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = _local(parameter.grad).float()
        parameter.grad = None
    return float(terms.loss_sum.detach()), gradients


def _difference(
    eager: tuple[float, dict[str, Tensor]], compiled: tuple[float, dict[str, Tensor]], dtype: torch.dtype
) -> str:
    """What the compiled code computes otherwise than the eager one; nothing where they agree."""
    # Comparisons are written so that what is not a number fails too.
    if not abs(compiled[0] - eager[0]) <= LOSS_TOLERANCE[dtype] * abs(eager[0]):
        return f"the compiled loss {compiled[0]:.6g} differs from the eager {eager[0]:.6g}"
    if eager[1].keys() != compiled[1].keys():
        return "the compiled model gives other parameters a gradient than the eager one"
    largest = {name: float(gradient.abs().max()) for name, gradient in eager[1].items() if gradient.numel()}
    least = SMALL_GRADIENT * sorted(largest.values())[len(largest) // 2] if largest else 0.0
    for name, size in largest.items():
        apart = float((compiled[1][name] - eager[1][name]).abs().max())
        if not apart <= GRADIENT_TOLERANCE[dtype] * max(size, least):
            return f"the compiled gradient of {name} differs from the eager by {apart:.3g}, whose largest is {size:.3g}"
    return ""


def _undo(model: Transformer, objective: NextTokenObjective) -> None:
    for block in model.layers:
        block._compiled_call_impl = None
    objective.cross_entropy = cross_entropy_sum
    torch._dynamo.reset()
