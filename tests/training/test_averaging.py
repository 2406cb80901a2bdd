"""The moving average of the weights against its formula; that it is swapped in and out, and goes on exactly."""

import torch
from torch import nn

from parlance.training.averaging import WeightAverage


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 2)


def steps(model: nn.Module, average: WeightAverage, numbers: range) -> None:
    for number in numbers:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
        average.update()


def test_the_average_follows_its_formula():
    model = linear()
    average = WeightAverage(model, 0.8)
    expected = None
    for number in range(1, 40):
        steps(model, average, range(number, number + 1))
        decay = min(0.8, (1 + number) / (10 + number))
        value = model.weight.detach().clone()
        # The average begins with the weights after the first step.
        expected = value if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.tensors()["weight"], expected)


def test_in_the_block_the_model_has_the_average_and_afterwards_its_own_weights():
    model = linear()
    average = WeightAverage(model, 0.9)
    own = model.weight.detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, own)  # nothing is averaged yet
    steps(model, average, range(5))
    own, mean = model.weight.detach().clone(), average.tensors()["weight"].clone()
    assert not torch.equal(own, mean)
    with average.in_place():
        assert torch.equal(model.weight, mean)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.tensors()["weight"], mean)
    average.adopt()
    assert torch.equal(model.weight, mean)


def test_it_goes_on_exactly():
    model = linear()
    average = WeightAverage(model, 0.9)
    steps(model, average, range(6))
    state = {name: value.clone() for name, value in average.tensors().items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    updates = average.updates
    steps(model, average, range(6, 12))
    other = linear(seed=7)
    again = WeightAverage(other, 0.9)
    steps(other, again, range(2))
    other.load_state_dict(weights)
    again.restore(state, updates)
    steps(other, again, range(6, 12))
    torch.testing.assert_close(again.tensors(), average.tensors(), atol=0, rtol=0)
