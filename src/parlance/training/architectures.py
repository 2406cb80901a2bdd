"""Kinds of model that `pretrain` can make: their configurations, the sizes to choose from, and how fast each learns.

    config = configure("recurrent", layers=2, width=256, vocab_size=4096, context_length=256, fields={"cell": "gru"})
    model = build(config)

A kind is one entry of `ARCHITECTURES`; what a model is made of stands in `models/`, how it is trained in `tasks.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from parlance.core.artifacts import os_errors
from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError
from parlance.models.convolutional import ConvolutionalConfig
from parlance.models.feedforward import FeedForwardConfig
from parlance.models.recurrent import RecurrentConfig
from parlance.models.transformer_config import TransformerConfig
from parlance.training.rates import LearningRates

Kind = Literal["transformer", "recurrent", "convolutional", "feedforward", "encoder"]


@dataclass(frozen=True)
class Architecture:
    """A kind of model."""

    configuration: type[Config]
    """What it is built from."""
    ladder: tuple[tuple[int, int], ...]
    """Sizes to choose from, smallest first: (layers, width)."""
    rates: LearningRates
    """Peak learning rates that suit it."""
    derived: Callable[[int, Mapping[str, Any]], dict[str, Any]]
    """Fields that follow from the width, and from the fields that the user set."""
    task: Literal["next-token", "masked", "denoising"] = "next-token"
    """What it is trained for."""


def _transformer(width: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    head_width = fields.get("head_width", 64)
    if "heads" in fields:
        return {"head_width": width // fields["heads"]}
    if not isinstance(head_width, int) or head_width < 1 or width % head_width:
        raise UserError(f"width {width} is not a multiple of {head_width}, the width of one head")
    return {"heads": width // head_width}


def _encoder(width: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """BERT's parts, so that other programs open the result."""
    return _transformer(width, fields) | {
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


def _nothing(_width: int, _fields: Mapping[str, Any]) -> dict[str, Any]:
    return {}


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
_WIDE_LADDER = ((1, 64), (1, 128), (1, 192), (2, 256), (2, 384), (2, 512), (3, 768), (3, 1024), (4, 1536))

ARCHITECTURES: dict[Kind, Architecture] = {
    "transformer": Architecture(TransformerConfig, _TRANSFORMER_LADDER, LearningRates(), _transformer),
    "recurrent": Architecture(RecurrentConfig, _WIDE_LADDER, LearningRates(), _nothing),
    "convolutional": Architecture(ConvolutionalConfig, _TRANSFORMER_LADDER, LearningRates(), _nothing),
    "feedforward": Architecture(FeedForwardConfig, _WIDE_LADDER, LearningRates(), _nothing),
    "encoder": Architecture(
        TransformerConfig, _TRANSFORMER_LADDER, LearningRates(optimizer="adamw"), _encoder, "masked"
    ),
}


def configure(
    kind: Kind, *, layers: int, width: int, vocab_size: int, context_length: int, fields: Mapping[str, Any]
) -> Any:
    """The configuration of a model of this kind and size. `fields` are the user's, of the model's configuration.

    Raises UserError naming the first field that is unknown or does not fit.
    """
    architecture = ARCHITECTURES[kind]
    clash = sorted({"layers", "width", "vocab_size", "context_length", "model_type"} & fields.keys())
    if clash:
        raise UserError(f"model.{clash[0]} is not set there: layers, width and context_length stand by themselves")
    # An encoder's vocabulary has one more row, of the mask.
    rows = vocab_size + (1 if architecture.task == "masked" else 0)
    sizes = {"layers": layers, "width": width, "vocab_size": rows, "context_length": context_length}
    values = sizes | architecture.derived(width, fields) | dict(fields)
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
