"""Pipeline stages train what one process trains: losses, gradient norms, gradients and weights of the same steps."""

import copy
import itertools

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Layout
from parlance.models.transformer_config import TransformerConfig
from parlance.text.packing import IGNORE
from parlance.training.objectives import NextTokenObjective, TokenBatch, mean_loss
from parlance.training.optimizers import Optimizer, clip_gradients
from parlance.training.parallel.pipeline import Pipeline
from parlance.training.parallel.stages import divide_layers, stage_costs
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

V, T, STEPS = 61, 12, 5
GROUPED = {"kv_heads": 1, "attention_bias": True}
GPT2 = {"positions": "learned", "norm": "layer", "gated_mlp": False, "activation": "gelu-tanh", "qk_norm": False}
# No biases of keys where positions do not turn them: their gradient is zero, and AdamW follows its rounding errors.
GPT2 |= {"output_bias": True, "mlp_bias": True, "tie_embeddings": True}
BERT = GPT2 | {"causal": False, "norm_placement": "post", "final_norm": False, "embedding_norm": True, "token_types": 2}
BERT |= {"head_transform": True, "head_bias": True}
T5 = {"positions": "relative", "tie_embeddings": True, "logit_scale": 0.25}
OPT = {"positions": "learned", "embedding_width": 12, "norm_placement": "post"}
EXPERTS = {"experts": 4, "expert_every": 2, "load_balancing": 0.5, "router_z_loss": 0.1}
WINDOWS = {"sliding_window": 4, "full_attention_layers": (0,), "block": "parallel"}

DROPOUT = {"ngram_tables": ((2, 50),), "ngram_dropout": 0.3, "dropout": 0.2}


def make(layers=4, **fields):
    """A model with random weights everywhere, so that every parameter has a gradient."""
    sizes = {"vocab_size": V, "context_length": 16, "width": 16, "heads": 2, "head_width": 8, "mlp_width": 24}
    model = Transformer(TransformerConfig(**(sizes | {"layers": layers} | fields)))
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def endless(packed=False, seed=1):
    """Micro-batches of one shape, whose counts of targets differ."""

    def batches(_):
        generator = torch.Generator().manual_seed(seed)
        for number in itertools.count():
            tokens = torch.randint(V, (3, T + 1), generator=generator)
            targets = tokens[:, 1:].clone()
            targets[torch.rand(targets.shape, generator=generator) < 0.2 * (number % 4)] = IGNORE
            layout = None
            if packed:
                documents = (torch.arange(T) >= 5).long().expand(3, T)
                layout = Layout(torch.arange(T).expand(3, T) - 5 * documents, None, documents)
            yield TokenBatch(tokens[:, :-1].contiguous(), targets, layout, noise=number), number

    return batches


class Alone:
    """The `Gradients` of a pipeline and nothing else, which does not clip."""

    def __init__(self, pipeline):
        self.backward = pipeline.backward

    def clip(self, optimizer, limit):
        return clip_gradients(optimizer.parameters(), 1e9 * limit)


def train(model, batches, micro_batches, optimizer, gradients=None):
    groups = parameter_groups(model, LearningRates(optimizer=optimizer))
    config = TrainingConfig(accumulation=micro_batches, clip=1e9)
    trainer = Trainer(model, NextTokenObjective(), batches, Optimizer(groups), config, gradients)
    figures = [trainer.step(step / STEPS) for step in range(STEPS)]
    return [(figure["loss"], figure["items"]) for figure in figures]


def both_ways(fields, micro_batches, optimizer, pieces, packed):
    """On each rank: the single process's figures and weights, the pipeline's figures, and this rank's weights."""
    model = make(**fields)
    alone = copy.deepcopy(model)
    batches = endless(packed)
    expected = train(alone, batches, micro_batches, optimizer)
    checks = [batch for batch, _ in itertools.islice(endless(packed, seed=2)(None), 3)]
    expected_loss = mean_loss(alone, checks)

    pipeline = Pipeline(model, dist.group.WORLD, pieces)
    figures = train(pipeline.part, batches, micro_batches, optimizer, Alone(pipeline))
    sums = pipeline.measure(NextTokenObjective(), checks)
    weights = {name: parameter.detach() for name, parameter in pipeline.part.named_parameters()}
    losses = expected_loss, sums.loss / sums.count
    return expected, figures, dict(alone.named_parameters()), weights, losses, pipeline.shared


@pytest.mark.parametrize(
    ("size", "fields", "micro_batches", "optimizer", "pieces", "packed"),
    [
        pytest.param(2, GROUPED, 4, "muon", 1, False, id="2-grouped-queries"),
        pytest.param(2, GPT2, 3, "adamw", 1, False, id="2-gpt2-tied"),
        pytest.param(2, BERT, 4, "adamw", 1, False, id="2-bert-post-norm"),
        pytest.param(2, T5, 2, "muon", 1, False, id="2-t5-relative"),
        pytest.param(2, OPT, 1, "adamw", 1, False, id="2-opt-one-micro-batch"),
        pytest.param(2, EXPERTS, 4, "adamw", 1, False, id="2-experts"),
        pytest.param(2, WINDOWS, 2, "muon", 1, False, id="2-windows-parallel-block"),
        pytest.param(2, GROUPED, 2, "adamw", 1, True, id="2-packed"),
        pytest.param(2, DROPOUT, 2, "adamw", 1, False, id="2-dropout"),
        pytest.param(2, GPT2 | {"layers": 5}, 4, "muon", 2, False, id="2-gpt2-interleaved"),
        pytest.param(2, EXPERTS, 5, "muon", 2, False, id="2-experts-interleaved-breadth-first"),
        pytest.param(4, GROUPED, 8, "muon", 1, False, id="4-grouped-queries"),
        pytest.param(4, T5 | EXPERTS, 4, "adamw", 1, False, id="4-t5-experts"),
        pytest.param(4, BERT | {"layers": 6}, 2, "adamw", 1, False, id="4-bert-few-micro-batches"),
    ],
)
def test_stages_train_what_one_process_trains(world, size, fields, micro_batches, optimizer, pieces, packed):
    answers = world(size).run(both_ways, fields, micro_batches, optimizer, pieces, packed)
    held = [set(weights) for _, _, _, weights, _, _ in answers]
    for expected, figures, alone, weights, (expected_loss, loss), shared in answers:
        assert [items for _, items in figures] == [items for _, items in expected]
        torch.testing.assert_close(torch.tensor(figures), torch.tensor(expected), rtol=1e-5, atol=1e-5)
        for name in weights:
            torch.testing.assert_close(weights[name], alone[name].data, rtol=1e-5, atol=1e-5, msg=name)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert set().union(*held) == set(alone)
        for name in alone:
            ranks = tuple(rank for rank, names in enumerate(held) if name in names)
            assert shared.get(name, ranks) == ranks
            assert (name in shared) == (len(ranks) > 1)
    for name, ranks in answers[0][-1].items():
        assert name in ("embed_tokens.weight", "relative_bias.weight")
        assert all(torch.equal(answers[rank][3][name], answers[ranks[0]][3][name]) for rank in ranks)


def gradients_of(fields, dtype, pipelines=1):
    """The gradients of one step whose micro-batches are all ignored but one, of both ways.

    With several `pipelines` each has its own batches.
    """
    groups = [dist.new_group(range(n, dist.get_world_size(), pipelines)) for n in range(pipelines)]
    mine = dist.get_rank() % pipelines
    model = make(**fields)
    model.compute_dtype = dtype
    alone = copy.deepcopy(model)
    batches = [batch for batch, _ in itertools.islice(endless(seed=mine)(None), 3)]
    for batch in batches[1:]:
        batch.targets.fill_(IGNORE)
    loss = NextTokenObjective()(alone, batches[0]).loss_sum
    loss.backward()
    pipeline = Pipeline(model, groups[mine])
    sums = pipeline.backward(pipeline.part, NextTokenObjective(), batches)
    parts = {name: parameter.grad for name, parameter in pipeline.part.named_parameters()}
    return float(loss.detach()), sums, {name: p.grad for name, p in alone.named_parameters()}, parts


@pytest.mark.parametrize(
    ("pipelines", "dtype", "tolerance"), [(1, torch.float32, 1e-6), (1, torch.bfloat16, 2e-2), (2, torch.float32, 1e-6)]
)
def test_gradients_of_the_sum_and_batches_without_targets(world, pipelines, dtype, tolerance):
    for loss, sums, expected, parts in world(2 * pipelines).run(gradients_of, GPT2, dtype, pipelines):
        assert sums.loss == pytest.approx(loss, rel=tolerance)
        assert sums.count == 3 * T
        for name, gradient in parts.items():
            size = float(expected[name].abs().max())
            torch.testing.assert_close(gradient, expected[name], rtol=tolerance, atol=tolerance * size, msg=name)


def refusals():
    """What a pipeline says to what it cannot do."""
    said = []

    def attempt(call):
        try:
            call()
        except UserError as error:
            said.append(str(error))

    batch = TokenBatch(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64))
    longer = TokenBatch(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64))
    attempt(lambda: Pipeline(make(layers=1), dist.group.WORLD))
    attempt(lambda: Pipeline(make(cross_attention=True), dist.group.WORLD))
    pipeline = Pipeline(make(), dist.group.WORLD, 2)
    objective = NextTokenObjective()
    attempt(lambda: pipeline.backward(pipeline.part, objective, [batch, longer]))
    attempt(lambda: pipeline.backward(pipeline.part, objective, [[1, 2]]))
    return said


def test_what_cannot_be_divided_is_refused(world):
    for said in world(2).run(refusals):
        layers, decoder, shapes, kind = said
        assert "1 layers" in layers
        assert "2 pipeline stages" in layers
        assert "encoder-decoder" in decoder
        assert "(2, 4), (2, 5)" in shapes
        assert "batches of tokens" in kind


@settings(max_examples=60, deadline=None)
@given(
    layers=st.integers(1, 8),
    stages=st.integers(1, 6),
    vocab=st.sampled_from([16, 400, 3000]),
    experts=st.sampled_from([{}, EXPERTS, WINDOWS]),
)
def test_layers_are_divided_as_evenly_as_can_be(layers, stages, vocab, experts):
    config = make(layers=layers, **experts).config.model_copy(update={"vocab_size": vocab})
    if stages > layers:
        with pytest.raises(UserError, match="at most as many stages"):
            divide_layers(config, stages)
        return
    costs, head = stage_costs(config)
    assert sum(costs) + head == pytest.approx(config.forward_flops_per_token(config.context_length))

    def dearest(ends):
        bounds = [0, *ends, layers]
        sums = [sum(costs[a:b]) for a, b in itertools.pairwise(bounds)]
        return max(*sums[:-1], sums[-1] + head) if stages > 1 else sums[0] + head

    best = min(dearest(ends) for ends in itertools.combinations(range(1, layers + 1), stages - 1))
    spans = divide_layers(config, stages)
    assert [block for span in spans for block in span] == list(range(layers))
    assert len(spans) == stages
    assert all(len(span) for span in spans[:-1])
    assert dearest([span.stop for span in spans[:-1]]) == pytest.approx(best)
