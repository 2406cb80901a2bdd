"""Recurrent models against torch's own layers, a formula step by step, and numerical gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from parlance.models.recurrent import GAINS, GATES, LIBRARY_WORTH_STEPS, Recurrent, RecurrentConfig, RecurrentLayer

D, B = 6, 3


def random_layer(cell: str, dtype: torch.dtype = torch.float32, width: int = D, gain: float = 2.0) -> RecurrentLayer:
    layer = RecurrentLayer(RecurrentConfig(vocab_size=2, layers=1, width=width, cell=cell, residual=False)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, gain / math.sqrt(width), generator=generator)
    return layer


def random_inputs(steps: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((B, steps, D), (B, D), (B, D))
    return tuple(torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True) for shape in shapes)


def torch_layer(layer: RecurrentLayer) -> nn.RNNBase:
    """Torch's layer with the same weights."""
    kinds = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
    order = {"elman": [0], "gru": [0, 1, 2], "lstm": [0, 1, 3, 2]}[layer.cell]
    peer = kinds[layer.cell](D, D, batch_first=True)

    def reordered(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight.chunk(len(order))[gate] for gate in order])

    with torch.no_grad():
        peer.weight_ih_l0.copy_(reordered(layer.weight_ih))
        peer.weight_hh_l0.copy_(reordered(layer.weight_hh))
        peer.bias_ih_l0.copy_(reordered(layer.bias))
        peer.bias_hh_l0.zero_()
        if layer.bias_hn is not None:
            peer.bias_hh_l0[2 * D :] = layer.bias_hn
    return peer


@pytest.mark.parametrize("steps", [1, 9, LIBRARY_WORTH_STEPS + 5])
@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_a_layer_and_its_gradients_are_torchs(cell, steps):
    layer = random_layer(cell)
    x, h, c = random_inputs(steps)
    peer = torch_layer(layer)
    first = h.unsqueeze(0)
    expected, last = peer(x, (first, c.unsqueeze(0)) if cell == "lstm" else first)
    expected_cell = last[1][0] if cell == "lstm" else c
    wanted = torch.autograd.grad(expected.sin().sum() + expected_cell.square().sum(), [x, h, c, peer.bias_ih_l0])
    library = layer._library(x, h, c)
    loop, loop_cell = layer._loop(x.transpose(0, 1).contiguous(), h, c)
    for outputs, last_output, last_cell in (
        layer(x, h, c),
        library,
        (loop.transpose(0, 1), loop[-1], loop_cell),
    ):
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last_output, expected[:, -1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(last_cell, expected_cell, atol=1e-5, rtol=1e-5)
        loss = outputs.sin().sum() + last_cell.square().sum()
        *found, bias = torch.autograd.grad(loss, [x, h, c, layer.bias])
        for one, other in zip(found, wanted, strict=False):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
        order = [0, 1, 3, 2] if cell == "lstm" else list(range(GATES[cell]))
        bias = torch.cat([bias.chunk(GATES[cell])[gate] for gate in order])
        torch.testing.assert_close(bias, wanted[-1], atol=2e-5, rtol=1e-4)


def test_the_multiplicative_lstm_is_its_formula():
    """Number by number, from Krause et al. 2016 and the code of the sentiment neuron (order i, f, o, u)."""
    layer = random_layer("mlstm")
    x, h, c = random_inputs(7)
    outputs, last, last_cell = layer(x, h, c)
    w = {name: parameter.tolist() for name, parameter in layer.named_parameters()}

    def product(matrix: list[list[float]], vector: list[float]) -> list[float]:
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    for row in range(B):
        state, cell = h[row].tolist(), c[row].tolist()
        for step in range(7):
            inputs = x[row, step].tolist()
            m = [a * b for a, b in zip(product(w["weight_mx"], inputs), product(w["weight_mh"], state), strict=True)]
            parts = zip(product(w["weight_ih"], inputs), product(w["weight_hh"], m), w["bias"], strict=True)
            z = [sum(part) for part in parts]
            for unit in range(D):
                i, f, o = (sigmoid(z[gate * D + unit]) for gate in range(3))
                cell[unit] = f * cell[unit] + i * math.tanh(z[3 * D + unit])
                state[unit] = o * math.tanh(cell[unit])
            torch.testing.assert_close(outputs[row, step], torch.tensor(state), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(last[row], torch.tensor(state), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(last_cell[row], torch.tensor(cell), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", GATES)
def test_gradients_are_the_numerical_ones(cell):
    layer = random_layer(cell, torch.float64)

    def outputs(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return layer._loop(x.transpose(0, 1).contiguous(), h, c)

    x, h, c = random_inputs(3, torch.float64)
    assert torch.autograd.gradcheck(outputs, (x, h, c, *layer.parameters()), fast_mode=True)
    assert torch.autograd.gradcheck(outputs, (x[:1, :2], h[:1], c[:1], *layer.parameters()))


@pytest.mark.parametrize("cell", GATES)
@torch.inference_mode()
def test_bfloat16_follows_float32_over_a_long_sequence(cell):
    """Rounding errors do not build up: after 400 steps the outputs still agree as after the first."""
    layer = random_layer(cell, width=32, gain=1.0)
    x = torch.randn(400, 2, 32, generator=torch.Generator().manual_seed(3))
    zeros = torch.zeros(2, 32)
    exact = layer._loop(x, zeros, zeros)[0]
    error = (layer._loop(x.bfloat16(), zeros.bfloat16(), zeros.bfloat16())[0].float() - exact).abs().mean(dim=(1, 2))
    assert float(error[-50:].mean()) < 0.02


@pytest.mark.parametrize("cell", GATES)
@torch.inference_mode()
def test_layers_are_branches_behind_a_norm_or_a_plain_stack(cell):
    tokens = torch.randint(0, 20, (2, 5), generator=torch.Generator().manual_seed(4))
    for residual in (True, False):
        model = Recurrent(RecurrentConfig(vocab_size=20, layers=2, width=D, cell=cell, residual=residual))
        model.initialise(torch.Generator().manual_seed(0))
        zeros = torch.zeros(2, D)
        x = model.embed_tokens.weight[tokens]
        for layer in model.layers:
            inputs = F.rms_norm(x, (D,), eps=1e-6) if residual else x
            steps, _ = layer._loop(inputs.transpose(0, 1).contiguous(), zeros, zeros)
            x = x + GAINS[cell] * steps.transpose(0, 1) if residual else steps.transpose(0, 1)
        expected = F.rms_norm(x, (D,), eps=1e-6) if residual else x
        torch.testing.assert_close(model.hidden(tokens), expected, atol=1e-5, rtol=1e-5)


def test_the_gates_that_keep_the_past_start_open():
    for cell, place in (("gru", 1), ("lstm", 1), ("mlstm", 1), ("elman", None)):
        model = Recurrent(RecurrentConfig(vocab_size=5, layers=2, width=4, cell=cell))
        model.initialise(torch.Generator().manual_seed(0))
        for layer in model.layers:
            expected = torch.zeros(GATES[cell], 4)
            if place is not None:
                expected[place] = 1.0
            assert torch.equal(layer.bias, expected.flatten())


@pytest.mark.parametrize("cell", GATES)
def test_the_work_is_that_of_the_unrolled_products(cell):
    """Torch's counter does not see into its recurrent kernels; it does see the products of a loop of plain ones."""
    model = Recurrent(RecurrentConfig(vocab_size=20, layers=2, width=D, cell=cell))
    with FlopCounterMode(display=False) as counter:
        for _ in range(4):
            x = torch.zeros(B, D)
            for layer in model.layers:
                h = torch.zeros(B, D)
                x @ layer.weight_ih.t()
                h @ layer.weight_hh.t()
                if layer.weight_mx is not None and layer.weight_mh is not None:
                    x @ layer.weight_mx.t()
                    h @ layer.weight_mh.t()
            x @ model.lm_head.weight.t()
    assert counter.get_total_flops() == 4 * B * model.forward_flops_per_token(4)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", GATES)
def test_on_cuda_it_computes_the_same(cell):
    model = Recurrent(RecurrentConfig(vocab_size=20, layers=2, width=32, cell=cell))
    model.initialise(torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 20, (4, 40), generator=torch.Generator().manual_seed(1))
    results = []
    for device in ("cpu", "cuda"):
        model.to(device)
        model.zero_grad()
        model.logits(model.hidden(tokens)).logsumexp(-1).sum().backward()
        results.append([model.hidden(tokens).cpu(), *[parameter.grad.cpu() for parameter in model.parameters()]])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=1e-3)
