"""All processes compile, or none: where one has no compiler, or finds other numbers in what it compiled."""

from functools import partial

import pytest
import torch
from comparisons import batch, transformer
from schemes import world_here

from parlance.training import compilation
from parlance.training.objectives import NextTokenObjective, cross_entropy_sum


def pretend(block, **_):
    block._compiled_call_impl = block.forward


def compile_here(without, differs):
    """Compile (nothing is really compiled) where process `without` has no compiler, and `differs` other numbers.

    Whether it was compiled; whether the model is; what was said; how often the loss was computed.
    """
    rank, said, passes = torch.distributed.get_rank(), [], []
    model, objective = transformer(), NextTokenObjective()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "compiler_available", lambda: rank != without)
        patch.setattr(compilation, "_difference", lambda *_: "other numbers" * (rank == differs))
        patch.setattr(compilation, "say", said.append)
        patch.setattr(compilation, "_loss_and_gradients", lambda *_: passes.append(1))
        patch.setattr(torch, "compile", lambda function, **_: lambda *args: function(*args))
        patch.setattr(torch._dynamo, "reset", lambda: None)
        for block in model.layers:
            patch.setattr(block, "compile", partial(pretend, block))
        done = compilation.compile_training(model, objective, batch(), world_here().objection)
    left = [block._compiled_call_impl is not None for block in model.layers]
    left.append(objective.cross_entropy is not cross_entropy_sum)
    return done, set(left), said, len(passes)


@pytest.mark.parametrize(
    ("without", "differs", "compiled", "said", "passes"),
    [
        pytest.param(None, None, True, [], 2, id="all"),
        pytest.param(1, None, False, ["not compiling: there is no C++ compiler on this machine"], 0, id="no-compiler"),
        pytest.param(None, 1, False, ["not compiling: other numbers"], 2, id="other-numbers"),
    ],
)
def test_all_processes_compile_or_none(world, without, differs, compiled, said, passes):
    for done, left, told, computed in world(2).run(compile_here, without, differs):
        assert done is compiled
        assert left == {compiled}
        assert [words.partition(" (")[0] for words in told] == said
        assert computed == passes  # of blocks that exchange, all or none compute
