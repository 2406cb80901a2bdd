"""Which parameter is updated by which rule, and how fast.

The peaks were tuned for steps of 2 048 to 4 096 tokens (docs/lab-notebook.md); fine-tuning scales them all down.
"""

from typing import Literal

from pydantic import Field
from torch import nn

from parlance.core.config import Config
from parlance.models.neural import NeuralLanguageModel
from parlance.training.optimizers import ParameterGroup


class LearningRates(Config):
    """Peak learning rates by kind of parameter."""

    optimizer: Literal["muon", "adamw"] = "muon"
    """Rule of the hidden matrices; everything else takes AdamW."""
    matrices: float = Field(default=0.03, ge=0)
    """Matrices of the blocks under Muon."""
    matrices_adamw: float = Field(default=0.002, ge=0)
    """Matrices of the blocks under AdamW."""
    embedding: float = Field(default=0.3, ge=0)
    """Token embedding drawn from N(0, 1), and learned position biases; an embedding tied to the head takes a tenth."""
    head: float = Field(default=0.008, ge=0)
    """Output head."""
    vectors: float = Field(default=0.02, ge=0)
    """Norm weights."""
    ngrams: float = Field(default=0.1, ge=0)
    """Tables of n-grams: the rate of Adagrad."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of Muon."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Cautious decay of the hidden matrices."""


def parameter_groups(model: nn.Module, rates: LearningRates, scale: float = 1.0) -> list[ParameterGroup]:
    """Groups for the optimizer, every rate times `scale`. Works for a Transformer alone or inside another module."""
    matrices, vectors, embedding, ngrams, biases, head = {}, {}, {}, {}, {}, {}
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            embedding[name] = parameter
        elif "embed_ngrams" in name:
            ngrams[name] = parameter
        elif "relative_bias" in name:
            biases[name] = parameter
        elif parameter.ndim < 2:
            vectors[name] = parameter
        elif "layers." in name:
            matrices[name] = parameter
        else:
            head[name] = parameter
    tied = any(isinstance(module, NeuralLanguageModel) and module.tied for module in model.modules())
    muon = rates.optimizer == "muon"
    return [
        ParameterGroup(
            "muon" if muon else "adamw",
            matrices,
            scale * (rates.matrices if muon else rates.matrices_adamw),
            betas=(rates.momentum, 0.95),
            weight_decay=rates.weight_decay,
        ),
        ParameterGroup("adamw", vectors, scale * rates.vectors),
        ParameterGroup("adamw", embedding, scale * rates.embedding * (0.1 if tied else 1.0), epsilon=1e-10),
        ParameterGroup("adamw", head, scale * rates.head),
        *([ParameterGroup("rows", ngrams, scale * rates.ngrams)] if ngrams else []),
        *([ParameterGroup("adamw", biases, scale * rates.embedding, epsilon=1e-10)] if biases else []),
    ]
