"""Masked language models against the encoder shown one text at a time, and against `transformers`."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers

from parlance.core.errors import UserError
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.models import masked
from parlance.models.checkpoints import load_model
from parlance.models.masked import MaskedLanguageModel
from parlance.models.transformer import Transformer

V, MASK = 40, 42
ENCODER = {"vocab_size": 43, "causal": False, "context_length": 40, "layers": 2}
SHAPES = {
    "rotary": {},
    "bert": {
        "positions": "learned",
        "norm": "layer",
        "norm_placement": "post",
        "final_norm": False,
        "embedding_norm": True,
        "token_types": 2,
        "tie_embeddings": True,
        "head_transform": True,
        "head_bias": True,
    },
    "relative": {"positions": "relative"},
}
WRAPPED = {"vocab_size": V, "mask_token": MASK, "before": (40,), "after": (41, 41)}


@pytest.fixture(params=SHAPES, ids=str)
def encoder(request, tiny_transformer) -> Transformer:
    return tiny_transformer(**ENCODER, **SHAPES[request.param])


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def shown(encoder: Transformer, row: list[int], place: int) -> torch.Tensor:
    """Logits (V,) at a place of one text, alone and without padding, within WRAPPED's tokens."""
    with torch.inference_mode():
        return encoder.logits(encoder.hidden(torch.tensor([[40, *row, 41, 41]])))[0, place + 1, :V]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pass_tokens", [1, 100, 8192])
@torch.inference_mode()
def test_the_next_token_is_that_of_a_mask_behind_the_beginning(encoder, pass_tokens, monkeypatch):
    monkeypatch.setattr(masked, "PASS_TOKENS", pass_tokens)
    model, tokens = MaskedLanguageModel(encoder, **WRAPPED), ids(3, 6)
    logits, _ = model.forward(tokens)
    assert logits.shape == (3, 6, V)
    assert logits.dtype == torch.float32
    for row in range(3):
        for t in range(6):
            close(logits[row, t], shown(encoder, [*tokens[row, : t + 1].tolist(), MASK], t + 1))


@torch.inference_mode()
def test_a_text_that_comes_with_its_beginning_is_not_given_it_again(encoder):
    model, tokens = MaskedLanguageModel(encoder, **WRAPPED), ids(2, 5)
    begun = torch.cat([torch.tensor([list(WRAPPED["before"])] * 2), tokens], 1)
    close(model.forward(begun)[0][:, len(WRAPPED["before"]) :], model.forward(tokens)[0])


@torch.inference_mode()
def test_reading_in_pieces_equals_reading_at_once(encoder):
    model, tokens = MaskedLanguageModel(encoder, **WRAPPED), ids(2, 9)
    whole, _ = model.forward(tokens)
    for pieces in ([1] * 9, [4, 5], [8, 1]):
        state, parts = None, []
        for piece in tokens.split(pieces, dim=1):
            logits, state = model.forward(piece, state)
            parts.append(logits)
        close(torch.cat(parts, 1), whole)
    rows = torch.tensor([1, 0, 1])
    _, state = model.forward(tokens[:, :5])
    close(model.forward(tokens[rows, 5:], state.select(rows))[0], whole[rows, 5:])


def test_it_generates_until_the_encoder_is_full(encoder):
    model = MaskedLanguageModel(encoder, **WRAPPED)
    assert model.context_length == 40 - 3 - 1
    prompt = ids(30).tolist()
    generated = list(stream(model, prompt, SamplingConfig(max_tokens=100, temperature=0.0), stop=()))
    assert len(generated) == 6
    for n, token in enumerate(generated):
        text = prompt + generated[:n]
        assert token == int(shown(encoder, [*text, MASK], len(text)).argmax())


@torch.inference_mode()
def test_bfloat16_is_near_float32(encoder):
    model, tokens = MaskedLanguageModel(encoder, **WRAPPED), ids(2, 12)
    exact = model.forward(tokens)[0]
    encoder.compute_dtype = torch.bfloat16
    rough = model.forward(tokens)[0]
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


def test_what_does_not_fit_is_refused(tiny_transformer):
    with pytest.raises(UserError, match="made of an encoder; this model is a decoder"):
        MaskedLanguageModel(tiny_transformer(), vocab_size=260, mask_token=3)
    encoder = tiny_transformer(**ENCODER)
    for wrong in ({"mask_token": 43}, {"before": (-1,)}, {"after": (43,)}, {"vocab_size": 44}):
        with pytest.raises(UserError, match="not one of the 43 that this encoder has"):
            MaskedLanguageModel(encoder, **(WRAPPED | wrong))


def test_the_next_token_is_that_of_transformers(tmp_path):
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    peer = transformers.BertForMaskedLM(config).eval()
    peer.save_pretrained(tmp_path)
    encoder = load_model(tmp_path)
    assert isinstance(encoder, Transformer)
    model = MaskedLanguageModel(encoder, vocab_size=50, mask_token=3, before=(1,), after=(2,))
    text = ids(11)
    with torch.inference_mode():
        found = model.forward(text[None])[0][0].log_softmax(-1)
        for length in range(1, 12):
            wrapped = torch.tensor([[1, *text[:length].tolist(), 3, 2]])
            theirs = peer(input_ids=wrapped).logits[0, -2].log_softmax(-1)
            torch.testing.assert_close(found[length - 1], theirs, atol=1e-4, rtol=1e-4)
