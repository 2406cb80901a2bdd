"""Attention patterns against a dense masked softmax in float64, values and gradients; causality; memory.

Tolerances: float64 1e-10, float32 1e-5, bfloat16 (which rounds scores and weights, relative error 2^-9 each) 5e-2; all
inputs are standard normal.
"""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parlance.core.errors import UserError
from parlance.models import attention
from parlance.models.attention import (
    alibi_attention,
    causal_attention,
    document_attention,
    sliding_window_attention,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2}
WIDTH = 8
SCALE = 0.3

# B, H, K, T: odd lengths around the block of 128, a single position, grouped heads.
SHAPES = [(2, 4, 2, 301), (1, 3, 3, 128), (1, 4, 1, 129), (2, 2, 2, 5), (1, 2, 1, 1)]


def inputs(B: int, H: int, K: int, T: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """q, k, v as a projection leaves them: (B, heads, T, E) views of (B, T, heads, E)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, heads, WIDTH) for heads in (H, K, K)]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def dense(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """The definition, with the whole T x T matrix."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (SCALE * q @ k.mT + bias).softmax(-1) @ v


def hidden(visible: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)


def distances(T: int) -> Tensor:
    """i - j of query i and key j."""
    return torch.arange(T)[:, None] - torch.arange(T)


def assert_equals_dense(function, bias: Tensor, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Output and the gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs(*shape, dtype)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    weight = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    found, wanted = function(*leaves), dense(*exact, bias)
    assert found.dtype == dtype
    found.backward(weight)
    wanted.backward(weight.double())
    # Gradients are sums over up to T terms: allow them the growth of their size.
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    for leaf, reference in zip(leaves, exact, strict=True):
        size = max(1.0, float(reference.grad.abs().max()))
        torch.testing.assert_close(leaf.grad.double(), reference.grad, atol=tolerance * size, rtol=0.0)


@pytest.fixture(params=["float32", "bfloat16", "float64", "float64 by products"])
def dtype(request, monkeypatch) -> torch.dtype:
    """The arithmetic, and with the last the other way through the code, exactly."""
    if request.param.endswith("products"):
        monkeypatch.setattr(attention, "_fused", lambda _: False)
    return getattr(torch, request.param.split()[0])


@pytest.fixture(params=SHAPES, ids=str)
def shape(request) -> tuple[int, int, int, int]:
    return request.param


def test_causal(shape, dtype):
    bias = hidden(distances(shape[3]) >= 0)
    assert_equals_dense(lambda q, k, v: causal_attention(q, k, v, SCALE), bias, shape, dtype)


@pytest.mark.parametrize("T", [attention.KEEP_WEIGHTS + 1, attention.PRODUCTS + 1])
def test_causal_where_another_way_is_taken(T):
    bias = hidden(distances(T) >= 0)
    assert_equals_dense(lambda q, k, v: causal_attention(q, k, v, SCALE), bias, (1, 2, 1, T), torch.bfloat16)


@pytest.mark.parametrize("window", [1, 2, 100, 128, 200, 1000])
def test_sliding_window(window, shape, dtype):
    d = distances(shape[3])
    bias = hidden((d >= 0) & (d < window))
    assert_equals_dense(lambda q, k, v: sliding_window_attention(q, k, v, window, SCALE), bias, shape, dtype)


def test_the_window_is_that_of_transformers():
    masking = pytest.importorskip("transformers.masking_utils")
    T, window = 12, 5
    position = torch.arange(T)
    bias = hidden(masking.sliding_window_causal_mask_function(window)(0, 0, position[:, None], position))
    q, k, v = inputs(1, 2, 1, T, torch.float64)
    torch.testing.assert_close(sliding_window_attention(q, k, v, window, SCALE), dense(q, k, v, bias))


def test_alibi(shape, dtype):
    slopes = 2.0 ** (-8 * torch.arange(1, shape[1] + 1, dtype=torch.float64) / shape[1])
    d = distances(shape[3])
    bias = hidden(d >= 0) - slopes[:, None, None] * d
    assert_equals_dense(lambda q, k, v: alibi_attention(q, k, v, slopes, SCALE), bias, shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alibi_stays_exact_far_from_the_beginning(dtype):
    """The last queries of a long sequence, where slope times position reaches 3 000, against float64."""
    T, tail = 4096, 64
    slopes = torch.tensor([0.75, 1 / 256])
    q, k, v = inputs(1, 2, 2, T, dtype)
    with torch.inference_mode():
        found = alibi_attention(q, k, v, slopes, SCALE)[:, :, -tail:]
    d = distances(T)[-tail:]
    wanted = dense(
        q[:, :, -tail:].double(), k.double(), v.double(), hidden(d >= 0) - slopes[:, None, None].double() * d
    )
    torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype], rtol=0.0)


def random_documents(B: int, T: int, generator: torch.Generator) -> Tensor:
    """Runs of random lengths with random numbers, of which neighbours differ."""
    begins = torch.rand(B, T, generator=generator) < 0.05
    return begins.cumsum(-1) * 7 % 5


def test_documents(shape, dtype):
    documents = random_documents(shape[0], shape[3], torch.Generator().manual_seed(3))
    documents[:, -shape[3] // 4 :] = 99  # padding
    runs = torch.zeros_like(documents)
    runs[:, 1:] = (documents[:, 1:] != documents[:, :-1]).cumsum(-1)  # a number that comes back is a new document
    same = runs[:, :, None] == runs[:, None, :]
    bias = hidden((same & (distances(shape[3]) >= 0)).unsqueeze(1))
    assert_equals_dense(lambda q, k, v: document_attention(q, k, v, documents, SCALE), bias, shape, dtype)


def test_each_document_is_as_if_alone():
    q, k, v = inputs(2, 4, 2, 400, torch.float64)
    documents = torch.zeros(2, 400, dtype=torch.int64)
    documents[0, 150:], documents[1, 333:] = 1, 1
    together = document_attention(q, k, v, documents, SCALE)
    for row, start, stop in ((0, 0, 150), (0, 150, 400), (1, 0, 333), (1, 333, 400)):
        alone = causal_attention(*(x[row : row + 1, :, start:stop] for x in (q, k, v)), SCALE)
        torch.testing.assert_close(together[row : row + 1, :, start:stop], alone)


# --- what holds of all ------------------------------------------------------------------------------------------------

PATTERNS = {
    "causal": lambda q, k, v: causal_attention(q, k, v, SCALE),
    "window": lambda q, k, v: sliding_window_attention(q, k, v, 100, SCALE),
    "alibi": lambda q, k, v: alibi_attention(q, k, v, torch.tensor([0.5, 0.25]), SCALE),
    "documents": lambda q, k, v: document_attention(
        q, k, v, (torch.arange(q.shape[2]) // 70).expand(len(q), -1), SCALE
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PATTERNS)
@torch.inference_mode()
def test_the_future_does_not_change_the_past_by_one_bit(name, dtype):
    q, k, v = inputs(2, 2, 1, 300, dtype)
    before = PATTERNS[name](q, k, v)
    for place in (0, 1, 127, 128, 200, 299):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, place:] += 1.0
        after = PATTERNS[name](*changed)
        assert torch.equal(after[:, :, :place], before[:, :, :place])
        assert not torch.equal(after[:, :, place], before[:, :, place])


@pytest.mark.parametrize("name", PATTERNS)
def test_any_layout_in_memory_is_read_right(name, dtype):
    """Columns before rows, and a gradient that is one number spread over all."""
    dense_leaves = [x.contiguous().requires_grad_() for x in inputs(2, 2, 1, 140, dtype)]
    leaves = [x.detach().mT.contiguous().mT.requires_grad_() for x in dense_leaves]
    assert all(x.stride(-1) != 1 for x in leaves)
    wanted, found = PATTERNS[name](*dense_leaves), PATTERNS[name](*leaves)
    torch.testing.assert_close(found, wanted)
    expected = torch.autograd.grad(wanted, dense_leaves, torch.ones_like(wanted))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves), expected)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that a tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                # What is stored, not what a view shows.
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PATTERNS)
def test_no_tensor_grows_with_the_square_of_the_length(name, dtype):
    largest = []
    for T in (2304, 4608):  # beyond both lengths up to which causal attention takes other ways
        leaves = [x.detach().requires_grad_() for x in inputs(1, 2, 1, T, dtype)]
        with LargestTensor() as mode:
            PATTERNS[name](*leaves).float().sum().backward()
        largest.append(mode.elements)
        assert mode.elements < T * T / 4
    assert largest[1] <= 2.1 * largest[0]


def test_a_window_of_nothing_is_refused():
    q, k, v = inputs(1, 1, 1, 4, torch.float32)
    with pytest.raises(UserError, match="window"):
        sliding_window_attention(q, k, v, 0, SCALE)
