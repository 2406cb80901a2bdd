"""Rotary positions in a `config.json`: `rope_theta` and `rope_scaling` of old files, `rope_parameters` of new ones.

    values = read_rotary(reader, context_length=2048)       # {"rope_theta": ..., "rope_scaling": RotaryScaling | None}
    fields = write_rotary(config)                           # both spellings

What the fields mean is `transformers`' reading of them, in `modeling_rope_utils`.
"""

import math
from typing import Any

from parlance.models.families.family import ConfigReader, Values
from parlance.models.transformer_config import RotaryScaling, TransformerConfig

_KINDS = ("linear", "dynamic", "yarn", "llama3")


def read_rotary(reader: ConfigReader, context_length: int, *, theta: float = 10_000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of TransformerConfig. `theta`: the family's base where the file names none."""
    old, new = (_spelled(reader.nested(name)) for name in ("rope_scaling", "rope_parameters"))
    shared = [name for name in old.values if name in new.values and old.values[name] != new.values[name]]
    if shared:
        raise reader.error(f"rope_scaling and rope_parameters have different values of {shared[0]}; remove one of them")
    fields = ConfigReader({**new.values, **old.values}, reader.where)
    outer = reader.number("rope_theta", default=theta)
    base = fields.number("rope_theta", default=outer)
    if reader.has("rope_theta") and base != outer:
        raise reader.error(
            f"rope_theta is {outer}, and within rope_parameters or rope_scaling {base}; remove one of them"
        )
    kind = fields.value("rope_type", default="default")
    fields.only("partial_rotary_factor", 1.0)
    if kind != "default" and kind not in _KINDS:
        raise reader.error(f"rope_type {kind!r} is not supported (only default, {', '.join(_KINDS)})")
    scaling = None if kind == "default" else _read_scaling(fields, kind, context_length)
    fields.finish()
    return {"rope_theta": base, "rope_scaling": scaling}


def _spelled(fields: ConfigReader) -> ConfigReader:
    """Old files say `type` where new ones say `rope_type`."""
    values = dict(fields.values)
    if "type" in values:
        values.setdefault("rope_type", values.pop("type"))
    values.pop("type", None)
    return ConfigReader(values, fields.where)


def _read_scaling(fields: ConfigReader, kind: Any, context_length: int) -> RotaryScaling:
    if kind == "dynamic":
        # The base grows from the length the file states, whatever else it says.
        fields.only("original_max_position_embeddings", context_length)
    if kind in ("linear", "dynamic"):
        fields.passed_over("original_max_position_embeddings")
        return RotaryScaling(kind=kind, factor=fields.number("factor"), original_context_length=context_length)
    original = fields.integer("original_max_position_embeddings", default=context_length)
    if original < 1:
        raise fields.error(f"original_max_position_embeddings is {original}, not a length")
    if kind == "llama3":
        return RotaryScaling(
            kind=kind,
            factor=fields.number("factor"),
            original_context_length=original,
            low_frequency_factor=fields.number("low_freq_factor"),
            high_frequency_factor=fields.number("high_freq_factor"),
        )
    factor = fields.number("factor", default=context_length / original)
    fields.only("truncate", True)
    return RotaryScaling(
        kind=kind,
        factor=factor,
        original_context_length=original,
        beta_fast=fields.number("beta_fast", default=32.0),
        beta_slow=fields.number("beta_slow", default=1.0),
        attention_factor=_attention_factor(fields, factor),
    )


def _attention_factor(fields: ConfigReader, factor: float) -> float | None:
    """YaRN's scale of cos and sin, as it is or as the ratio of DeepSeek's two fields; None: by the usual formula."""
    one, all_dimensions = fields.number("mscale", default=0.0), fields.number("mscale_all_dim", default=0.0)
    if fields.has("attention_factor"):
        return fields.number("attention_factor")
    fields.passed_over("attention_factor")
    if not one or not all_dimensions or factor <= 1:
        return None
    return (0.1 * one * math.log(factor) + 1) / (0.1 * all_dimensions * math.log(factor) + 1)


def write_rotary(config: TransformerConfig) -> Values:
    """The fields that `read_rotary` reads, in both spellings."""
    scaling = config.rope_scaling
    if scaling is None:
        return {
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    values: Values = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = scaling.original_context_length
    if scaling.kind == "llama3":
        values |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor}
    elif scaling.kind == "yarn":
        values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        if scaling.attention_factor is not None:
            values["attention_factor"] = scaling.attention_factor
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": values,
        "rope_parameters": values | {"rope_theta": config.rope_theta},
    }
