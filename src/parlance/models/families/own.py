"""What no published family can say: our own `config.json`, with every field of a configuration, and our tensor names.

`transformers` does not open these folders. A Transformer is written this way only where it has a part that no published
family has, such as dilated attention; the other networks of the ladder have no published form.
"""

from collections.abc import Iterable
from typing import Any

import torch

from parlance.core.config import Config, parse_config
from parlance.models.building import build
from parlance.models.convolutional import ConvolutionalConfig
from parlance.models.encoder_decoder import EncoderDecoderConfig
from parlance.models.families.family import BOOKKEEPING, ConfigReader, Entry, Family, Values, same
from parlance.models.feedforward import FeedForwardConfig
from parlance.models.recurrent import RecurrentConfig
from parlance.models.recurrent_attention import RecurrentAttentionConfig
from parlance.models.transformer_config import TransformerConfig


def own_family(name: str, kind: type[Config]) -> Family:
    """The family of models built from a `kind` of configuration, under `model_type` parlance-NAME."""

    def read(reader: ConfigReader) -> Config:
        values = {key: value for key, value in reader.values.items() if key not in BOOKKEEPING}
        return parse_config(kind, values, where=str(reader.where))

    def write(config: Any) -> Values:
        return config.model_dump(mode="json", exclude={"model_type"}) if isinstance(config, kind) else {}

    def table(config: Any) -> Iterable[Entry]:
        with torch.device("meta"):
            model = build(config)
        return [same(name, name) for name, _ in model.named_parameters()]

    return Family(f"parlance-{name}", (f"Parlance{name.title().replace('-', '')}",), read, write, table)


TRANSFORMER = own_family("transformer", TransformerConfig)
RECURRENT = own_family("recurrent", RecurrentConfig)
CONVOLUTIONAL = own_family("convolutional", ConvolutionalConfig)
FEEDFORWARD = own_family("feedforward", FeedForwardConfig)
ENCODER_DECODER = own_family("encoder-decoder", EncoderDecoderConfig)
RECURRENT_ATTENTION = own_family("recurrent-attention", RecurrentAttentionConfig)
