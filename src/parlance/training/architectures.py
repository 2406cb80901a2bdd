"""Kinds of model that `pretrain` can make: their configurations, the sizes to choose from, and how fast each learns.

    config = configure("recurrent", layers=2, width=256, vocab_size=4096, context_length=256, fields={"cell": "gru"})
    model = build(config)

A kind is one entry of `ARCHITECTURES`; what a model is made of stands in `models/`, how it is trained in `tasks.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from parlance.core.artifacts import os_errors
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.models.convolutional import ConvolutionalConfig
from parlance.models.encoder_decoder import EncoderDecoderConfig
from parlance.models.feedforward import FeedForwardConfig
from parlance.models.recurrent import RecurrentConfig
from parlance.models.recurrent_attention import RecurrentAttentionConfig
from parlance.models.transformer_config import TransformerConfig
from parlance.training.denoising import sentinels_needed
from parlance.training.rates import LearningRates

Kind = Literal[
    "transformer",
    "recurrent",
    "convolutional",
    "feedforward",
    "encoder",
    "encoder-decoder",
    "recurrent-attention",
]


DECIDED_BY_KIND = ("causal", "cross_attention", "pooler", "next_sentence", "token_types")
"""Fields that make a kind of model what it is."""


@dataclass(frozen=True)
class Sizes:
    """What every kind of model is asked to be."""

    layers: int
    width: int
    vocab_size: int
    """Of the tokenizer."""
    context_length: int


@dataclass(frozen=True)
class Architecture:
    """A kind of model."""

    configuration: type[Config]
    """What it is built from."""
    ladder: tuple[tuple[int, int], ...]
    """Sizes to choose from, smallest first: (layers, width)."""
    rates: LearningRates
    """Peak learning rates that suit it."""
    values: Callable[[Sizes, Mapping[str, Any]], dict[str, Any]]
    """The configuration's fields, from sizes and the fields that the user set."""
    task: Literal["next-token", "masked", "denoising"] = "next-token"
    """What it is trained for."""
    further: tuple[str, ...] = ()
    """Fields that the user may set besides those of the configuration."""


def _unbounded(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """No longest text: a state of fixed size goes on."""
    values = asdict(sizes) | dict(fields)
    del values["context_length"]
    return values


def _heads(width: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Heads that share the width."""
    head_width = fields.get("head_width", 64)
    if "heads" in fields and "head_width" not in fields:
        heads = fields["heads"]
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
            raise UserError(f"model.heads is {heads!r}; give a whole number that divides the width {width}")
        return {"head_width": width // heads}
    if "heads" in fields:
        return {}
    if not isinstance(head_width, int) or head_width < 1 or width % head_width:
        raise UserError(f"width {width} is not a multiple of {head_width}, the width of one head")
    return {"heads": width // head_width}


def _transformer(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(sizes) | _heads(sizes.width, fields) | dict(fields)


def _encoder(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """BERT's parts, so that other programs open the result; one more row, the mask."""
    return (
        asdict(sizes)
        | _heads(sizes.width, fields)
        | {
            "vocab_size": sizes.vocab_size + 1,
            "causal": False,
            "positions": "learned",
            "norm": "layer",
            "norm_epsilon": 1e-12,
            "norm_placement": "post",
            "final_norm": False,
            "embedding_norm": True,
            "qk_norm": False,
            "activation": "gelu",
            "gated_mlp": False,
            "attention_bias": True,
            "output_bias": True,
            "mlp_bias": True,
            "token_types": 2,
            "tie_embeddings": True,
            "head_transform": True,
            "head_bias": True,
        }
        | dict(fields)
    )


_STACK = tuple(TransformerConfig.model_fields)
"""Fields of a stack."""
_OF_BOTH_STACKS = ("sentinels", "start_token", "empty_source")
"""Fields of an encoder-decoder that are not those of a stack."""


def _denoising_rows(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the embedding beyond the tokenizer's: sentinels, then one that begins targets and is an empty source."""
    sentinels = fields.get("sentinels", sentinels_needed(sizes.context_length) + 1)
    if isinstance(sentinels, bool) or not isinstance(sentinels, int) or sentinels < 3:
        raise UserError(f"model.sentinels is {sentinels!r}; give a whole number, 3 or more")
    last = sizes.vocab_size + sentinels - 1
    return {"sentinels": sentinels, "start_token": last, "empty_source": (last,)}


def _encoder_decoder(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of T5 1.1, so that other programs open the result.

    Fields are those of both stacks; `encoder` and `decoder` may hold those of one, its number of layers for example.
    """
    whole = {"vocab_size": sizes.vocab_size} | _denoising_rows(sizes, fields)
    whole |= {name: fields[name] for name in _OF_BOTH_STACKS if name in fields}
    heads = {"head_width": fields.get("head_width", 64)} | _heads(sizes.width, fields)
    stack = (
        asdict(sizes)
        | {"vocab_size": sizes.vocab_size + whole["sentinels"]}
        | heads
        | {
            "positions": "relative",
            # The power of two that `families/t5.py` puts into the queries of its files.
            "attention_scale": 2.0 ** -round(math.log2(max(1, heads["head_width"])) / 2),
            "qk_norm": False,
            "activation": "gelu-tanh",
        }
        | {name: value for name, value in fields.items() if name not in (*_OF_BOTH_STACKS, "encoder", "decoder")}
    )
    for name, part in (("encoder", {"causal": False}), ("decoder", {"cross_attention": True})):
        own = fields.get(name, {})
        if not isinstance(own, Mapping):
            raise UserError(f"model.{name} is {own!r}; give a mapping of fields, as in a YAML file")
        whole[name] = stack | part | dict(own)
    return whole


def _recurrent_attention(sizes: Sizes, fields: Mapping[str, Any]) -> dict[str, Any]:
    return _unbounded(sizes, _denoising_rows(sizes, fields) | dict(fields))


_TRANSFORMER_LADDER = (
    (1, 64),
    (2, 128),
    (3, 192),
    (4, 256),
    (5, 320),
    (6, 384),
    (8, 512),
    (10, 640),
    (12, 768),
    (16, 1024),
)
_FEEDFORWARD_LADDER = ((1, 128), (2, 192), (2, 256), (3, 384), (3, 512), (4, 768), (4, 1024), (5, 1280), (6, 1536))
_CONVOLUTIONAL_LADDER = ((3, 64), (4, 96), (6, 128), (7, 192), (8, 256), (10, 320), (12, 448), (12, 576))
_RECURRENT_LADDER = ((1, 128), (2, 128), (2, 192), (2, 256), (2, 384), (3, 512), (3, 768), (3, 1024))

ARCHITECTURES: dict[Kind, Architecture] = {
    "transformer": Architecture(TransformerConfig, _TRANSFORMER_LADDER, LearningRates(), _transformer),
    "recurrent": Architecture(RecurrentConfig, _RECURRENT_LADDER, LearningRates(), _unbounded),
    "convolutional": Architecture(ConvolutionalConfig, _CONVOLUTIONAL_LADDER, LearningRates(matrices=0.05), _unbounded),
    "feedforward": Architecture(FeedForwardConfig, _FEEDFORWARD_LADDER, LearningRates(), _unbounded),
    "encoder": Architecture(
        TransformerConfig,
        _TRANSFORMER_LADDER,
        # Norms behind the branches, and an embedding that is the head too: gentler than a decoder's.
        LearningRates(matrices=0.01, embedding=0.03, head=0.002, vectors=0.003),
        _encoder,
        "masked",
    ),
    "encoder-decoder": Architecture(
        EncoderDecoderConfig, _TRANSFORMER_LADDER, LearningRates(), _encoder_decoder, "denoising", _STACK
    ),
    "recurrent-attention": Architecture(
        RecurrentAttentionConfig, _RECURRENT_LADDER, LearningRates(), _recurrent_attention, "denoising"
    ),
}


def configure(
    kind: Kind, *, layers: int, width: int, vocab_size: int, context_length: int, fields: Mapping[str, Any]
) -> Any:
    """The configuration of a model of this kind and size. `fields` are the user's, of the model's configuration.

    Raises UserError naming the first field that is unknown or does not fit.
    """
    architecture = ARCHITECTURES[kind]
    known = set(architecture.configuration.model_fields) | set(architecture.further)
    decided = {"layers", "width", "vocab_size", "context_length", "model_type", *DECIDED_BY_KIND}
    for name in sorted(fields):
        if name in decided:
            words = "it follows from the kind of model" if name in DECIDED_BY_KIND else "leave out the `model.`"
            raise UserError(f"model.{name} is not set there: {words}")
        if name not in known:
            raise UserError(f"the {kind} model has no field {name}; its fields: {', '.join(sorted(known - decided))}")
    values = architecture.values(Sizes(layers, width, vocab_size, context_length), fields)
    return parse_config(architecture.configuration, values, where=f"the {kind} model")


def read_model_file(path: Path) -> tuple[Kind, dict[str, Any]]:
    """Kind and fields of a YAML file that describes a model: `kind`, and any of layers, width and the kind's fields.

    Raises UserError where the file cannot be read, is not a mapping, or names no kind.
    """
    with os_errors("read", path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} is not a mapping of fields to values, such as kind: transformer")
    kind = values.pop("kind", "transformer")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path}: kind {kind!r} is not one of {', '.join(ARCHITECTURES)}")
    return kind, values
