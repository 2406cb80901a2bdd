"""`torch.compile` for training, where it pays: block by block, so that one compilation serves every layer.

Fusing the element-wise work makes a step 1.6 times as fast on a CPU with fast matrix products (docs/lab-notebook.md);
compiling costs 10 to 40 s the first time and a few seconds when torch's own cache is warm. Without a C++ compiler, or
when the compiled loss differs from the eager one, training goes on without it and says so.
"""

import shutil

import torch
from torch import Tensor

from parlance.core.progress import say
from parlance.models.transformer import Transformer
from parlance.training.objectives import NextTokenObjective, TokenBatch, cross_entropy_sum

WORTH_SECONDS = 60.0
"""Shorter runs are not compiled."""

RELATIVE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Largest relative difference between the compiled and the eager loss of the first batch."""


def compiler_available() -> bool:
    """Whether a C++ compiler that torch's code generator can call is on the path."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_training(model: Transformer, objective: NextTokenObjective, batch: TokenBatch) -> bool:
    """Compile the model's blocks and the objective's head for the shape of `batch`; returns whether that succeeded.

    Runs one forward and backward pass (gradients are dropped). On failure everything is as before.
    """
    if model.device.type == "cpu" and not compiler_available():
        say("not compiling: there is no C++ compiler on this machine (training is about a third slower)")
        return False
    with torch.no_grad():
        eager = float(objective(model, batch).loss_sum)
    try:
        for block in model.layers:
            block.compile(fullgraph=True, dynamic=False)
        objective.cross_entropy = torch.compile(cross_entropy_sum, dynamic=False)
        loss: Tensor = objective(model, batch).loss_sum
        loss.backward()  # type: ignore[no-untyped-call]
        compiled = float(loss.detach())
    except Exception as error:  # any failure of the code generator, of whatever class, means: go on without it
        _undo(model, objective)
        say(f"not compiling: {type(error).__name__} ({str(error).partition(chr(10))[0][:120]})")
        return False
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    # Written so that a loss that is not a number fails too.
    if not abs(compiled - eager) <= RELATIVE_TOLERANCE[model.compute_dtype] * abs(eager):
        _undo(model, objective)
        say(f"not compiling: the compiled loss {compiled:.6g} differs from the eager {eager:.6g}")
        return False
    return True


def _undo(model: Transformer, objective: NextTokenObjective) -> None:
    for block in model.layers:
        block._compiled_call_impl = None
    objective.cross_entropy = cross_entropy_sum
    torch._dynamo.reset()
