"""Hand-written gradients against finite differences, and values against torch's own functions."""

import pytest
import torch
import torch.nn.functional as F

from parlance.models.elementwise import relu_squared, unit_rms

PAIRS = {
    "norm": (lambda x: unit_rms(x, 1e-3), lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-3)),
    "squared relu": (relu_squared, lambda x: F.relu(x).square()),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_gradients_are_those_of_finite_differences(pair):
    x = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(pair[0], x)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_torch(pair, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    start, grad = (torch.randn(5, 64, generator=generator).to(dtype) for _ in range(2))
    results = []
    for function in pair:
        x = start.clone().requires_grad_()
        y = function(x)
        y.backward(grad)
        results.append((y.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_norm_of_nothing_is_nothing():
    x = torch.zeros(2, 4, requires_grad=True)
    y = unit_rms(x, 1e-6)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()
