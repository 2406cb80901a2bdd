"""Expert parallelism against one process: tokens that travel, experts that get none, and losses of the whole batch."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from comparisons import batch, check_step, furthest, group_of, step, transformer
from wholes import gather_tensors

from parlance.core.errors import UserError
from parlance.models.mixture_of_experts import MixtureOfExperts
from parlance.training.optimizers import Optimizer
from parlance.training.parallel.collectives import add_up, exchange, gather_rows
from parlance.training.parallel.experts import balance_experts, parallel_experts, share_experts
from parlance.training.parallel.tensor import shard_tensors
from parlance.training.rates import LearningRates, parameter_groups

FORMS = {
    "two of four": {"experts": 4, "experts_per_token": 2},
    "one of eight": {"experts": 8, "experts_per_token": 1, "gated_mlp": False, "activation": "relu2"},
    "all of four": {"experts": 4, "experts_per_token": 4, "normalise_routing": False},
    "every second block": {"experts": 4, "expert_every": 2, "load_balancing": 0.5, "router_z_loss": 0.3},
}


def rows_of(whole, index, ways):
    """The rows of a batch that a rank has; unequally many where that does not come out even."""
    start, stop = (len(whole) * place // ways for place in (index, index + 1))
    return whole.part(start, stop)


def divided_step(dtype, sizes, batches, ways, tensor_ways=1):
    """Loss, count and whole gradients of a batch divided over all ranks, and experts `ways` ways."""
    experts, tensor, everyone = group_of(ways, tensor_ways), group_of(tensor_ways), dist.group.WORLD
    tokens = group_of(dist.get_world_size() // tensor_ways, tensor_ways)
    model = transformer(dtype, **sizes)
    split = share_experts(model, experts)
    balance_experts(model, tokens)
    heads = shard_tensors(model, tensor) if tensor_ways > 1 else None
    loss, count, got = step(model, [rows_of(each, tokens.rank(), tokens.size()) for each in batches])
    loss, count = add_up(torch.tensor([loss, count], dtype=torch.float64), tokens).tolist()
    copies = tokens if ways == tokens.size() else group_of(tokens.size() // ways, ways * tensor_ways)
    for name in got:
        if name in split.partial:
            got[name] = add_up(got[name], tokens)
        elif copies is not tokens:
            got[name] = add_up(got[name], copies)
        if heads is not None and name in heads.partial:
            got[name] = add_up(got[name], tensor)
    if heads is not None:
        got = gather_tensors(got, heads, tensor)
    assert everyone is not None
    return loss, count, gather_tensors(got, split, experts)


@pytest.mark.parametrize(("ways", "rows"), [(4, 8), (4, 6), (2, 8)])
@pytest.mark.parametrize("form", FORMS)
def test_the_loss_and_every_gradient_are_those_of_one_process(form, ways, rows, world):
    known = torch.float32, FORMS[form], [batch(rows=rows), batch(rows=rows, seed=1)]
    check_step(world(4).run(divided_step, *known, ways), *known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensor_parallelism_divides_each_expert_further(dtype, world):
    known = dtype, FORMS["two of four"], [batch(rows=4)]
    check_step(world(4).run(divided_step, *known, 2, 2), *known)


def balanced_step(dtype, sizes, batches):
    """The same where every rank has all experts and its rows."""
    model, group = transformer(dtype, **sizes), group_of(4)
    balance_experts(model, group)
    loss, count, got = step(model, [rows_of(each, group.rank(), 4) for each in batches])
    loss, count = add_up(torch.tensor([loss, count], dtype=torch.float64), group).tolist()
    return loss, count, {name: add_up(gradient, group) for name, gradient in got.items()}


def test_the_balance_is_that_of_the_whole_batch_where_nothing_but_the_batch_is_divided(world):
    known = torch.float32, FORMS["every second block"], [batch(rows=6)]
    check_step(world(4).run(balanced_step, *known), *known)


def lonely_experts():
    """One layer whose tokens all go to the experts of rank 1: outputs and gradients, and those of the whole layer."""
    group = group_of(4)
    made = MixtureOfExperts(6, 5, 8, 2, gated=True, activation=F.silu, normalise=True)
    made.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.down_proj.normal_(generator=torch.Generator().manual_seed(1))
        made.router.weight.zero_()
        made.router.weight[2:4] = 1.0
    x = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(2)) + 0.1
    model = torch.nn.ModuleDict({"mlp": copy.deepcopy(made)})
    split = share_experts(model, group)
    y = model["mlp"](x[group.rank()])
    y.square().sum().backward()
    whole = made(x)
    whole.square().sum().backward()
    got = gather_tensors({f"mlp.{name}": p.grad for name, p in model["mlp"].named_parameters()}, split, group)
    expected = {f"mlp.{name}": p.grad for name, p in made.named_parameters()}
    got["mlp.router.weight"] = add_up(got["mlp.router.weight"], group)
    used = [not bool((expected["mlp.up_proj"][expert] == 0).all()) for expert in range(8)]
    return float((y - whole[group.rank()]).detach().abs().max()), furthest(expected, got), used


def test_ranks_whose_experts_get_no_tokens_take_part(world):
    for off, apart, used in world(4).run(lonely_experts):
        assert used == [expert in (2, 3) for expert in range(8)]
        assert off < 1e-5
        assert max(apart.values()) < 1e-5, apart


def weights_apart(sizes):
    """Relative difference of the weights after five steps of AdamW; its epsilon is large, as in `test_tensor`."""
    group = group_of(4)
    whole, model = transformer(**sizes), transformer(**sizes)
    split = share_experts(model, group)
    balance_experts(model, group)
    optimizers = []
    for each in (whole, model):
        groups = parameter_groups(each, LearningRates(optimizer="adamw"), 0.05)
        optimizers.append(Optimizer([replace(some, epsilon=1e-3) for some in groups]))
    for number in range(5):
        drawn = batch(rows=8, seed=number)
        _, count, _ = step(whole, [drawn])
        step(model, [rows_of(drawn, group.rank(), 4)])
        named = dict(model.named_parameters())
        for name in split.partial:
            named[name].grad.copy_(add_up(named[name].grad, group))
        for optimizer in optimizers:
            optimizer.divide_gradients(count)
            optimizer.step()
    expected = {name: parameter.detach() for name, parameter in whole.named_parameters()}
    return furthest(expected, gather_tensors(dict(model.named_parameters()), split, group))


def test_weights_after_five_steps_are_those_of_one_process(world):
    for apart in world(4).run(weights_apart, FORMS["two of four"]):
        assert max(apart.values()) < 1e-5, apart


def travelled():
    """Rows of unequal number there and back, and their gradients; rows gathered from all."""
    group = group_of(4)
    rank = group.rank()
    send = [(rank + other) % 3 for other in range(4)]
    receive = send  # symmetric
    x = torch.arange(sum(send), dtype=torch.float32)[:, None] + 100 * rank
    x.requires_grad_()
    back = exchange(exchange(x, send, receive, group), receive, send, group)
    (back * torch.arange(1.0, len(x) + 1)[:, None]).sum().backward()
    rows = torch.full((rank, 2), float(rank), requires_grad=True)
    everyone = gather_rows(rows, group)
    (everyone * (rank + 1)).sum().backward()
    return torch.equal(back, x), x.grad.flatten().tolist(), everyone[:, 0].tolist(), rows.grad.unique().tolist()


def test_rows_and_their_gradients_travel_there_and_back(world):
    for rank, (same, gradient, rows, of_rows) in enumerate(world(4).run(travelled)):
        assert same
        assert gradient == list(range(1, len(gradient) + 1))
        assert rows == [1, 2, 2, 3, 3, 3]
        assert of_rows == ([10.0] if rank else [])


def refusals():
    """What cannot be divided four ways, in words."""
    words = []
    for sizes in ({}, {"experts": 6}):
        try:
            share_experts(transformer(**sizes), group_of(4))
        except UserError as error:
            words.append(str(error))
    return words


def test_what_cannot_be_divided_is_refused(world):
    for words in world(4).run(refusals):
        assert "this model has none" in words[0]
        assert "6 experts" in words[1]


def test_without_a_group_the_layer_is_what_it_was():
    model = transformer(experts=4)
    tokens = batch().inputs
    expected = model.hidden(tokens)
    names = [name for name, _ in model.named_parameters()]
    assert len(parallel_experts(model)) == 2
    assert torch.equal(model.hidden(tokens), expected)
    assert [name for name, _ in model.named_parameters()] == names
