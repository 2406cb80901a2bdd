"""Batches that do not fit are halved, whatever the objective; the sums stay what they were."""

import pytest
import torch

from parlance.alignment.reward_model import RankedExample, RewardModel, pairwise_objective, ranked_batch
from parlance.core.errors import UserError
from parlance.training import memory_fit
from parlance.training.denoising import DenoisingTokens, denoising_batch
from parlance.training.gradients import SingleProcess
from parlance.training.memory_fit import MemoryFit, is_out_of_memory
from parlance.training.objectives import IGNORE, NextTokenObjective, TokenBatch, packed_batch
from parlance.training.optimizers import Optimizer
from parlance.training.rates import LearningRates, parameter_groups
from parlance.training.trainer import Trainer, TrainingConfig

REFUSAL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:134] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 7."
)


class SmallMemory:
    """An objective for which only so many rows fit; it fails in the backward pass, when gradients are there already."""

    def __init__(self, objective, rows: int) -> None:
        self.objective, self.rows, self.seen = objective, rows, []

    def __call__(self, model, batch):
        self.seen.append(len(batch))
        terms = self.objective(model, batch)
        if len(batch) > self.rows:
            terms.loss_sum.backward(retain_graph=True)
            raise REFUSAL
        return terms


def token_rows(rows: int, length: int = 16) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 260, (rows, length), generator=generator)
    targets = torch.randint(0, 260, (rows, length), generator=generator)
    for row in range(rows):
        targets[row, : 2 * row] = IGNORE
    return TokenBatch(inputs, targets)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (REFUSAL, True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_what_torch_really_raises_counts():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**58, dtype=torch.int64)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize("fitting", [1, 2, 3, 4])
def test_the_gradient_is_that_of_the_whole_batch(tiny_transformer, fitting, capsys):
    batches = [token_rows(7), token_rows(5)]
    whole, parts = tiny_transformer(), tiny_transformer()
    expected = SingleProcess().backward(whole, NextTokenObjective(), batches)
    small = SmallMemory(NextTokenObjective(), fitting)
    gradients = SingleProcess()
    sums = gradients.backward(parts, small, batches)
    assert (sums.count, sums.loss) == (expected.count, pytest.approx(expected.loss, rel=1e-6))
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-4, rtol=1e-4)
    told = capsys.readouterr().err
    assert f"each micro-batch of 7 rows is divided into {gradients.fit.parts}" in told
    # It is remembered: the next step begins with what fits.
    small.seen.clear()
    parts.zero_grad()
    gradients.backward(parts, small, batches)
    assert max(small.seen) <= fitting


def test_a_row_that_does_not_fit_is_told(tiny_transformer):
    with pytest.raises(UserError, match=r"a single row of a batch does not fit in memory .*can't allocate memory"):
        SingleProcess().backward(tiny_transformer(), SmallMemory(NextTokenObjective(), 0), [token_rows(4)])


def test_other_errors_are_not_taken_for_it(tiny_transformer):
    def broken(_model, _batch):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        SingleProcess().backward(tiny_transformer(), broken, [token_rows(4)])


def test_a_whole_step_of_the_trainer(tiny_transformer):
    losses = []
    for rows in (100, 3):
        model = tiny_transformer()

        def batches(_state):
            while True:
                yield token_rows(8), None

        optimizer = Optimizer(parameter_groups(model, LearningRates()))
        trainer = Trainer(model, SmallMemory(NextTokenObjective(), rows), batches, optimizer, TrainingConfig())
        losses.append([trainer.step(0.5)["loss"] for _ in range(4)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(("free", "parts"), [(None, 1), (10_000, 1), (900, 1), (700, 2), (450, 2), (444, 4), (10, 8)])
def test_what_is_known_beforehand_is_divided_beforehand(free, parts, capsys):
    fit = MemoryFit()
    fit.expect(lambda rows: 100 * rows, free, 8)
    assert fit.parts == parts
    assert bool(capsys.readouterr().err) == (parts > 1)


def test_validation_is_divided_too():
    fit, seen = MemoryFit(), []

    def measure(parts):
        seen.append([len(part) for part in parts])
        if max(seen[-1]) > 2:
            raise REFUSAL
        return sum(seen[-1])

    assert fit.run(measure, [token_rows(5), token_rows(3)]) == 8
    assert seen == [[5, 3], [3, 2, 2, 1], [2, 2, 1, 1, 1, 1]]


# --- every kind of batch can be divided ------------------------------------------------------------------------------


def summed(objective, model, parts):
    terms = [objective(model, part) for part in parts]
    return sum(float(term.loss_sum.detach()) for term in terms), sum(term.count for term in terms)


@pytest.mark.parametrize("length", [16, 1040], ids=["mask", "documents"])
def test_packed_rows(tiny_transformer, tiny_tokenizer, tmp_path, length):
    from parlance.text.token_dataset import TokenDataset, write_token_dataset

    documents = [[(start * 7 + step) % 200 for step in range(9)] for start in range(60 if length == 16 else 700)]
    write_token_dataset(tmp_path / "tokens", {"train": documents}, tiny_tokenizer)
    dataset = TokenDataset.open(tmp_path / "tokens", "train")
    rows, _ = next(dataset.packed_batches(5, length, seed=0))
    batch, model = packed_batch(rows, torch.device("cpu")), tiny_transformer(context_length=length)
    objective = NextTokenObjective()
    parts = [batch.part(0, 2), batch.part(2, 5)]
    assert summed(objective, model, parts) == pytest.approx(summed(objective, model, [batch]), rel=1e-5)
    assert [len(part) for part in parts] == [2, 3]


def test_ranked_prompts(tiny_transformer):
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(1, 260, (count,), generator=generator).tolist()

    examples = []
    for responses in (2, 4, 3):
        prompt = tokens(5)
        sequences = [prompt + tokens(3 + place) for place in range(responses)]
        examples.append(RankedExample(sequences, [(a, b) for a in range(responses) for b in range(a + 1, responses)]))
    batch = ranked_batch(examples)
    model = RewardModel(tiny_transformer())
    model.initialise_head(generator)
    whole = summed(pairwise_objective, model, [batch])
    assert summed(pairwise_objective, model, [batch.part(n, n + 1) for n in range(3)]) == pytest.approx(whole, rel=1e-5)
    assert summed(pairwise_objective, model, [batch.part(0, 2), batch.part(2, 3)]) == pytest.approx(whole, rel=1e-5)


def test_sources_and_targets():
    import numpy as np

    windows = np.random.default_rng(0).integers(0, 200, (6, 20))
    batch = denoising_batch(windows, DenoisingTokens(260, 4, 264, (264,)), np.random.default_rng(1))
    parts = [batch.part(0, 4), batch.part(4, 6)]
    for name in ("source", "source_mask", "inputs", "targets"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert [text.shape[0] for text in parts[1].texts()] == [2, 2]


def test_free_memory_is_known_here():
    from parlance.core.devices import free_memory_bytes

    free = free_memory_bytes(torch.device("cpu"))
    assert free is None or free > 0
    assert memory_fit.USABLE < 1


def test_a_resumed_run_divides_its_batches_as_before(tiny_transformer):
    """Bit for bit, though the memory that was missing is there by now."""

    def trainer(rows: int) -> tuple[Trainer, MemoryFit]:
        def batches(_state):
            while True:
                yield token_rows(8), None

        model, fit = tiny_transformer(), MemoryFit()
        optimizer = Optimizer(parameter_groups(model, LearningRates()))
        objective = SmallMemory(NextTokenObjective(), rows)
        return Trainer(model, objective, batches, optimizer, TrainingConfig(), fit=fit), fit

    (stopped, first), (resumed, second) = trainer(3), trainer(100)
    stopped.step(0.5)
    tensors, info = stopped.capture()
    resumed.restore({name: tensor.clone() for name, tensor in tensors.items()}, info)
    assert (first.parts, second.parts) == (4, 4)
    assert stopped.step(0.6) == resumed.step(0.6)
    for one, two in zip(stopped.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)
    # Where less is free than then, the finer division stays.
    third, fit = trainer(100)
    fit.parts = 8
    third.restore(tensors, info)
    assert fit.parts == 8
