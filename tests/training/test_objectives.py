"""The next-token loss against torch's own, masked targets, and means over uneven batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from parlance.training.objectives import IGNORE, NextTokenObjective, TokenBatch, mean_loss, token_batch


def windows(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 260, (rows, length + 1), generator=torch.Generator().manual_seed(seed))


def masked(batch: TokenBatch, share: float) -> TokenBatch:
    hidden = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(1)) < share
    return TokenBatch(batch.inputs, batch.targets.masked_fill(hidden, IGNORE))


def test_token_batch_shifts_by_one():
    batch = token_batch(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert batch.inputs.tolist() == [[1, 2], [4, 5]]
    assert batch.targets.tolist() == [[2, 3], [5, 6]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_the_loss_and_its_gradient_are_those_of_cross_entropy(tiny_transformer, share):
    model, batch = tiny_transformer(), masked(token_batch(windows(3, 40)), share)
    logits, _ = model.forward(batch.inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected.backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    terms = NextTokenObjective()(model, batch)
    terms.loss_sum.backward()
    assert terms.count == int((batch.targets != IGNORE).sum())
    torch.testing.assert_close(terms.loss_sum, expected)
    for name, value in model.named_parameters():
        torch.testing.assert_close(value.grad, gradients[name], atol=1e-4, rtol=1e-4)


def test_a_batch_without_targets_counts_nothing_and_has_no_gradient(tiny_transformer):
    model = tiny_transformer()
    terms = NextTokenObjective()(model, masked(token_batch(windows(2, 8)), 1.1))
    assert (terms.count, float(terms.loss_sum.detach())) == (0, 0.0)
    terms.loss_sum.backward()
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


def test_the_mean_is_over_tokens_not_over_batches(tiny_transformer):
    model = tiny_transformer()
    batches = [token_batch(windows(1, 5)), masked(token_batch(windows(4, 30, seed=2)), 0.5)]
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            logprobs = model.forward(batch.inputs)[0].log_softmax(-1)
            for row in range(len(batch.inputs)):
                for place, target in enumerate(batch.targets[row].tolist()):
                    if target != IGNORE:
                        total, count = total - float(logprobs[row, place, target]), count + 1
    assert mean_loss(model, batches) == pytest.approx(total / count, rel=1e-5)
    assert all(value.grad is None for value in model.parameters())


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary(tiny_transformer):
    model = tiny_transformer()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert mean_loss(model, [token_batch(windows(2, 30))]) == pytest.approx(math.log(260), rel=1e-6)
