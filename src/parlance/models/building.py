"""From a configuration to the network it describes."""

from typing import Any

from parlance.models.convolutional import Convolutional, ConvolutionalConfig
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parlance.models.feedforward import FeedForwardConfig, FeedForwardModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.recurrent import Recurrent, RecurrentConfig
from parlance.models.recurrent_attention import RecurrentAttention, RecurrentAttentionConfig
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig


def build(config: Any) -> NeuralLanguageModel:
    """A network with weights that are not drawn yet: `initialise` it or load a checkpoint into it."""
    if isinstance(config, TransformerConfig):
        return Transformer(config)
    if isinstance(config, RecurrentConfig):
        return Recurrent(config)
    if isinstance(config, ConvolutionalConfig):
        return Convolutional(config)
    if isinstance(config, FeedForwardConfig):
        return FeedForwardModel(config)
    if isinstance(config, EncoderDecoderConfig):
        return EncoderDecoder(config)
    if isinstance(config, RecurrentAttentionConfig):
        return RecurrentAttention(config)
    raise TypeError(f"no network is made from a {type(config).__name__}")
