"""The feed-forward model against a direct loop over positions."""

import pytest
import torch

from parlance.models.feedforward import FeedForwardConfig, FeedForwardModel

CONFIG = FeedForwardConfig(vocab_size=30, layers=3, width=20, context=4, embedding_width=6)


@pytest.fixture
def model() -> FeedForwardModel:
    made = FeedForwardModel(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.3, 0.4, generator=generator)
    return made


def direct(model: FeedForwardModel, tokens: list[int]) -> torch.Tensor:
    """Logits (V,) after the last of `tokens`, written from the formula, in float64."""

    def weight(name: str) -> torch.Tensor:
        return model.get_parameter(name).detach().double()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean() + CONFIG.norm_epsilon).sqrt() * weight(f"{name}.weight")

    window = [torch.zeros(CONFIG.token_width, dtype=torch.float64)] * CONFIG.context
    window += [weight("embed_tokens.weight")[token] for token in tokens]
    window = window[-CONFIG.context :]
    distances = [CONFIG.context - place for place in range(CONFIG.context)]
    mean_square = sum(1 / distance**2 for distance in distances) / CONFIG.context
    x = torch.cat([e / distance / mean_square**0.5 for e, distance in zip(window, distances, strict=True)])
    x = torch.tanh(weight("layers.0.in_proj.weight") @ x + weight("layers.0.in_proj.bias"))
    for number in range(1, CONFIG.layers):
        name = f"layers.{number}"
        inner = weight(f"{name}.in_proj.weight") @ norm(x, f"{name}.input_layernorm") + weight(f"{name}.in_proj.bias")
        x = x + weight(f"{name}.out_proj.weight") @ torch.tanh(inner)
    return weight("lm_head.weight") @ norm(x, "norm")


@torch.inference_mode()
def test_each_position_equals_a_direct_computation_from_its_window(model):
    tokens = torch.randint(0, 30, (2, 11), generator=torch.Generator().manual_seed(1))
    logits, _ = model.forward(tokens)
    for row in range(2):
        for place in range(11):
            expected = direct(model, tokens[row, : place + 1].tolist())
            torch.testing.assert_close(logits[row, place].double(), expected, atol=1e-4, rtol=1e-4)


def test_the_embedding_is_a_quarter_of_the_width_by_default():
    assert FeedForwardConfig(vocab_size=9, layers=1, width=256).token_width == 64
    assert FeedForwardConfig(vocab_size=9, layers=1, width=8).token_width == 16
    assert CONFIG.token_width == 6


@torch.inference_mode()
def test_residual_layers_begin_as_the_identity(model):
    model.initialise(torch.Generator().manual_seed(3))
    x = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(4))
    assert all(torch.equal(layer(x), x) for layer in list(model.layers)[1:])
    assert bool((model.layers[0](torch.ones(1, 1, 24)) != 0).any())
