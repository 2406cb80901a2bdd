"""Named settings of pre-training: `standard`, and `speedrun` for the lowest loss in seconds or minutes.

    config = preset("speedrun", "transformer")

`standard` is a model that a family of the ecosystem knows, with rates for runs of minutes. `speedrun` takes every part
that was measured to help a small model in a short run (docs/lab-notebook.md); no published family has them, so such a
model is saved in Parlance's own form and its export is refused. A preset is a table of values of `PretrainingConfig`;
sizes are not in it.
"""

from typing import Any, Literal, get_args

from parlance.core.config import parse_config
from parlance.core.errors import UserError
from parlance.training.architectures import Kind
from parlance.training.pretraining_config import PretrainingConfig, pretraining_config

PresetName = Literal["standard", "speedrun"]

SPEEDRUN: dict[Kind, dict[str, Any]] = {
    "transformer": {
        "model": {
            "norm_weight": False,
            "embedding_norm": True,
            "rope_theta": 1000.0,
            "sliding_window": 64,
            "activation": "relu2",
            "gated_mlp": False,
            "ngram_tables": ((2, 16384), (3, 16384), (4, 32768)),
            "dropout": 0.1,
            "ngram_dropout": 0.15,
        },
        "context_length": 512,
        "training_length": 128,
        "batch_size": 24,
        "pilot_share": 0.0,
        "compile": False,
        "validations": 0,
        "training": {"warmup": 0.01, "decay": 0.7},
        "rates": {"matrices": 0.03, "weight_decay": 0.1},
    },
    "feedforward": {
        "model": {"context": 4, "embedding_width": 32, "ngram_tables": ((2, 16384), (3, 16384), (4, 32768))},
        "context_length": 512,
        "training_length": 128,
        "batch_size": 24,
        "pilot_share": 0.0,
        "compile": False,
        "validations": 0,
        "training": {"warmup": 0.03, "decay": 0.7},
        "rates": {"matrices": 0.01, "head": 0.03, "ngrams": 0.2},
    },
}
"""Values that differ from those of `standard`, by kind of model; objects within them are merged."""


def preset(name: str, kind: Kind) -> PretrainingConfig:
    """The settings called `name` for a kind of model. Raises UserError for a kind that the preset does not have."""
    standard = pretraining_config(kind)
    if name == "standard":
        return standard
    if name not in get_args(PresetName):
        raise UserError(f"there is no preset {name}; choose {' or '.join(get_args(PresetName))}")
    if kind not in SPEEDRUN:
        raise UserError(f"the preset {name} is there for {', '.join(SPEEDRUN)} alone, not for {kind}")
    return parse_config(PretrainingConfig, _merged(standard.model_dump(), SPEEDRUN[kind]), where=f"the preset {name}")


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`base` with `values` put over it, object by object."""
    nested = {
        name: _merged(base[name], value)
        for name, value in values.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return base | values | nested
