"""AdamW against torch's, Muon against the singular value decomposition, and the rules around them."""

import math

import pytest
import torch
from torch import nn

from parlance.alignment.ppo import PolicyWithValue
from parlance.alignment.reward_model import RewardModel
from parlance.training.optimizers import Optimizer, ParameterGroup, clip_gradients, orthogonalise
from parlance.training.rates import LearningRates, parameter_groups


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameter(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(normal(*shape, seed=seed))


# --- AdamW -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_adamw_is_torchs(epsilon):
    """torch's epsilon is outside the bias corrections as well, so the two agree at any epsilon."""
    ours, theirs = parameter(5, 3), parameter(5, 3)
    mine = Optimizer([ParameterGroup("adamw", {"w": ours}, 0.02, betas=(0.8, 0.97), epsilon=epsilon)])
    peer = torch.optim.AdamW([theirs], lr=0.02, betas=(0.8, 0.97), eps=epsilon, weight_decay=0.0)
    for step in range(30):
        gradient = normal(5, 3, seed=step + 1) * 10.0 ** (step % 5 - 3)
        scale = 1.0 - step / 40
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        peer.param_groups[0]["lr"] = 0.02 * scale
        mine.step(scale)
        peer.step()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1e-12], ids=["fused", "written out"])
def test_both_ways_of_adamw_are_the_formula(decay):
    """In double precision: m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + epsilon)."""
    w = parameter(40, 7)
    mine = Optimizer([ParameterGroup("adamw", {"w": w}, 0.05, betas=(0.8, 0.95), epsilon=1e-8, weight_decay=decay)])
    expected, first, second = w.detach().double(), 0.0, 0.0
    for step in range(1, 31):
        w.grad = normal(40, 7, seed=step) * 10.0 ** (step % 5 - 3)
        gradient, scale = w.grad.double(), 1 - step / 40
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        expected = expected - 0.05 * scale * (first / (1 - 0.8**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        mine.step(scale)
        torch.testing.assert_close(w.detach().double(), expected, atol=1e-6, rtol=1e-6)


def test_cautious_decay_applies_only_where_update_and_weight_agree_in_sign():
    weights = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0])
    gradient = torch.tensor([0.5, 0.5, -0.5, -0.5, 0.5])
    results = {}
    for decay in (0.0, 0.1):
        w = nn.Parameter(weights.clone())
        w.grad = gradient.clone()
        Optimizer([ParameterGroup("adamw", {"w": w}, 0.01, weight_decay=decay)]).step()
        results[decay] = w.detach()
    # AdamW's first update has the sign of the gradient; it agrees with entries 0 and 3, which shrink by 0.01 * 0.1.
    shrunk = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]) * weights * 0.001
    torch.testing.assert_close(results[0.0] - results[0.1], shrunk, atol=1e-7, rtol=0)


def test_muons_decay_is_cautious_too():
    w = parameter(4, 4)
    gradient = normal(4, 4, seed=1)
    update = orthogonalise(gradient.unsqueeze(0), torch.float32)[0]
    before = w.detach().clone()
    w.grad = gradient
    Optimizer([ParameterGroup("muon", {"w": w}, 0.1, betas=(0.0, 0.0), weight_decay=0.5)]).step()
    expected = before - 0.1 * 0.5 * before * (before * update > 0) - 0.1 * update
    torch.testing.assert_close(w.detach(), expected)


# --- Muon ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (1, 8), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalise_gives_the_polar_factor(shape, dtype):
    matrices = normal(3, *shape) * torch.tensor([1.0, 1e-3, 1e3]).view(3, 1, 1)
    result = orthogonalise(matrices, dtype)
    assert result.shape == matrices.shape
    assert result.dtype == torch.float32
    for matrix, factor in zip(matrices, result, strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        rotated = (u.T @ factor) @ vh.T
        values = rotated.diagonal()
        # The five polynomials, composed, take [0.001, 1] into [0.8588, 1.1412].
        tolerance = 0.1412 if dtype == torch.float32 else 0.15
        clear = s > (1e-3 if dtype == torch.float32 else 1e-2) * s.norm() * 1.02
        assert float((values[clear] - 1).abs().max()) < tolerance + 1e-4
        assert float(torch.linalg.svdvals(factor).max()) < 1.0 + tolerance + 1e-4
        # Nothing but the singular values has changed.
        assert float((rotated - values.diag()).norm() / rotated.norm()) < (1e-3 if dtype == torch.float32 else 0.05)


def test_small_singular_values_grow_and_never_overshoot():
    u, _, vh = torch.linalg.svd(normal(40, 40))
    s = torch.logspace(0, -4, 40)
    factor = orthogonalise((u @ s.diag() @ vh).unsqueeze(0), torch.float32)[0]
    values = ((u.T @ factor) @ vh.T).diagonal()
    relative = s / s.norm()
    assert bool((values > 0).all())
    assert bool((values < 1.1412).all())
    assert float((values[relative > 1.1e-3] - 1).abs().max()) < 0.1412
    assert bool((values[relative < 1e-3] > 300 * relative[relative < 1e-3]).all())


def test_a_zero_gradient_gives_no_update():
    assert not orthogonalise(torch.zeros(1, 4, 6), torch.float32).any()


def test_muon_moves_by_the_polar_factor_of_its_nesterov_momentum():
    tall, wide = parameter(12, 3), parameter(3, 12, seed=5)
    start = {"tall": tall.detach().clone(), "wide": wide.detach().clone()}
    optimizer = Optimizer([ParameterGroup("muon", {"tall": tall, "wide": wide}, 0.1, betas=(0.8, 0.0))])
    momentum = {name: torch.zeros_like(value) for name, value in start.items()}
    expected = {name: value.clone() for name, value in start.items()}
    for step in range(3):
        gradients = {"tall": normal(12, 3, seed=10 + step), "wide": normal(3, 12, seed=20 + step)}
        tall.grad, wide.grad = gradients["tall"].clone(), gradients["wide"].clone()
        optimizer.step(0.5)
        for name, gradient in gradients.items():
            momentum[name] = 0.8 * momentum[name] + 0.2 * gradient
            u, _, vh = torch.linalg.svd(0.2 * gradient + 0.8 * momentum[name], full_matrices=False)
            # A tall matrix moves further: its rows are more than its directions.
            size = math.sqrt(12 / 3) if name == "tall" else 1.0
            expected[name] -= 0.1 * 0.5 * size * (u @ vh)
    for name, value in (("tall", tall), ("wide", wide)):
        moved, wanted = value.detach() - start[name], expected[name] - start[name]
        assert float((moved - wanted).norm() / wanted.norm()) < 0.15


@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48)])
def test_muon_moves_as_torchs_does_but_for_the_polynomial(shape):
    """torch's polynomial leaves singular values between 0.7 and 1.2, ours between 0.85 and 1.15; all else is equal."""
    ours, theirs = parameter(*shape), parameter(*shape)
    mine = Optimizer([ParameterGroup("muon", {"w": ours}, 0.02, betas=(0.9, 0.0))])
    peer = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.0)
    start = ours.detach().clone()
    for step in range(5):
        ours.grad = normal(*shape, seed=step + 1)
        theirs.grad = ours.grad.clone()
        mine.step()
        peer.step()
    moved, wanted = ours.detach() - start, theirs.detach() - start
    assert float((moved * wanted).sum() / moved.norm() / wanted.norm()) > 0.98
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1.0, abs=0.15)


def test_matrices_of_one_shape_are_updated_as_if_each_were_alone():
    together = {f"m{i}": parameter(8, 6, seed=i) for i in range(4)} | {"other": parameter(6, 8)}
    alone = {name: nn.Parameter(value.detach().clone()) for name, value in together.items()}
    optimizers = [Optimizer([ParameterGroup("muon", together, 0.1)])]
    optimizers += [Optimizer([ParameterGroup("muon", {name: value}, 0.1)]) for name, value in alone.items()]
    for _ in range(2):
        for values in (together, alone):
            for seed, value in enumerate(values.values()):
                value.grad = normal(*value.shape, seed=100 + seed)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


# --- state, missing gradients, clipping ------------------------------------------------------------------------------


def build(seed: int = 0) -> tuple[dict[str, nn.Parameter], Optimizer]:
    parameters = {"matrix": parameter(6, 4, seed=seed), "vector": parameter(5, seed=seed)}
    groups = [
        ParameterGroup("muon", {"matrix": parameters["matrix"]}, 0.1, weight_decay=0.1),
        ParameterGroup("adamw", {"vector": parameters["vector"]}, 0.1),
        ParameterGroup("adamw", {}, 0.1),
    ]
    return parameters, Optimizer(groups)


def train(parameters: dict[str, nn.Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        for value in parameters.values():
            value.grad = normal(*value.shape, seed=step)
        optimizer.step()


def test_saved_state_continues_bit_for_bit():
    parameters, optimizer = build()
    train(parameters, optimizer, range(5))
    weights = {name: value.detach().clone() for name, value in parameters.items()}
    state = {f"optimizer.{name}": tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    steps = optimizer.steps
    train(parameters, optimizer, range(5, 9))

    others, other = build(seed=9)
    train(others, other, range(3))  # a state of its own, to be replaced
    with torch.no_grad():
        for name, value in others.items():
            value.copy_(weights[name])
    other.load_state(state, steps)
    train(others, other, range(5, 9))
    torch.testing.assert_close(others, parameters, atol=0, rtol=0)
    torch.testing.assert_close(other.state_tensors(), optimizer.state_tensors(), atol=0, rtol=0)


def test_parameters_without_a_gradient_stay():
    parameters, optimizer = build()
    before = parameters["matrix"].detach().clone()
    parameters["vector"].grad = torch.ones(5)
    optimizer.step()
    assert torch.equal(parameters["matrix"], before)
    assert not optimizer.state_tensors()["matrix.first"].any()
    optimizer.zero_gradients()
    assert all(value.grad is None for value in parameters.values())


def test_dividing_gradients():
    parameters, optimizer = build()
    parameters["vector"].grad = torch.arange(5.0)
    optimizer.divide_gradients(4)
    assert parameters["vector"].grad.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert parameters["matrix"].grad is None


def test_clipping_is_joint_and_only_downwards():
    a, b = parameter(3), parameter(2, 2)
    a.grad, b.grad = torch.tensor([3.0, 0.0, 0.0]), torch.full((2, 2), 2.0)
    assert clip_gradients([a, b], 10.0) == pytest.approx(5.0)
    assert a.grad.tolist() == [3.0, 0.0, 0.0]
    assert clip_gradients([a, b], 1.0) == pytest.approx(5.0)
    assert a.grad.tolist() == pytest.approx([0.6, 0.0, 0.0], rel=1e-5)
    assert b.grad.flatten().tolist() == pytest.approx([0.4] * 4, rel=1e-5)
    peer = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    for value, seed in zip((a, b, *peer), (1, 2, 1, 2), strict=True):
        value.grad = normal(*value.shape, seed=seed)
    norm = nn.utils.clip_grad_norm_(peer, 0.5)
    assert clip_gradients([a, b], 0.5) == pytest.approx(float(norm))
    torch.testing.assert_close([a.grad, b.grad], [value.grad for value in peer])


def test_a_gradient_that_is_no_number_is_reported():
    a = parameter(3)
    a.grad = torch.tensor([1.0, math.nan, 0.0])
    assert math.isnan(clip_gradients([a], 1.0))
    a.grad = torch.tensor([1.0, math.inf, 0.0])
    assert clip_gradients([a], 1.0) == math.inf


# --- which rule for which parameter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_has_one_rule(tiny_transformer, tied):
    model = tiny_transformer(tie_embeddings=tied)
    matrices, vectors, embedding, head = parameter_groups(model, LearningRates(), 0.5)
    names = [name for group in (matrices, vectors, embedding, head) for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert matrices.rule == "muon"
    assert len(matrices.parameters) == 2 * 7
    assert all(value.ndim == 2 for value in matrices.parameters.values())
    assert {group.rule for group in (vectors, embedding, head)} == {"adamw"}
    assert list(embedding.parameters) == ["embed_tokens.weight"]
    assert list(head.parameters) == ([] if tied else ["lm_head.weight"])
    rates = LearningRates()
    assert embedding.learning_rate == pytest.approx(0.5 * rates.embedding * (0.1 if tied else 1.0))
    assert matrices.learning_rate == 0.5 * rates.matrices
    assert matrices.betas[0] == rates.momentum


def test_other_heads_and_other_optimizers(tiny_transformer):
    reward = parameter_groups(RewardModel(tiny_transformer()), LearningRates())
    assert list(reward[3].parameters) == ["score.weight"]
    policy = parameter_groups(PolicyWithValue(tiny_transformer(tie_embeddings=True)), LearningRates())
    assert list(policy[3].parameters) == ["value.weight"]
    assert policy[2].learning_rate == pytest.approx(0.1 * LearningRates().embedding)
    plain = parameter_groups(tiny_transformer(), LearningRates(optimizer="adamw"))
    assert {group.rule for group in plain} == {"adamw"}
    assert plain[0].learning_rate == LearningRates().matrices_adamw
