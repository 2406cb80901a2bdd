"""Typed, frozen configuration, its command-line overrides, and durations.

class TrainingConfig(Config):
    learning_rate: float = 3e-4
    \"\"\"Peak learning rate.\"\"\"

override(TrainingConfig(), ["learning_rate=1e-3"])
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from parlance.core.errors import UserError

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of every configuration: immutable, no unknown fields, finite numbers; field docstrings are descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


def parse_config(kind: type[ConfigT], values: Any, *, where: str) -> ConfigT:
    """Validate `values` as a `kind`. Raises UserError naming `where` and the first wrong field."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        reason = first["msg"].removeprefix("Value error, ")
        reason = reason[0].lower() + reason[1:]
        raise UserError(f"{where}: {field}: {reason}" if field else f"{where}: {reason}") from error


def override(config: ConfigT, assignments: Sequence[str]) -> ConfigT:
    """Return `config` with `key=value` assignments applied; keys are dotted paths, values are YAML scalars.

    Raises UserError for an unknown key or a value of the wrong type.
    """
    values: dict[str, Any] = config.model_dump()
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key:
            raise UserError(f"--set {assignment}: write it as key=value")
        *parents, leaf = key.split(".")
        node: Any = values
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        free = len(parents) == 1 and isinstance(getattr(config, parents[0], None), dict)
        if not isinstance(node, dict) or (leaf not in node and not free):
            known = ", ".join(sorted(node)) if isinstance(node, dict) else ", ".join(sorted(values))
            raise UserError(f"--set {assignment}: there is no field {key}; fields here: {known}")
        node[leaf] = _scalar(text)
    return parse_config(type(config), values, where="--set")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the fields in which two dumped configurations differ."""
    names: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            names += [f"{name}.{inner}" for inner in differences(before, after)]
        elif before != after:
            names.append(name)
    return names


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The fields of `differences` with what they were and what they are: "batch_size 8 -> 16"."""
    return [f"{name} {_shown(old, name)} -> {_shown(new, name)}" for name in differences(old, new)]


def _shown(values: dict[str, Any], name: str) -> str:
    """The value at a dotted name, in few words."""
    node: Any = values
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    text = "none" if node is None else str(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _scalar(text: str) -> Any:
    """A YAML value, with 1e-3 read as a number (YAML 1.1 wants 1.0e-3)."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set: {text!r} is not a YAML value; write a number, a word, true or false") from error


_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds in "90", "90s", "8m", "1.5h" or "1h30m". Raises UserError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text.strip().lower():
        raise UserError(f"{text!r} is not a duration; write it like 90s, 8m or 1.5h")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UserError(f"{text!r} is not a duration above zero")
    return seconds
