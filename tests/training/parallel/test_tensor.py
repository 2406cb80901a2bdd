"""Tensor parallelism against one process: losses, every gradient, and weights after steps, in all the model's forms."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from comparisons import batch, check_step, furthest, group_of, step, transformer
from wholes import gather_tensors, local_part

from parlance.core.errors import UserError
from parlance.text.packing import IGNORE
from parlance.training.optimizers import Optimizer
from parlance.training.parallel.collectives import add_up, span
from parlance.training.parallel.tensor import divided_cross_entropy, shard_tensors
from parlance.training.rates import LearningRates, parameter_groups

FORMS = {
    "default": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1, "attention_bias": True},
    "biases": {
        "norm": "layer",
        "gated_mlp": False,
        "attention_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "qk_norm": False,
        "positions": "learned",
    },
    "parallel block": {"block": "parallel", "parallel_norms": 1, "activation": "gelu"},
    "post-norm": {"norm_placement": "post", "positions": "sinusoidal"},
    "tied": {"tie_embeddings": True, "logit_scale": 0.5},
    "odd vocabulary and width": {"vocab_size": 39, "mlp_width": 23, "gated_mlp": False},
    "alibi": {"positions": "alibi"},
    "alibi as Falcon's": {"positions": "alibi", "alibi_before_scaling": True},
    "alibi in a window": {"positions": "alibi", "sliding_window": 5},
    "relative": {"positions": "relative", "attention_scale": 1.0},
    "window": {"sliding_window": 5, "full_attention_layers": (1,), "clip_qkv": 0.7},
    "encoder": {
        "causal": False,
        "positions": "relative",
        "head_transform": True,
        "head_bias": True,
        "tie_embeddings": True,
        "embedding_norm": True,
        "token_types": 2,
    },
    "narrow embedding": {"embedding_width": 12, "positions": "learned"},
    "experts": {"experts": 4, "experts_per_token": 2, "expert_every": 2, "mlp_width": 12},
    "plain experts": {"experts": 3, "gated_mlp": False, "activation": "relu2", "normalise_routing": False},
    "norms without weights": {"norm_weight": False},
    "dropout": {"dropout": 0.3},
    "head offsets": {"head_offsets": 0.3, "sliding_window": 7, "full_attention_layers": (0,)},
    "n-grams": {"ngram_tables": ((2, 16), (3, 16))},
}


def divided_step(dtype, sizes, batches, ways):
    """Loss, count and whole gradients of a model divided `ways` ways."""
    group, model = group_of(ways), transformer(dtype, **sizes)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    split = shard_tensors(model, group)
    assert {name for name, part in model.named_parameters() if part.shape != shapes[name]} == set(split.dimensions)
    loss, count, got = step(model, batches)
    got = {name: add_up(tensor, group) if name in split.partial else tensor for name, tensor in got.items()}
    return loss, count, gather_tensors(got, split, group)


TWO_WAYS = "grouped", "one key head", "biases", "odd vocabulary and width", "relative", "experts"
"""Forms in which two ways and four differ in more than the number."""


@pytest.mark.parametrize(("form", "ways"), [(form, 4) for form in FORMS] + [(form, 2) for form in TWO_WAYS])
def test_the_loss_and_every_gradient_are_those_of_one_process(form, ways, world):
    vocab_size = FORMS[form].get("vocab_size", 40)
    known = torch.float32, FORMS[form], [batch(vocab_size=vocab_size)]
    check_step(world(4).run(divided_step, *known, ways), *known)


@pytest.mark.parametrize("form", ["grouped", "biases", "experts"])
def test_bfloat16_rounds_no_worse_than_one_process(form, world):
    known = torch.bfloat16, FORMS[form], [batch()]
    check_step(world(4).run(divided_step, *known, 4), *known)


def weights_apart(sizes):
    """The same for the weights after five steps of AdamW; parts of the start are found again.

    AdamW's epsilon is large, for where a gradient is rounding alone, it would step by the sign of that.
    """
    group, optimizers = group_of(2), []
    whole, model = transformer(**sizes), transformer(**sizes)
    split = shard_tensors(model, group)
    for name, tensor in whole.named_parameters():
        part = local_part(tensor, split, name, group.rank(), group.size())
        assert torch.equal(part, dict(model.named_parameters())[name])
    for each in (whole, model):
        groups = parameter_groups(each, LearningRates(optimizer="adamw"), 0.05)
        optimizers.append(Optimizer([replace(group, epsilon=1e-3) for group in groups]))
    for number in range(5):
        batches = [batch(rows=4, seed=number)]
        for each, optimizer in zip((whole, model), optimizers, strict=True):
            _, count, gradients = step(each, batches)
            if each is model:
                for name in split.partial:
                    gradients[name].copy_(add_up(gradients[name], group))
            optimizer.divide_gradients(count)
            optimizer.step()
    expected = {name: p.detach() for name, p in whole.named_parameters()}
    return furthest(expected, gather_tensors(dict(model.named_parameters()), split, group))


@pytest.mark.parametrize("form", ["grouped", "biases", "experts"])
def test_weights_after_five_steps_are_those_of_one_process(form, world):
    for apart in world(4).run(weights_apart, FORMS[form]):
        assert max(apart.values()) < 1e-5, apart


def cross_entropies_apart():
    """Of logits so large that their exponentials overflow, with positions that do not count."""
    group = group_of(4)
    generator = torch.Generator().manual_seed(0)
    logits = 300 * torch.randn(9, 21, dtype=torch.float64, generator=generator)
    targets = torch.randint(21, (9,), generator=generator)
    targets[::4] = IGNORE
    whole = logits.clone().requires_grad_()
    loss = F.cross_entropy(whole, targets, ignore_index=IGNORE, reduction="sum")
    (3 * loss).backward()
    first, stop = span(21, group.rank(), group.size())
    part = logits[:, first:stop].clone().requires_grad_()
    got = divided_cross_entropy(part, targets, first, group)
    (3 * got).backward()
    return float((got - loss).abs() / loss), float((part.grad - whole.grad[:, first:stop]).abs().max())


def test_the_divided_cross_entropy_is_that_of_whole_logits(world):
    for loss, gradient in world(4).run(cross_entropies_apart):
        assert loss < 1e-12
        assert gradient < 1e-12


def refusals():
    """What cannot be divided four ways, in words."""
    forms = (
        {"heads": 6},
        {"heads": 12, "kv_heads": 3},
        {"cross_attention": True},
        {"dilated_segments": ((8, 1),)},
        {"vocab_size": 3},
    )
    words, models = [], [transformer(), *(transformer(**sizes) for sizes in forms)]
    models[0].layers[0].self_attn.gate = torch.nn.Parameter(torch.zeros(3))
    for model in models:
        try:
            shard_tensors(model, group_of(4))
        except UserError as error:
            words.append(str(error))
    return words


def test_what_cannot_be_divided_is_refused(world):
    for words in world(4).run(refusals):
        parts = "layers.0.self_attn.gate", "6 heads", "3 key/value", "encoder-decoders", "dilated", "3 tokens"
        for word, part in zip(words, parts, strict=True):
            assert part in word
