"""The convolutional model against a direct loop and torch's convolution."""

import pytest
import torch
import torch.nn.functional as F

from parlance.models.convolutional import Convolutional, ConvolutionalConfig, causal_taps

CONFIG = ConvolutionalConfig(vocab_size=30, layers=4, width=12, kernel=3, dilation_cycle=3)


@pytest.fixture
def model() -> Convolutional:
    made = Convolutional(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.2, 0.3, generator=generator)
    return made


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + CONFIG.norm_epsilon).sqrt() * weight


@torch.inference_mode()
def test_the_whole_equals_a_direct_loop_over_positions_and_taps(model):
    """In float64, a position and a tap at a time."""
    tokens = torch.randint(0, 30, (23,), generator=torch.Generator().manual_seed(1))
    x = model.embed_tokens.weight.double()[tokens]
    for layer, dilation in zip(model.layers, (1, 2, 4, 1), strict=True):
        weights = {name: parameter.double() for name, parameter in layer.named_parameters()}
        inputs = norm(x, weights["input_layernorm.weight"])
        rows = []
        for place in range(23):
            total = torch.zeros(2 * CONFIG.width, dtype=torch.float64)
            for tap in range(3):
                source = place - (2 - tap) * dilation
                if source >= 0:
                    part = weights["conv_proj.weight"][:, tap * CONFIG.width : (tap + 1) * CONFIG.width]
                    total += part @ inputs[source]
            value, gate = total[: CONFIG.width], total[CONFIG.width :]
            rows.append(x[place] + weights["out_proj.weight"] @ (value / (1 + torch.exp(-gate))))
        x = torch.stack(rows)
    expected = norm(x, model.norm.weight.double()) @ model.lm_head.weight.double().t()
    torch.testing.assert_close(model.forward(tokens.unsqueeze(0))[0][0].double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("taps", "dilation"), [(2, 1), (3, 4), (4, 3)])
def test_taps_side_by_side_are_a_dilated_convolution(taps, dilation):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 17, 5, generator=generator)
    weight = torch.randn(7, taps * 5, generator=generator)
    windows, past = causal_taps(x, torch.zeros(2, (taps - 1) * dilation, 5), taps, dilation)
    padded = F.pad(x.transpose(1, 2), ((taps - 1) * dilation, 0))
    kernel = weight.view(7, taps, 5).transpose(1, 2)
    expected = F.conv1d(padded, kernel, dilation=dilation).transpose(1, 2)
    torch.testing.assert_close(windows @ weight.t(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(past, x[:, 17 - (taps - 1) * dilation :])


@torch.inference_mode()
def test_blocks_begin_as_the_identity(model):
    model.initialise(torch.Generator().manual_seed(3))
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(4))
    for layer, past in zip(model.layers, model.new_state(2, 5).inputs, strict=True):
        assert torch.equal(layer(x, past)[0], x)
        assert bool(layer.conv_proj.weight.any())
