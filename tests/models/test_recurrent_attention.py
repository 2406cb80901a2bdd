"""The recurrent encoder-decoder against plain loops of single steps.

What must hold of any model with a source is in test_conditional_models.py.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from conditional_samples import RECURRENT, RECURRENT_BASE, SENTINELS, V, close, ids, recurrent
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parlance.core.errors import UserError
from parlance.models import recurrent_attention
from parlance.models.building import build
from parlance.models.checkpoints import load_model, save_model
from parlance.models.recurrent import RecurrentLayer
from parlance.models.recurrent_attention import RecurrentAttention, RecurrentAttentionConfig


@pytest.fixture(params=RECURRENT, ids=str)
def model(request) -> RecurrentAttention:
    return recurrent(**RECURRENT[request.param])


# --- against plain loops ---------------------------------------------------------------------------------------------


def reference_cell(layer: RecurrentLayer, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """h and c (D,) after x (D,), by torch's cell modules."""
    weights = [layer.weight_ih, layer.weight_hh, layer.bias]
    D = len(h)
    if layer.cell == "gru":
        inner = torch.cat([torch.zeros(2 * D), layer.bias_hn])
        cell: torch.nn.Module = torch.nn.GRUCell(D, D)
    else:
        order = torch.cat([torch.arange(2 * D), torch.arange(3 * D, 4 * D), torch.arange(2 * D, 3 * D)])
        weights, inner = [weight[order] for weight in weights], torch.zeros(4 * D)
        cell = torch.nn.LSTMCell(D, D)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    parameters = dict(zip(names, [*weights, inner], strict=True))
    if layer.cell == "gru":
        return torch.func.functional_call(cell, parameters, (x, h)), c
    return torch.func.functional_call(cell, parameters, (x, (h, c)))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean() + RECURRENT_BASE.norm_epsilon).sqrt() * weight


def reference(model: RecurrentAttention, source: list[int], target: list[int]) -> Tensor:
    """Logits (T, V + sentinels) of one pair, step by step."""
    config, E = model.config, model.embed_tokens.weight
    zero = torch.zeros(config.width)
    stream = [E[token] for token in source]
    for layer in model.encoder_layers:
        outputs = {}
        for recurrence, order in ((layer.rightwards, 1), (layer.leftwards, -1)):
            h, c = zero, zero
            for place in list(range(len(source)))[::order]:
                x = norm(stream[place], recurrence.input_layernorm.weight)
                h, c = reference_cell(recurrence, x, h, c)
                outputs[order, place] = recurrence.gain * h
        stream = [x + outputs[1, place] + outputs[-1, place] for place, x in enumerate(stream)]
    encoded = torch.stack([norm(x, model.encoder_norm.weight) for x in stream])
    hidden = [torch.tanh(layer.start_proj.weight @ encoded[0]) for layer in model.decoder_layers]
    cells, fed, out = [zero for _ in hidden], zero, []
    for token in target:
        x = E[token]
        if model.feed_proj is not None:
            x = x + model.feed_proj.weight @ fed
        for number, layer in enumerate(model.decoder_layers):
            inputs = norm(x, layer.recurrence.input_layernorm.weight)
            hidden[number], cells[number] = reference_cell(layer.recurrence, inputs, hidden[number], cells[number])
            x = x + layer.recurrence.gain * hidden[number]
            attention = layer.attention
            query = attention.q_proj.weight @ norm(x, attention.layernorm.weight)
            if config.attention == "additive":
                scores = [attention.score @ torch.tanh(query + attention.k_proj.weight @ place) for place in encoded]
            else:
                scores = [query @ place / math.sqrt(config.width) for place in encoded]
            powers = torch.stack(scores).exp()
            x = x + attention.o_proj.weight @ (powers / powers.sum() @ encoded)
        fed = norm(x, model.norm.weight)
        out.append(model.lm_head.weight @ fed)
    return torch.stack(out)


def test_the_model_is_its_equations(model):
    source, target = ids(1, 7), ids(1, 6, seed=1)
    actual = model.logits(model.hidden(target, memory=model.encode(source)))[0]
    expected = reference(model, source[0].tolist(), target[0].tolist())
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    # And so are its gradients.
    names, parameters = zip(*model.named_parameters(), strict=True)
    ours, theirs = (torch.autograd.grad(logits.square().sum(), parameters) for logits in (actual, expected))
    for name, one, other in zip(names, ours, theirs, strict=True):
        assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6, name


def test_the_encoder_is_torchs_bidirectional_gru():
    """One layer's two directions, but for torch laying them side by side."""
    model = recurrent(layers=1)
    layer = model.encoder_layers[0]
    theirs = torch.nn.GRU(16, 16, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for suffix, ours in (("", layer.rightwards), ("_reverse", layer.leftwards)):
            getattr(theirs, "weight_ih_l0" + suffix).copy_(ours.weight_ih)
            getattr(theirs, "weight_hh_l0" + suffix).copy_(ours.weight_hh)
            getattr(theirs, "bias_ih_l0" + suffix).copy_(ours.bias)
            getattr(theirs, "bias_hh_l0" + suffix).copy_(torch.cat([torch.zeros(32), ours.bias_hn]))
        layer.leftwards.input_layernorm.weight.copy_(layer.rightwards.input_layernorm.weight)
    source = ids(3, 9)
    x = model.embed_tokens(source)
    both, _ = theirs(layer.rightwards.input_layernorm(x))
    both = both * torch.cat([layer.rightwards.gain, layer.leftwards.gain])
    close(model.encode(source).encoded, model.encoder_norm(x + both[..., :16] + both[..., 16:]))


@torch.inference_mode()
def test_attention_weights_sum_to_one(model):
    """Where every place holds the same, that is what attention finds, whatever the mask."""
    source = model.encode(ids(3, 9), torch.arange(9) < torch.tensor([[9], [4], [1]]))
    constant = torch.randn(16, generator=torch.Generator().manual_seed(0))
    source.encoded[:] = constant
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1))
    attention = model.decoder_layers[0].attention
    close(attention(x, source, 0), x + (attention.o_proj.weight @ constant))


def test_additive_attention_in_parts_is_the_whole(monkeypatch):
    model = recurrent(attention="additive")
    source, target = ids(2, 9), ids(2, 11, seed=1)
    results = []
    for elements in (2**22, 700):  # all steps at once; two at a time
        monkeypatch.setattr(recurrent_attention, "ADDITIVE_ELEMENTS", elements)
        model.zero_grad()
        logits = model.logits(model.hidden(target, memory=model.encode(source)))
        logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


# --- source, target, state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_token": 4}, "rows of the embedding"),
        ({"empty_source": (4,)}, "rows of the embedding"),
        ({"empty_source": (-1,)}, "greater than or equal to 0"),
        ({"layers": 10**9}, "less than or equal to 1024"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(change, message):
    sizes = {"vocab_size": 4, "width": 4, "layers": 1, "start_token": 0, "empty_source": (0,)}
    with pytest.raises(ValueError, match=message):
        RecurrentAttentionConfig(**(sizes | change))


def test_a_source_without_tokens_is_refused(model):
    with pytest.raises(UserError, match="a source has no token"):
        model.encode(ids(2, 3), torch.tensor([[True, False, False], [False, False, False]]))


# --- precision, gradients, sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["multiplicative", "additive", "fed"])
@pytest.mark.parametrize("length", [32, 64])
def test_floating_point_operations_are_those_torch_counts(shape, length):
    """Half of the tokens source, half target."""
    model = recurrent(**RECURRENT[shape])
    source, target = ids(2, length // 2), ids(2, length // 2, seed=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model.hidden(target, memory=model.encode(source)))
    assert counter.get_total_flops() == model.forward_flops_per_token(length) * 2 * length
    assert model.training_flops_per_token(length) == 3 * model.forward_flops_per_token(length)


def test_counts_of_parameters():
    model = recurrent(layers=1)
    D, rows = 16, V + SENTINELS
    recurrence = 2 * 3 * D * D
    assert model.matrix_parameters() == 3 * recurrence + 3 * D * D
    vectors = 3 * (3 * D + D + D + D) + 3 * D  # biases, norms and gains of recurrences; norms
    assert model.parameter_count() == model.matrix_parameters() + 2 * rows * D + vectors


def test_initialisation():
    model, again = RecurrentAttention(RECURRENT_BASE), RecurrentAttention(RECURRENT_BASE)
    for twin in (model, again):
        twin.initialise(torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.state_dict(), again.state_dict(), atol=0, rtol=0)
    source, target = ids(2, 9), ids(2, 8, seed=1)
    logits = model.logits(model.hidden(target, memory=model.encode(source)))
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(V + SENTINELS), abs=0.01)
    assert model.encoder_layers[1].leftwards.bias[16:32].tolist() == [1.0] * 16
    assert model.decoder_layers[0].recurrence.bias[:16].tolist() == [0.0] * 16


def test_a_checkpoint_keeps_everything(model, tmp_path):
    save_model(tmp_path, model, end_of_text=0, pad=1)
    again = load_model(tmp_path)
    assert again.config == model.config
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert type(build(model.config)) is RecurrentAttention
