"""Compiled training is used where it works and agrees, and never leaves anything behind where it does not."""

import os

import pytest
import torch

from parlance.training import compilation
from parlance.training.compilation import compile_training, compiler_available
from parlance.training.objectives import NextTokenObjective, cross_entropy_sum, token_batch


@pytest.fixture
def batch():
    return token_batch(torch.randint(0, 260, (2, 33), generator=torch.Generator().manual_seed(0)))


def loss_and_gradients(model, objective, batch):
    model.zero_grad()
    terms = objective(model, batch)
    terms.loss_sum.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    return float(terms.loss_sum.detach()), gradients


def untouched(model, objective) -> bool:
    return (
        objective.cross_entropy is cross_entropy_sum
        and all(block._compiled_call_impl is None for block in model.layers)
        and all(value.grad is None for value in model.parameters())
    )


@pytest.mark.skipif(not compiler_available(), reason="no C++ compiler on this machine")
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled_training_computes_the_same(tiny_transformer, batch):
    """The slowest test: 10 to 20 s the first time, a few when torch's own cache is warm."""
    model, objective = tiny_transformer(layers=1), NextTokenObjective()
    loss, gradients = loss_and_gradients(model, objective, batch)
    assert compile_training(model, objective, batch)
    assert all(block._compiled_call_impl is not None for block in model.layers)
    assert all(value.grad is None for value in model.parameters())
    compiled_loss, compiled_gradients = loss_and_gradients(model, objective, batch)
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(compiled_gradients, gradients, atol=1e-4, rtol=1e-4)
    # Sampling during training works on a copy.
    assert model.inference_copy().forward(batch.inputs)[0].shape == (2, 32, 260)


@pytest.mark.parametrize("chosen", [None, "/somewhere/else"])
def test_what_is_compiled_is_kept_in_the_users_cache_folder(tiny_transformer, batch, monkeypatch, tmp_path, chosen):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", chosen or "")
    if chosen is None:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(compilation, "compiler_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **_options: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)
    assert compile_training(tiny_transformer(), NextTokenObjective(), batch)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == (chosen or str(tmp_path / "parlance" / "compiled"))


def test_without_a_compiler_training_goes_on(tiny_transformer, batch, monkeypatch, capsys):
    model, objective = tiny_transformer(), NextTokenObjective()
    monkeypatch.setattr(compilation.shutil, "which", lambda _name: None)
    assert not compile_training(model, objective, batch)
    assert untouched(model, objective)
    assert "not compiling: there is no C++ compiler" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("g++ died\nlong story"), "RuntimeError (g++ died)"), (ValueError(), "ValueError ()")],
)
def test_a_failure_of_the_code_generator_leaves_everything_as_it_was(
    tiny_transformer, batch, monkeypatch, capsys, error, told
):
    model, objective = tiny_transformer(), NextTokenObjective()
    monkeypatch.setattr(compilation, "compiler_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **_options: None)

    class FailsInBackward(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _gradient):
            raise error

    def compiled(function, **_options):
        # The head's gradient arrives, that of the blocks never does.
        return lambda model, hidden, targets: function(model, FailsInBackward.apply(hidden), targets)

    monkeypatch.setattr(torch, "compile", compiled)
    assert not compile_training(model, objective, batch)
    assert untouched(model, objective)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("factor", [1.01, float("nan"), float("inf")])
def test_a_compiled_loss_that_differs_is_not_trusted(tiny_transformer, batch, monkeypatch, capsys, factor):
    model, objective = tiny_transformer(), NextTokenObjective()
    monkeypatch.setattr(compilation, "compiler_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **_options: None)
    monkeypatch.setattr(torch, "compile", lambda function, **_options: lambda *inputs: function(*inputs) * factor)
    assert not compile_training(model, objective, batch)
    assert untouched(model, objective)
    assert "differs from the eager" in capsys.readouterr().err


class WrongBranch:
    """What a block adds to its input, times a factor: in its value, in its gradient, in that of its queries alone."""

    def __init__(self, block, value: float, gradient: float, queries: float) -> None:
        self.block, self.value, self.gradient, self.queries = block, value, gradient, queries

    def __call__(self, x, *rest):
        def wrong_inside(_module, _inputs, y):
            return y * self.queries + (y - y * self.queries).detach()

        hook = self.block.self_attn.q_proj.register_forward_hook(wrong_inside)
        branch = self.block._call_impl(x, *rest) - x
        hook.remove()
        wrong = branch * self.gradient
        return x + wrong + (branch * self.value - wrong).detach()


@pytest.fixture
def compile_wrongly(monkeypatch):
    """A function (value, gradient, queries) that makes torch compile blocks wrongly by these factors."""
    monkeypatch.setattr(compilation, "compiler_available", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)

    def start(*factors: float) -> None:
        def compiled(self, **_options):
            self._compiled_call_impl = WrongBranch(self, *factors)

        monkeypatch.setattr(torch.nn.Module, "compile", compiled)

    return start


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("factors", "told"),
    [
        ((1.0, 1.0, 1.0), ""),
        ((1.5, 1.5, 1.0), "the compiled gradient of"),
        ((1.0, 1.5, 1.0), "the compiled gradient of"),
        ((1.0, 1.0, 1.5), "the compiled gradient of"),
    ],
)
def test_a_wrong_block_is_found_on_fresh_weights(
    tiny_transformer, batch, compile_wrongly, capsys, dtype, factors, told
):
    """Fresh blocks are the identity: what they compute shows only once their outputs are no longer zero."""
    model, objective = tiny_transformer(), NextTokenObjective()
    model.initialise(torch.Generator().manual_seed(0))
    model.compute_dtype = dtype
    assert not model.layers[0].self_attn.o_proj.weight.any()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    compile_wrongly(*factors)
    assert compile_training(model, objective, batch) == (not told)
    assert told in capsys.readouterr().err
    assert not told or untouched(model, objective)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
