"""What must hold of every model that generates from a state of fixed size: feed-forward, convolutional, recurrent."""

import copy

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.models.convolutional import Convolutional, ConvolutionalConfig
from parlance.models.feedforward import FeedForwardConfig, FeedForwardModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.padding import pad_right
from parlance.models.recurrent import Recurrent, RecurrentConfig

V, D = 50, 24
SIZES = {"vocab_size": V, "width": D}
MODELS = {
    "feed-forward, one layer": lambda: FeedForwardModel(FeedForwardConfig(**SIZES, layers=1, context=5)),
    "feed-forward, deep": lambda: FeedForwardModel(FeedForwardConfig(**SIZES, layers=3, context=4)),
    "feed-forward, one token": lambda: FeedForwardModel(FeedForwardConfig(**SIZES, layers=2, context=1)),
    "convolutional": lambda: Convolutional(ConvolutionalConfig(**SIZES, layers=3)),
    "convolutional, two cycles": lambda: Convolutional(
        ConvolutionalConfig(**SIZES, layers=5, kernel=2, dilation_cycle=3)
    ),
    **{
        cell: lambda cell=cell: Recurrent(RecurrentConfig(**SIZES, layers=2, cell=cell))
        for cell in ("elman", "gru", "lstm", "mlstm")
    },
    "plain lstm": lambda: Recurrent(RecurrentConfig(**SIZES, layers=2, residual=False, head_bias=True)),
}


REACH = {
    "feed-forward, one layer": 5,
    "feed-forward, deep": 4,
    "feed-forward, one token": 1,
    "convolutional": 1 + 2 * (1 + 2 + 4),
    "convolutional, two cycles": 1 + (1 + 2 + 4 + 1 + 2),
}
"""How many tokens, the newest included, a prediction of those without a recurrence depends on."""


def filled(model: NeuralLanguageModel) -> NeuralLanguageModel:
    """With every weight random, those that training starts at 0 or 1 too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(0.5, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
    return model


@pytest.fixture(params=MODELS, ids=str)
def model(request) -> NeuralLanguageModel:
    return filled(MODELS[request.param]())


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.12, "rtol": 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_the_future_does_not_change_the_past_by_one_bit(model, dtype):
    model.compute_dtype = dtype
    tokens = random_tokens(2, 40)
    before, _ = model.forward(tokens)
    for place in (0, 1, 17, 39):
        changed = tokens.clone()
        changed[:, place:] = (changed[:, place:] + 7) % V
        after, _ = model.forward(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(model, dtype):
    model.compute_dtype = dtype
    tokens = random_tokens(3, 40)
    whole, _ = model.forward(tokens)
    assert whole.dtype == torch.float32
    assert whole.shape == (3, 40, V)
    for pieces in ([40], [1] * 40, [39, 1], [1, 39], [3, 1, 1, 24, 11], [20, 20]):
        state, parts = None, []
        for piece in tokens.split(pieces, dim=1):
            logits, state = model.forward(piece, state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, **tolerance(dtype))


@torch.inference_mode()
def test_the_state_is_moved_on_in_place_and_its_size_is_constant(model):
    def numbers(state):
        return [tensor for tensors in vars(state).values() for tensor in tensors]

    state = model.new_state(2, 8)
    shapes = [tensor.shape for tensor in numbers(state)]
    assert not any(tensor.any() for tensor in numbers(state))
    for length in (1, 5, 30):
        _, same = model.forward(random_tokens(2, length), state)
        assert same is state
        assert [tensor.shape for tensor in numbers(state)] == shapes
        # No view of something longer: that would keep a whole prompt in memory.
        assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for tensor in numbers(state))


@torch.inference_mode()
def test_rows_of_a_state_go_on_alone(model):
    tokens = random_tokens(4, 20)
    whole, _ = model.forward(tokens)
    _, state = model.forward(tokens[:, :9])
    rows = torch.tensor([3, 0])
    logits, _ = model.forward(tokens[rows, 9:], state.select(rows))
    torch.testing.assert_close(logits, whole[rows, 9:], **tolerance(torch.float32))


@torch.inference_mode()
def test_padding_on_the_right_does_not_reach_real_tokens(model):
    rows = [random_tokens(length, seed=length).tolist() for length in (3, 17, 32)]
    padded = model.hidden(pad_right(rows, 1))
    for number, row in enumerate(rows):
        alone = model.hidden(torch.tensor([row]))[0]
        torch.testing.assert_close(padded[number, : len(row)], alone, **tolerance(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_every_weight_and_are_the_same_in_pieces(model, dtype):
    model.compute_dtype = dtype
    tokens = random_tokens(2, 24)
    gradients = []
    for pieces in ([24], [7, 1, 16]):
        model.zero_grad()
        state = model.new_state(2, 24)
        hidden = torch.cat([model.hidden(piece, state) for piece in tokens.split(pieces, dim=1)], dim=1)
        model.logits(hidden).float().logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.dtype == torch.float32
        assert bool(gradient.any()), name
        scale = float(gradient.abs().max())
        limit = 1e-4 if dtype == torch.float32 else 0.06
        torch.testing.assert_close(gradients[1][name] / scale, gradient / scale, atol=limit, rtol=0)


@torch.inference_mode()
def test_an_inference_copy_in_bfloat16_gives_the_same_logits(model):
    model.compute_dtype = torch.bfloat16
    tokens = random_tokens(2, 20)
    twin = model.inference_copy()
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16}
    assert torch.equal(twin.forward(tokens)[0], model.forward(tokens)[0])


def test_generation_from_the_state_equals_generation_from_the_whole_text(model):
    prompt = [3, 1, 4, 1, 5]
    generated = list(stream(model, prompt, SamplingConfig(max_tokens=12, temperature=0.0), stop=()))
    text = list(prompt)
    for token in generated:
        with torch.inference_mode():
            assert token == int(model.forward(torch.tensor([text]))[0][0, -1].argmax())
        text.append(token)


def test_fresh_weights_follow_the_generator_alone_and_begin_near_the_uniform_distribution(model):
    model.initialise(torch.Generator().manual_seed(5))
    first = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        log_probs = model.forward(random_tokens(2, 9))[0].log_softmax(-1)
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, -float(torch.tensor(V).log())), atol=0.1, rtol=0)
    model.initialise(torch.Generator().manual_seed(5))
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())
    model.initialise(torch.Generator().manual_seed(6))
    assert not torch.equal(model.embed_tokens.weight, first["embed_tokens.weight"])


def test_names_put_every_parameter_into_its_group(model):
    """Embedding, matrices of layers, and head are told apart by name (training/rates.py); other parameters are 1-D."""
    for name, parameter in model.named_parameters():
        known = name.startswith(("embed_tokens.", "layers.", "lm_head."))
        assert known or parameter.ndim == 1, name
        assert parameter.ndim <= 2


@pytest.mark.parametrize(("name", "reach"), REACH.items())
@torch.inference_mode()
def test_a_prediction_depends_on_its_window_and_on_nothing_before_it(name, reach):
    model, tokens = filled(MODELS[name]()), random_tokens(1, 20)
    last = model.forward(tokens)[0][0, -1]
    for distance in range(20):
        changed = tokens.clone()
        changed[0, -1 - distance] = (changed[0, -1 - distance] + 1) % V
        assert torch.equal(model.forward(changed)[0][0, -1], last) == (distance >= reach)


@pytest.mark.parametrize("name", REACH)
def test_the_work_is_what_torch_counts(name):
    model = MODELS[name]()
    with FlopCounterMode(display=False) as counter:
        model.logits(model.hidden(random_tokens(2, 16)))
    assert counter.get_total_flops() == pytest.approx(32 * model.forward_flops_per_token(16), rel=1e-9)
    assert model.training_flops_per_token(16) == 3 * model.forward_flops_per_token(16)


@pytest.mark.parametrize("kind", [FeedForwardConfig, ConvolutionalConfig, RecurrentConfig])
def test_configurations_share_their_first_fields_and_refuse_nonsense(kind):
    config = kind(vocab_size=7, context_length=None, layers=1, width=8)
    assert kind.model_validate(config.model_dump()) == config
    assert config.model_type.startswith("parlance-")
    small = [("layers", 0), ("width", 0), ("vocab_size", 0), ("context_length", 0)]
    large = [("layers", 10**9), ("width", 10**9), ("vocab_size", 2**40), ("context_length", 2**40)]
    for field, value in (*small, *large, ("unknown", 1)):
        with pytest.raises(ValidationError):
            kind.model_validate(config.model_dump() | {field: value})
