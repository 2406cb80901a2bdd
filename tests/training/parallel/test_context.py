"""Context parallelism against one process: all forms of attention, packed documents, and tensor parallelism besides."""

import pytest
import torch
import torch.distributed as dist
from comparisons import batch, check_step, furthest, group_of, step, transformer
from hypothesis import given
from hypothesis import strategies as st
from wholes import gather_tensors

from parlance.core.errors import UserError
from parlance.models.transformer_blocks import Layout, padding_layout
from parlance.training.objectives import TokenBatch
from parlance.training.parallel import context
from parlance.training.parallel.collectives import add_up
from parlance.training.parallel.context import ContextAttention, context_part, in_order, pieces, share_context
from parlance.training.parallel.experts import balance_experts
from parlance.training.parallel.tensor import shard_tensors

FORMS = {
    "default": {},
    "grouped": {"kv_heads": 2, "rotary_width": 2},
    "window": {"sliding_window": 5, "full_attention_layers": (1,)},
    "alibi": {"positions": "alibi"},
    "alibi as Falcon's": {"positions": "alibi", "alibi_before_scaling": True},
    "alibi in a window": {"positions": "alibi", "sliding_window": 3},
    "relative": {"positions": "relative", "kv_heads": 1},
    "learned": {"positions": "learned", "block": "parallel", "parallel_norms": 1},
    "sinusoidal": {"positions": "sinusoidal", "norm_placement": "post"},
    "stretched": {"rope_scaling": {"kind": "dynamic", "factor": 2.0, "original_context_length": 8}},
    "encoder": {"causal": False},
    "encoder in a window": {"causal": False, "sliding_window": 4},
    "experts": {"experts": 4, "experts_per_token": 2, "expert_every": 2, "mlp_width": 12},
    "dropout": {"dropout": 0.3},
}


def packed(kind: str) -> TokenBatch:
    """Rows of several documents, or with padding on the left."""
    made = batch()
    if kind == "padded":
        mask = torch.ones(2, 16, dtype=torch.bool)
        mask[1, :5] = False
        return TokenBatch(made.inputs, made.targets, padding_layout(mask))
    documents = torch.tensor([[0] * 7 + [1] * 9, [0] * 2 + [1] + [2] * 13])
    begins = torch.nn.functional.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    places = torch.arange(16).expand(2, 16)
    positions = places - torch.where(begins, places, 0).cummax(1).values
    layout = Layout(positions, None, documents)
    if kind == "masked":
        layout = Layout(positions, layout.dense_mask())
    return TokenBatch(made.inputs, made.targets, layout)


def blocked_attention():
    """Largest difference of outputs and gradients of causal attention in several blocks of queries a piece."""
    group, errors, queries = group_of(4), [], context.QUERIES
    generator = torch.Generator().manual_seed(0)
    own = torch.cat([torch.arange(*span) for span in pieces(96, group.rank(), 4)])
    for sizes in ({}, {"sliding_window": 7}, {"positions": "alibi"}):
        attention = transformer(kv_heads=2, **sizes).layers[0].self_attn
        whole = [torch.randn(1, heads, 96, 4, generator=generator) for heads in (4, 2, 2)]
        upstream = torch.randn(1, 4, 96, 4, generator=generator)
        parts = [x[:, :, own].requires_grad_() for x in whole]
        context.QUERIES = 5
        try:
            y = ContextAttention(group)(attention, *parts, None)
        finally:
            context.QUERIES = queries
        y.backward(upstream[:, :, own])
        expected = [x.requires_grad_() for x in whole]
        z = attention._plain(*expected)
        z.backward(upstream)
        pairs = [(y, z[:, :, own]), *((part.grad, x.grad[:, :, own]) for part, x in zip(parts, whole, strict=True))]
        errors += [float((one - other).detach().abs().max() / other.abs().max()) for one, other in pairs]
    return errors


def test_pieces_of_more_than_one_block_of_queries_are_exact_too(world):
    for errors in world(4).run(blocked_attention):
        assert max(errors) < 1e-5


def divided_step(dtype, sizes, batches, ways, tensor_ways):
    """Loss, count and whole gradients of rows divided `ways` ways, and heads `tensor_ways` ways."""
    rows, tensor = group_of(ways, tensor_ways), group_of(tensor_ways)
    model, split = transformer(dtype, **sizes), None
    if tensor_ways > 1:
        split = shard_tensors(model, tensor)
    share_context(model, rows)
    balance_experts(model, rows)
    parts = [context_part(each, rows.rank(), ways) for each in batches]
    assert parts[0].inputs.shape == (2, 16 // ways)
    loss, count, got = step(model, parts)
    loss, count = add_up(torch.tensor([loss, count], dtype=torch.float64), rows).tolist()
    got = {name: add_up(gradient, rows) for name, gradient in got.items()}
    if split is not None:
        got = {name: add_up(gradient, tensor) if name in split.partial else gradient for name, gradient in got.items()}
        got = gather_tensors(got, split, tensor)
    return loss, count, got


@pytest.mark.parametrize(("form", "ways"), [(form, 4) for form in FORMS] + [("default", 2), ("window", 2)])
def test_the_loss_and_every_gradient_are_those_of_one_process(form, ways, world):
    known = torch.float32, FORMS[form], [batch()]
    check_step(world(4).run(divided_step, *known, ways, 1), *known)


@pytest.mark.parametrize("form", ["default", "window", "alibi", "relative"])
@pytest.mark.parametrize("kind", ["packed", "masked", "padded"])
def test_packed_and_padded_rows_are_read_as_by_one_process(kind, form, world):
    known = torch.float32, FORMS[form], [packed(kind)]
    check_step(world(4).run(divided_step, *known, 4, 1), *known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["grouped", "alibi", "alibi in a window", "relative", "experts"])
def test_tensor_parallelism_divides_the_same_model_further(form, dtype, world):
    known = dtype, FORMS[form], [batch()]
    check_step(world(4).run(divided_step, *known, 2, 2), *known)


def compiled_step():
    """Losses and gradients without and with compiled blocks, of heads divided two ways; on two ranks."""
    tensor, alone = group_of(2), group_of(1)
    if tensor.rank() != dist.get_rank():
        return None
    model = transformer(layers=1)
    shard_tensors(model, tensor)
    share_context(model, alone)
    part = context_part(batch(), 0, 1)
    loss, _, gradients = step(model, [part])
    for block in model.layers:
        block.compile(fullgraph=True, backend="aot_eager")
    again, _, compiled = step(model, [part])
    torch.compiler.reset()
    return loss, again, furthest(gradients, compiled)


def test_exchanges_within_a_block_are_part_of_the_graph_that_is_compiled(world):
    for loss, again, apart in world(4).run(compiled_step)[:2]:
        assert abs(again - loss) < 1e-5 * loss
        assert max(apart.values()) < 1e-5, apart


@given(st.integers(1, 6), st.integers(1, 4))
def test_the_pieces_cover_each_position_once_and_causal_work_is_equal(ways, size):
    length = 2 * ways * size
    parts = [pieces(length, index, ways) for index in range(ways)]
    covered = sorted(position for part in parts for span in part for position in range(*span))
    assert covered == list(range(length))
    assert len({sum(position for span in part for position in range(*span)) for part in parts}) == 1
    own = torch.stack([torch.cat([torch.arange(*span) for span in part]) for part in parts])
    keys, values = in_order(torch.stack((own, own + 100), 1)[:, :, None, None, :, None])
    assert keys.flatten().tolist() == covered
    assert values.flatten().tolist() == [position + 100 for position in covered]


def refusals():
    """What context parallelism does not divide, in words."""
    words = []
    for sizes in (
        {"cross_attention": True},
        {"dilated_segments": ((8, 1),)},
        {"ngram_tables": ((2, 8),)},
        {"head_offsets": 1.0},
    ):
        try:
            share_context(transformer(**sizes), group_of(2))
        except UserError as error:
            words.append(str(error))
    return words


def test_what_cannot_be_divided_is_refused(world):
    for words in world(4).run(refusals):
        for word, part in zip(
            words, ("encoder-decoders", "dilated attention", "ngram_tables", "head_offsets"), strict=True
        ):
            assert part in word
    with pytest.raises(UserError, match="multiple of 8"):
        context_part(batch(length=12), 0, 4)
