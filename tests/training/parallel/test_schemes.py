"""Whatever divides the work, the losses and the weights are those of one process."""

import functools

import pytest
import torch
from schemes import (
    ADAMW,
    EXPERTS,
    MUON,
    NGRAMS,
    PLAIN,
    batches,
    small_model,
    train_alone,
    train_together,
    world_here,
)

from parlance.core.errors import UserError
from parlance.training.memory_fit import MemoryFit
from parlance.training.objectives import NextTokenObjective
from parlance.training.parallel.distributed import Distributed
from parlance.training.parallel.mesh import ParallelConfig
from parlance.training.rates import LearningRates

STEPS = 5
DROPOUT = {**PLAIN, "dropout": 0.2}
DEEP = {**PLAIN, "layers": 4, "tie_embeddings": True}
TIED = {**PLAIN, "tie_embeddings": True}

SCHEMES = [
    pytest.param(2, {}, PLAIN, id="data"),
    pytest.param(2, {}, EXPERTS, id="data-experts"),
    pytest.param(2, {}, NGRAMS, id="data-ngrams"),
    pytest.param(2, {}, DROPOUT, id="data-dropout"),
    pytest.param(2, {"pipeline": 2}, DROPOUT, id="pipeline-dropout"),
    pytest.param(2, {"shard": 2}, PLAIN, id="shard"),
    pytest.param(2, {"shard": 2}, EXPERTS, id="shard-experts"),
    pytest.param(2, {"shard": 2}, TIED, id="shard-tied"),
    pytest.param(2, {"tensor": 2}, PLAIN, id="tensor"),
    pytest.param(2, {"context": 2}, PLAIN, id="context"),
    pytest.param(2, {"expert": 2}, EXPERTS, id="expert"),
    pytest.param(2, {"pipeline": 2}, TIED, id="pipeline"),
    pytest.param(2, {"pipeline": 2, "pieces": 2}, DEEP, id="pieces"),
    pytest.param(4, {"pipeline": 2, "pieces": 2}, DEEP, id="pieces-data"),
    pytest.param(4, {"pipeline": 2, "pieces": 2, "tensor": 2}, DEEP, id="pieces-tensor"),
    pytest.param(4, {"shard": 2}, PLAIN, id="data-shard"),
    pytest.param(4, {"shard": 4}, {**EXPERTS, "experts": 2}, id="shard-nothing-for-some"),
    pytest.param(4, {"tensor": 2}, PLAIN, id="data-tensor"),
    pytest.param(4, {"shard": 2, "tensor": 2}, PLAIN, id="shard-tensor"),
    pytest.param(4, {"pipeline": 2}, TIED, id="pipeline-data"),
    pytest.param(4, {"pipeline": 2}, EXPERTS, id="pipeline-data-experts"),
    pytest.param(4, {"pipeline": 2, "shard": 2}, PLAIN, id="pipeline-shard"),
    pytest.param(4, {"pipeline": 2, "tensor": 2}, PLAIN, id="pipeline-tensor"),
    pytest.param(4, {"context": 2, "shard": 2}, PLAIN, id="context-shard"),
    pytest.param(4, {"pipeline": 2, "context": 2}, PLAIN, id="pipeline-context"),
    pytest.param(4, {"expert": 2, "shard": 2}, EXPERTS, id="expert-shard"),
    pytest.param(4, {"expert": 2, "tensor": 2}, EXPERTS, id="expert-tensor"),
]


@functools.cache
def alone(sizes: tuple, rates: LearningRates):
    return train_alone(dict(sizes), rates, STEPS)


CASES = [
    pytest.param(*scheme.values, rates, id=f"{scheme.id}-{rates.optimizer}")
    for scheme in SCHEMES
    for rates in (MUON, ADAMW)
    # What AdamW does with its part of a weight depends on no other part: of the products Muon alone is tried.
    if rates is MUON or len(scheme.values[1]) < 2
]


@pytest.mark.parametrize(("processes", "axes", "sizes", "rates"), CASES)
def test_a_scheme_reproduces_one_process(world, processes, axes, sizes, rates):
    figures, weights, loss = alone(tuple(sizes.items()), rates)
    outcomes = world(processes).run(train_together, sizes, ParallelConfig(**axes), rates, STEPS)
    for found, _, found_loss in outcomes:
        assert [row["items"] for row in found] == [row["items"] for row in figures]
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in figures], rel=1e-5)
        norms = [row["gradient_norm"] for row in figures]
        assert [row["gradient_norm"] for row in found] == pytest.approx(norms, rel=1e-5)
        assert found_loss == pytest.approx(loss, rel=1e-5)
        assert found == outcomes[0][0]
    whole = outcomes[0][1]
    assert whole.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(
            whole[name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def few_rows_with_experts() -> str:
    parts = Distributed(small_model(EXPERTS), ParallelConfig(), world_here(), MemoryFit())
    batch, _ = next(batches(0, rows=3))
    with pytest.raises(UserError) as caught:
        parts.backward(parts.model, NextTokenObjective(), [batch])
    return str(caught.value)


def test_experts_need_a_row_for_every_process(world):
    """A process without rows would change the balance of the experts."""
    for told in world(4).run(few_rows_with_experts):
        assert "a batch of 3 rows is too small for 4 processes" in told
