"""Small models of both kinds that read a source and write a target, every weight random; token ids for them."""

from typing import TypeVar

import torch
from torch import Tensor

from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parlance.models.neural import NeuralLanguageModel
from parlance.models.recurrent_attention import RecurrentAttention, RecurrentAttentionConfig
from parlance.models.transformer_config import TransformerConfig

V, SENTINELS = 50, 6
TRANSFORMERS = {
    "default": {},
    "grouped, relative": {"heads": 4, "kv_heads": 2, "head_width": 10, "positions": "relative"},
    "tied, learned, post-norm": {
        "tie_embeddings": True,
        "positions": "learned",
        "norm": "layer",
        "norm_placement": "post",
        "gated_mlp": False,
    },
}
"""Fields of both stacks that differ from `stacks()`."""
RECURRENT = {
    "multiplicative": {},
    "additive": {"attention": "additive"},
    "fed": {"input_feeding": True, "layers": 1},
    "LSTM, additive, fed": {"cell": "lstm", "attention": "additive", "input_feeding": True},
    "LSTM": {"cell": "lstm"},
}
"""Fields that differ from `RECURRENT_BASE`."""
RECURRENT_BASE = RecurrentAttentionConfig(
    vocab_size=V, width=16, layers=2, sentinels=SENTINELS, start_token=V + 3, empty_source=(1, 2)
)


def stacks(
    vocab_size: int = V,
    sentinels: int = SENTINELS,
    start_token: int = 1,
    empty_source: tuple[int, ...] = (2,),
    **changes: object,
) -> EncoderDecoderConfig:
    """Two stacks of the same fields."""
    sizes = {"context_length": 64, "width": 32, "layers": 2, "heads": 1, "head_width": 32}
    stack = TransformerConfig(**(sizes | {"vocab_size": vocab_size + sentinels} | changes))
    return EncoderDecoderConfig(
        vocab_size=vocab_size,
        sentinels=sentinels,
        start_token=start_token,
        empty_source=empty_source,
        encoder=stack.model_copy(update={"causal": False}),
        decoder=stack.model_copy(update={"cross_attention": True}),
    )


def transformer(seed: int = 0, **changes: object) -> EncoderDecoder:
    """An encoder-decoder of two Transformers."""
    return _filled(EncoderDecoder(stacks(**changes)), seed, 1.0, 1.0)


def recurrent(seed: int = 0, **changes: object) -> RecurrentAttention:
    """An encoder-decoder of recurrences."""
    return _filled(RecurrentAttention(RECURRENT_BASE.model_copy(update=changes)), seed, 0.5, 1.5)


Model = TypeVar("Model", bound=NeuralLanguageModel)


def _filled(model: Model, seed: int, mean: float, spread: float) -> Model:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean, 0.3, generator=generator)
            else:
                parameter.normal_(0.0, spread * parameter.shape[1] ** -0.5, generator=generator)
    return model


def ids(*shape: int, seed: int = 0) -> Tensor:
    """Random tokens below V."""
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
