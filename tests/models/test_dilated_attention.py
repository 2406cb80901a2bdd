"""Dilated attention against the definition, position by position, and its decoding step against the whole."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import SCALE, LargestTensor, dense, inputs
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models import dilated_attention as module
from parlance.models.dilated_attention import check_segments, dilated_attention, dilated_step

SEGMENTS = ((16, 1), (48, 3), (100, 4))


def branch_mask(T: int, H: int, w: int, r: int) -> Tensor:
    """(H, T, T) bool: what one branch shows, straight from its definition."""
    mask = torch.zeros(H, T, T, dtype=torch.bool)
    for head in range(H):
        for begin in range(0, T, w):
            kept = torch.arange(begin, min(begin + w, T))[head % r :: r]
            mask[head, kept[:, None], kept] = kept <= kept[:, None]
    return mask


def mixture(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
    """Branch by branch: its own softmax, then the mixture by the softmax of their log-sum-exps."""
    H, T = q.shape[1:3]
    group = H // k.shape[1]
    scores = SCALE * q @ k.repeat_interleave(group, 1).mT
    outputs, weights = [], []
    for w, r in segments:
        mask = branch_mask(T, H, w, r)
        kept = mask.any(-1, keepdim=True)
        # Rows of nothing get a finite stand-in, so that no gradient becomes NaN; their weight is 0.
        masked = scores.masked_fill(~mask & kept, -math.inf)
        outputs.append(masked.softmax(-1) @ v.repeat_interleave(group, 1))
        weights.append(masked.logsumexp(-1, keepdim=True).masked_fill(~kept, -math.inf))
    lse = torch.stack(weights)
    none = torch.isinf(lse).all(0)
    alpha = lse.masked_fill(none, 0.0).softmax(0).masked_fill(none, 0.0)
    return (alpha * torch.stack(outputs)).sum(0)


def assert_equals_mixture(H: int, K: int, T: int, segments, dtype: torch.dtype, tolerance: float) -> None:
    leaves = [x.detach().requires_grad_() for x in inputs(2, H, K, T, dtype)]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    weight = torch.randn(exact[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)
    found, wanted = dilated_attention(*leaves, segments, SCALE), mixture(*exact, segments)
    assert found.dtype == dtype
    found.backward(weight)
    wanted.backward(weight.double())
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    for leaf, reference in zip(leaves, exact, strict=True):
        size = max(1.0, float(reference.grad.abs().max()))
        torch.testing.assert_close(leaf.grad.double(), reference.grad, atol=tolerance * size, rtol=0.0)


@pytest.fixture(params=[False, True], ids=["fused", "products"])
def _both_ways(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(module, "_fused", lambda _: False)


@pytest.mark.parametrize("segments", [SEGMENTS, ((64, 4),), ((16, 2), (500, 7)), ((1, 1),)], ids=str)
@pytest.mark.parametrize(("H", "K", "T"), [(4, 2, 149), (3, 3, 16), (6, 1, 100), (2, 1, 1)])
@pytest.mark.usefixtures("_both_ways")
def test_values_and_gradients(H, K, T, segments):
    assert_equals_mixture(H, K, T, segments, torch.float64, 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_in_the_dtypes_of_models(dtype, tolerance):
    assert_equals_mixture(4, 2, 149, SEGMENTS, dtype, tolerance)


@pytest.mark.usefixtures("_both_ways")
def test_any_layout_in_memory_is_read_right():
    dense_leaves = [x.contiguous().requires_grad_() for x in inputs(2, 4, 2, 140, torch.float64)]
    leaves = [x.detach().mT.contiguous().mT.requires_grad_() for x in dense_leaves]
    wanted, found = (dilated_attention(*each, SEGMENTS, SCALE) for each in (dense_leaves, leaves))
    torch.testing.assert_close(found, wanted)
    expected = torch.autograd.grad(wanted, dense_leaves, torch.ones_like(wanted))
    torch.testing.assert_close(torch.autograd.grad(found.sum(), leaves), expected)


def test_long_segments_in_bfloat16():
    T = 2 * module.PRODUCTS + 3  # one segment through the fused kernel
    assert_equals_mixture(2, 2, T, ((T, 1), (T // 2, 2)), torch.bfloat16, 5e-2)


@settings(deadline=None, max_examples=25)
@given(
    T=st.integers(1, 60),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    segments=st.lists(
        st.integers(1, 70).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, min(w, 6)))), min_size=1, max_size=3
    ).map(tuple),
)
def test_any_segments(T, heads, segments):
    assert_equals_mixture(*heads, T, segments, torch.float64, 1e-10)


def test_one_branch_without_dilation_is_causal_attention_in_each_segment():
    q, k, v = inputs(1, 2, 2, 50, torch.float64)
    position = torch.arange(50)
    visible = (position[:, None] >= position) & (position[:, None] // 20 == position // 20)
    bias = torch.zeros(50, 50, dtype=torch.float64).masked_fill(~visible, -math.inf)
    torch.testing.assert_close(dilated_attention(q, k, v, ((20, 1),), SCALE), dense(q, k, v, bias))


def test_what_no_branch_keeps_is_zero():
    q, k, v = inputs(1, 4, 4, 40, torch.float32)
    y = dilated_attention(q, k, v, ((40, 4),), SCALE)
    for head in range(4):
        kept = torch.arange(40) % 4 == head
        assert (y[0, head, ~kept] == 0).all()
        assert (y[0, head, kept] != 0).any(-1).all()


@pytest.mark.parametrize("segments", [SEGMENTS, ((40, 4),), ((24, 2), (33, 1))], ids=str)
@pytest.mark.parametrize(("H", "K"), [(4, 2), (3, 3)])
def test_the_step_is_the_whole_at_its_positions(segments, H, K):
    """Rows at different positions, a cache that is longer than any of them and holds old values there."""
    q, k, v = inputs(3, H, K, 130, torch.float64)
    whole = dilated_attention(q, k, v, segments, SCALE)
    for T in (1, 3):
        for begins in ([0, 50, 127], [99, 100, 101], [17, 17, 17]):
            positions = torch.tensor(begins)[:, None] + torch.arange(T)
            at = positions[:, None, :, None].expand(-1, H, -1, q.shape[3])
            cache_k, cache_v = k.clone(), v.clone()
            for row, begin in enumerate(begins):
                cache_k[row, :, begin + T :], cache_v[row, :, begin + T :] = 1e3, 1e3
            step = dilated_step(q.gather(2, at), cache_k, cache_v, positions, segments, SCALE)
            torch.testing.assert_close(step, whole.gather(2, at), atol=1e-10, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_step_in_the_dtypes_of_models(dtype):
    q, k, v = inputs(2, 4, 2, 90, dtype)
    whole = dilated_attention(q, k, v, SEGMENTS, SCALE)
    step = dilated_step(q[:, :, 88:], k, v, torch.tensor([[88, 89]] * 2), SEGMENTS, SCALE)
    assert step.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(step.float(), whole[:, :, 88:].float(), atol=tolerance, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_future_does_not_change_the_past_by_one_bit(dtype):
    q, k, v = inputs(2, 4, 2, 200, dtype)
    before = dilated_attention(q, k, v, SEGMENTS, SCALE)
    for place in (0, 1, 47, 48, 100, 199):
        changed = [x.clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, place:] += 1.0
        after = dilated_attention(*changed, SEGMENTS, SCALE)
        assert torch.equal(after[:, :, :place], before[:, :, :place])
        assert not torch.equal(after[:, :, place], before[:, :, place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_grows_with_the_square_of_the_length(dtype):
    largest = []
    for T in (1024, 2048):
        leaves = [x.detach().requires_grad_() for x in inputs(1, 4, 2, T, dtype)]
        with LargestTensor() as mode:
            dilated_attention(*leaves, ((64, 1), (256, 4), (1024, 16)), SCALE).float().sum().backward()
        largest.append(mode.elements)
    assert largest[1] < 2048**2 / 4
    assert largest[1] <= 2.1 * largest[0]


@pytest.mark.parametrize("segments", [(), ((0, 1),), ((4, 0),), ((4, 5),), ((4, 1), (8, -1))], ids=str)
def test_impossible_segments_are_refused(segments):
    with pytest.raises(UserError, match="dilated attention needs"):
        check_segments(segments)
