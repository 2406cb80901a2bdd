"""`chunked_cross_entropy` against `F.cross_entropy` of the whole product."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parlance.training import cross_entropy
from parlance.training.cross_entropy import IGNORE, chunked_cross_entropy

Case = tuple[Tensor, Tensor, Tensor | None, Tensor]


def case(N: int, D: int, V: int, dtype: torch.dtype = torch.float32, bias: bool = True, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=generator) * D**-0.5).requires_grad_()
    offsets = torch.randn(V, generator=generator).requires_grad_() if bias else None
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < 0.3] = IGNORE
    return hidden, weight, offsets, targets


def exact(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float = 1.0) -> list[Tensor]:
    """Loss and gradients in fp64, of the values as `hidden`'s dtype has them."""
    leaves = [x.detach().to(hidden.dtype).double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    logits = F.linear(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") * scale
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def ours(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float = 1.0) -> list[Tensor]:
    loss = chunked_cross_entropy(hidden, weight, bias, targets) * scale
    loss.backward()
    return [loss.detach(), *(x.grad for x in (hidden, weight, bias) if x is not None and x.grad is not None)]


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-30))


@pytest.fixture(params=[2**28, 7 * 192 * 4, 1])
def buffer_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk, several, and one position a chunk; and softmax blocks of few rows."""
    monkeypatch.setattr(cross_entropy, "BUFFER_BYTES", request.param)
    monkeypatch.setattr(cross_entropy, "BLOCK_ELEMENTS", 500)
    monkeypatch.setattr(cross_entropy, "WEIGHT_ROWS", 50)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.usefixtures("buffer_bytes")
def test_loss_and_gradients_equal_those_of_the_whole(
    dtype: torch.dtype, tolerance: float, bias: bool, scale: float
) -> None:
    inputs = case(37, 24, 131, dtype, bias)
    found, expected = ours(*inputs, scale), exact(*inputs, scale)
    assert len(found) == len(expected)
    for mine, truth in zip(found, expected, strict=True):
        assert difference(mine, truth) < tolerance
    assert found[1].dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in found[2:])


@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 40), D=st.integers(1, 20), V=st.integers(2, 300), seed=st.integers(0, 10**6))
def test_any_shape(N: int, D: int, V: int, seed: int) -> None:
    inputs = case(N, D, V, seed=seed)
    for mine, truth in zip(ours(*inputs), exact(*inputs), strict=True):
        assert float((mine.double() - truth).abs().max()) < 1e-5 * max(1.0, float(truth.abs().max()))


def test_ignored_positions_count_for_nothing() -> None:
    hidden, weight, bias, targets = case(20, 8, 50)
    loss, d_hidden, d_weight, d_bias = ours(hidden, weight, bias, targets)
    kept = targets != IGNORE
    assert not d_hidden[~kept].any()
    assert bool(d_hidden[kept].any(1).all())
    part = hidden.detach()[kept].requires_grad_()
    weight.grad = None
    assert bias is not None
    bias.grad = None
    fewer = ours(part, weight, bias, targets[kept])
    torch.testing.assert_close(loss, fewer[0])
    torch.testing.assert_close(d_weight, fewer[2])
    torch.testing.assert_close(d_bias, fewer[3])


def test_nothing_but_ignored_positions() -> None:
    hidden, weight, _, targets = case(5, 8, 50)
    loss, d_hidden, d_weight = ours(hidden, weight, None, torch.full_like(targets, IGNORE))
    assert float(loss) == 0
    assert not d_hidden.any()
    assert not d_weight.any()


def test_no_positions() -> None:
    hidden, weight, _, targets = case(0, 8, 50)
    loss, _, d_weight = ours(hidden, weight, None, targets)
    assert float(loss) == 0
    assert not d_weight.any()


def test_a_nearly_certain_target_has_an_exact_gradient_in_bfloat16() -> None:
    # Logits 8 and 0: p - 1 = -3.35e-4, where p itself would round to 1.
    hidden = torch.tensor([[8.0]], dtype=torch.bfloat16).requires_grad_()
    weight = torch.tensor([[1.0], [0.0]]).requires_grad_()
    chunked_cross_entropy(hidden, weight, None, torch.tensor([0])).backward()
    assert weight.grad is not None
    expected = 8 * torch.sigmoid(torch.tensor(-8.0))
    torch.testing.assert_close(weight.grad[:, 0], torch.stack((-expected, expected)), rtol=8e-3, atol=0)


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.tensor([[1e4], [-1e4]]).requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [-1.0]]).requires_grad_()
    loss, d_hidden, _ = ours(hidden, weight, None, torch.tensor([0, 0]))
    assert float(loss) == 2e4
    torch.testing.assert_close(d_hidden, torch.tensor([[0.0], [-2.0]]))


def test_without_gradients_only_the_loss_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case(20, 8, 50)
    expected = ours(*inputs)[0]
    monkeypatch.setattr(cross_entropy, "_add_weight_gradient", lambda *_: pytest.fail("a gradient was computed"))
    with torch.no_grad():
        loss = chunked_cross_entropy(*inputs)
    assert not loss.requires_grad
    assert torch.equal(loss, expected)


class LargestStorage(TorchDispatchMode):
    """Remembers the size in bytes of the largest memory that any operation's result lies in."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_buffer_or_weight(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cross_entropy, "BUFFER_BYTES", 30_000)
    monkeypatch.setattr(cross_entropy, "BLOCK_ELEMENTS", 5_000)
    inputs = case(400, 4, 1000, dtype)  # the logits of all would take 1.6 MB in fp32
    with LargestStorage() as largest:
        ours(*inputs)
    assert largest.bytes <= 30_000
