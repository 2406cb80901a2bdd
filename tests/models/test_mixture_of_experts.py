"""The mixture of experts against all experts computed densely, and against transformers' Mixtral."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from parlance.core.errors import UserError
from parlance.models.mixture_of_experts import (
    MixtureOfExperts,
    load_balancing_loss,
    padded_rows,
    plan_routes,
    router_z_loss,
)
from parlance.models.padding import MULTIPLE


def layer(
    width=12, expert_width=10, experts=5, k=2, *, gated=True, activation=F.silu, normalise=True, dtype=torch.float64
):
    """A layer whose weights are all drawn, down_proj too."""
    made = MixtureOfExperts(width, expert_width, experts, k, gated=gated, activation=activation, normalise=normalise)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return made.to(dtype)


def drawn(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def dense(made: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Every expert for every token, weighted by a matrix that is zero where a token is not routed."""
    scores = (x @ made.router.weight.t()).softmax(-1)  # (B, T, E)
    chosen = scores.argsort(dim=-1, descending=True)[..., : made.experts_per_token]
    weights = scores * torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    if made.normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    up = torch.einsum("btd,efd->btef", x, made.up_proj)
    if made.gate_proj is None:
        inner = made.activation(up)
    else:
        inner = made.activation(torch.einsum("btd,efd->btef", x, made.gate_proj)) * up
    return torch.einsum("btef,edf,bte->btd", inner, made.down_proj, weights)


def everything(function, made, x, dout):
    """Output and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = function(x)
    names, parameters = zip(*made.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, (x, *parameters), dout)
    return {"y": y.detach(), "x": gradients[0]} | dict(zip(names, gradients[1:], strict=True))


def assert_same(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        assert (ours[name] - value).abs().max() <= tolerance, name


# --- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("gated", "activation"), [(True, F.silu), (True, F.gelu), (False, F.gelu)])
def test_values_and_gradients_equal_those_of_all_experts_computed(k, normalise, gated, activation):
    made = layer(k=k, normalise=normalise, gated=gated, activation=activation)
    x, dout = drawn(3, 29, 12), drawn(3, 29, 12, seed=2)
    ours = everything(made, made, x, dout)
    assert_same(ours, everything(lambda x: dense(made, x), made, x, dout), 1e-10)
    if not (normalise and k == 1):  # one expert of weight one: the router has no influence
        assert ours["router.weight"].abs().max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 3 * MULTIPLE),
    experts=st.integers(1, 9),
    k=st.integers(1, 9),
    gated=st.booleans(),
    normalise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_tokens_and_experts(tokens, experts, k, gated, normalise, seed):
    made = layer(6, 4, experts, min(k, experts), gated=gated, normalise=normalise)
    x, dout = drawn(1, tokens, 6, seed=seed), drawn(1, tokens, 6, seed=seed + 1)
    expected = everything(lambda x: dense(made, x), made, x, dout)
    assert_same(everything(made, made, x, dout), expected, 1e-10)


def test_experts_that_no_token_chose_get_a_gradient_of_zero_and_disturb_nothing():
    made = layer(experts=6, k=1)
    x = drawn(1, 40, 12).abs()
    with torch.no_grad():
        made.router.weight[:] = -1.0
        made.router.weight[2] = 1.0  # x is positive: everybody goes to the third
        made.up_proj[0] = math.nan  # nobody may look at this one
    everything_ours = everything(made, made, x, torch.ones_like(x))
    assert everything_ours["y"].isfinite().all()
    for name in ("gate_proj", "up_proj", "down_proj"):
        gradient = everything_ours[name]
        assert (gradient[[0, 1, 3, 4, 5]] == 0).all()
        assert (gradient[2] != 0).any()


def test_padding_rows_reach_nothing_even_where_an_expert_overflows():
    # Padding copied from token 0 would be run through an expert that token 0 did not choose, and overflow there.
    made = layer(2, 3, experts=2, k=1, activation=torch.exp, gated=False)
    with torch.no_grad():
        made.router.weight[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        made.up_proj[1] = torch.tensor([1e6, 0.0])
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    got = everything(made, made, x, torch.ones_like(x))
    assert all(value.isfinite().all() for value in got.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_in_either_precision_with_fp32_weights(dtype):
    made = layer(64, 48, dtype=torch.float32)
    x, dout = drawn(2, 50, 64, dtype=dtype), drawn(2, 50, 64, dtype=dtype, seed=2)
    ours = everything(made, made, x, dout)
    assert ours["y"].dtype == ours["x"].dtype == dtype
    exact = layer(64, 48)
    theirs = everything(lambda x: dense(exact, x), exact, x.double(), dout.double())
    for name, value in theirs.items():
        assert name in ("y", "x") or ours[name].dtype == torch.float32
        assert (ours[name] - value).norm() <= (0.02 if dtype is torch.bfloat16 else 1e-5) * value.norm(), name


def test_the_same_call_gives_the_same_bits():
    made = layer(64, 48, experts=8, dtype=torch.float32)
    x, dout = drawn(4, 60, 64, dtype=torch.bfloat16), drawn(4, 60, 64, dtype=torch.bfloat16, seed=2)
    first = everything(made, made, x, dout)
    for _ in range(3):
        assert all(torch.equal(first[name], value) for name, value in everything(made, made, x, dout).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_one_call_equals_one_call_per_token(dtype):
    made = layer(64, 48, dtype=torch.float32)
    x = drawn(2, 33, 64, dtype=dtype)
    pieces = torch.cat([made(x[b : b + 1, t : t + 1]) for b in range(2) for t in range(33)]).view_as(x)
    torch.testing.assert_close(made(x), pieces, rtol=0, atol=1e-6 if dtype is torch.float32 else 2e-2)
    assert made(x[:, :0]).shape == (2, 0, 64)


# --- transformers ----------------------------------------------------------------------------------------------------


def test_mixtral_of_transformers_computes_the_same():
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = modeling.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=8, num_experts_per_tok=2, experts_implementation="eager"
    )
    theirs = modeling.MixtralSparseMoeBlock(config)
    made = layer(32, 48, experts=8, dtype=torch.float32)
    assert made.gate_proj is not None
    with torch.no_grad():
        theirs.gate.weight.copy_(made.router.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((made.gate_proj, made.up_proj), dim=1))
        theirs.experts.down_proj.copy_(made.down_proj)
    x, dout = drawn(2, 70, 32, dtype=torch.float32), drawn(2, 70, 32, dtype=torch.float32, seed=2)
    ours = everything(made, made, x, dout)
    other = everything(theirs, theirs, x, dout)
    renamed = {
        "y": other["y"],
        "x": other["x"],
        "router.weight": other["gate.weight"],
        "gate_proj": other["experts.gate_up_proj"][:, :48],
        "up_proj": other["experts.gate_up_proj"][:, 48:],
        "down_proj": other["experts.down_proj"],
    }
    assert_same(ours, renamed, 1e-5)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_balance_loss_is_that_of_transformers(k):
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = drawn(200, 8, dtype=torch.float32).requires_grad_()
    ours = load_balancing_loss(logits, k)
    theirs = modeling.load_balancing_loss_func((logits,), 8, k)
    assert abs(float((ours - theirs).detach())) <= 1e-6
    ours_gradient, theirs_gradient = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    assert (ours_gradient - theirs_gradient).abs().max() <= 1e-8


# --- auxiliary losses ------------------------------------------------------------------------------------------------


def test_balance_loss_in_closed_form():
    # Each token prefers its own expert with probability p: f = 1/E each, P = 1/E each, so the loss is 1.
    assert float(load_balancing_loss(5 * torch.eye(6), 1)) == pytest.approx(1.0)
    # All to one expert, with probability p: E * 1 * p.
    logits = torch.tensor([[3.0, 0.0, 0.0, 0.0]]).expand(10, 4)
    p = math.exp(3) / (math.exp(3) + 3)
    assert float(load_balancing_loss(logits, 1)) == pytest.approx(4 * p)
    # f sums to k: with k = E every expert has every token.
    assert float(load_balancing_loss(logits, 4)) == pytest.approx(4.0)


def test_descending_the_balance_loss_balances():
    made = layer(16, 4, experts=4, k=1, dtype=torch.float32)
    x = drawn(1, 256, 16, dtype=torch.float32) + 1.0
    optimizer = torch.optim.Adam(made.router.parameters(), lr=0.02)
    shares = []
    for _ in range(60):
        made(x)
        logits = made.pop_router_logits()
        assert logits is not None
        shares.append(float(logits.argmax(-1).bincount(minlength=4).max()) / 256)
        optimizer.zero_grad()
        load_balancing_loss(logits, 1).backward()
        optimizer.step()
    assert shares[0] > 0.5
    assert shares[-1] < 0.35


def test_z_loss_in_closed_form():
    assert float(router_z_loss(torch.zeros(7, 4))) == pytest.approx(math.log(4) ** 2)
    logits = drawn(20, 5)
    assert float(router_z_loss(logits)) == pytest.approx(float(logits.exp().sum(-1).log().square().mean()))


def test_router_scores_are_kept_in_training_only_and_handed_out_once():
    made = layer(dtype=torch.float32)
    x = drawn(2, 5, 12, dtype=torch.bfloat16)
    made(x)
    # A copy can be made in between (a non-leaf tensor of a graph could not be copied), and starts without.
    assert copy.deepcopy(made).pop_router_logits() is None
    logits = made.pop_router_logits()
    assert logits is not None
    assert logits.dtype == torch.float32
    assert logits.requires_grad
    torch.testing.assert_close(logits, x.float().reshape(10, 12) @ made.router.weight.t())
    assert made.pop_router_logits() is None
    with torch.no_grad():
        made(x)
    assert made.pop_router_logits() is None
    made.eval()(x)
    assert made.pop_router_logits() is None


# --- sizes and work --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("k", [1, 2])
def test_counts_are_those_of_the_tensors_and_of_the_flop_counter(k, gated):
    made = layer(32, 24, experts=4, k=k, gated=gated, dtype=torch.float32)
    one = (3 if gated else 2) * 32 * 24
    assert made.total_parameters() == sum(p.numel() for p in made.parameters()) == 4 * 32 + 4 * one
    assert made.active_parameters() == 4 * 32 + k * one
    with torch.no_grad():  # token n likes experts n and n + 1 (mod 4): the same number for each, nothing to pad
        made.router.weight.zero_()
        made.router.weight[range(4), range(4)] = 2.0
    x = torch.zeros(1, 4 * MULTIPLE, 32)
    for n in range(4 * MULTIPLE):
        x[0, n, n % 4], x[0, n, (n + 1) % 4] = 2.0, 1.0
    with FlopCounterMode(display=False) as forward:
        y = made(x.requires_grad_())
    tokens = 4 * MULTIPLE
    assert forward.get_total_flops() == pytest.approx(tokens * made.forward_flops_per_token(), rel=0.01)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()  # two products for each one forward
    assert backward.get_total_flops() == pytest.approx(2 * tokens * made.forward_flops_per_token(), rel=0.01)


@given(counts=st.lists(st.integers(0, 3 * MULTIPLE), min_size=1, max_size=8), k=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_routes_hold_every_pair_once_and_only_few_shapes(counts, k):
    counts = [k * count for count in counts]
    pairs = torch.tensor([expert for expert, count in enumerate(counts) for _ in range(count)], dtype=torch.int64)
    chosen = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))].view(-1, k)
    routes = plan_routes(chosen, len(counts))
    real = {span[0]: span for span in routes.spans}
    assert sorted(real) == [expert for expert, count in enumerate(counts) if count]
    assert len(routes.tokens) == sum(padded_rows(count) for count in counts)
    assert len(set(routes.rows.reshape(-1).tolist())) == chosen.numel()
    for token in range(len(chosen)):
        for choice in range(k):
            row = int(routes.rows[token, choice])
            assert int(routes.tokens[row]) == token
            _, start, end, padded = real[int(chosen[token, choice])]
            assert start <= row < end <= padded
            assert padded - start == padded_rows(end - start)


def test_padded_rows():
    assert [padded_rows(count) for count in (0, 1, 2, 3, 5, 17)] == [0, 1, 2, 4, 8, 32]
    for count in range(MULTIPLE, 5 * MULTIPLE):
        assert padded_rows(count) % MULTIPLE == 0
        assert count <= padded_rows(count) < count + MULTIPLE


def test_initial_weights_are_those_of_the_generator_and_the_layer_starts_as_nothing():
    made = layer(64, 48, experts=8, dtype=torch.float32)
    made.initialise(torch.Generator().manual_seed(3))
    again = layer(64, 48, experts=8, dtype=torch.float32)
    again.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    assert made.gate_proj is not None
    assert float(made.gate_proj.detach().std()) == pytest.approx(64**-0.5, rel=0.03)
    assert float(made.up_proj.detach().std()) == pytest.approx(64**-0.5, rel=0.03)
    x = drawn(2, 50, 64, dtype=torch.float32)
    assert (made(x) == 0).all()
    probabilities = made.router(x).detach().softmax(-1)
    assert 0.08 < float(probabilities.min()) < float(probabilities.max()) < 0.2  # 1/8 each, nearly


@pytest.mark.parametrize(("experts", "k"), [(4, 0), (4, 5), (0, 0)])
def test_impossible_sizes_are_refused(experts, k):
    with pytest.raises(UserError, match="mixture of experts"):
        MixtureOfExperts(8, 8, experts, k, gated=True, activation=F.silu, normalise=True)
