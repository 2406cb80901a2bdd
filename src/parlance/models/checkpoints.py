"""Checkpoint folders: `config.json`, safetensors, and whatever family they are of (`families/`).

A Transformer is written as the first published family that can say all of it, with the tensor names that
`transformers`, vLLM and llama.cpp expect; what none can say is written in a form of our own. N-gram models have a
format of their own (`ngram.py`) behind the same `config.json`. No pickle is read or written. An unknown field or tensor
that could change the result is an error that names it.

    save_model(Path("base"), model, end_of_text=4092, pad=4093)
    model = load_language_model(Path("base"))

Weights are mapped from the file where their type is the one asked for: opening a checkpoint copies nothing then, and
at most one tensor at a time otherwise.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from parlance.core.artifacts import read_json, write_json
from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.models.contract import LanguageModel
from parlance.models.families import FAMILIES
from parlance.models.families.family import ConfigReader, Entry, Family, Stacked, Values
from parlance.models.neural import NeuralLanguageModel
from parlance.models.quantised_tensors import check_quantization
from parlance.models.tensor_files import SHARD_BYTES, TensorFiles, write_tensors
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

NGRAM = "parlance-ngram"
EXACT = "parlance-exact"

GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Fields of `config.json` that `generation_config.json` repeats."""


# --- reading ---------------------------------------------------------------------------------------------------------


def read_values(folder: Path) -> Values:
    """`config.json` of a checkpoint folder. Raises UserError where there is none, or it is not an object."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} is not a checkpoint folder: it has no config.json")
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not the configuration of a model: it is a {type(values).__name__}, not an object")
    return values


def stored_names(folder: Path) -> set[str]:
    """Names of the tensors in the files of a folder."""
    with TensorFiles(folder) as files:
        return files.names


def read_config(folder: Path) -> tuple[Family, Any]:
    """Family and configuration of a checkpoint folder. Raises UserError for anything that cannot be honoured."""
    values = read_values(folder)
    kind = values.get("model_type")
    if values.get("quantization_config") is not None:
        check_quantization(values["quantization_config"], folder / "config.json")
    for family in FAMILIES:
        if family.name == kind:
            try:
                return family, family.read(ConfigReader(values, folder / "config.json", lambda: stored_names(folder)))
            except ValidationError as error:  # sizes out of range, parts that do not fit together
                first = error.errors()[0]
                field = "".join(f"{part}: " for part in first["loc"])
                reason = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
                raise UserError(f"{folder / 'config.json'}: {field}{reason}") from error
    if kind in (NGRAM, EXACT):
        raise UserError(f"{folder} is an n-gram or exact model, and this needs a network")
    known = ", ".join([family.name for family in FAMILIES] + [NGRAM, EXACT])
    raise UserError(f"{folder}: model_type {kind!r} is not one this version reads ({known})")


def read_parameters(
    folder: Path,
    family: Family,
    table: Iterable[Entry | Stacked],
    shapes: Mapping[str, torch.Size],
    dtype: torch.dtype,
    beside: Collection[str] = (),
) -> dict[str, Tensor]:
    """The parameters of `shapes` (our names) from the files of a folder, in `dtype`.

    `beside`: names that are in the file under our name, besides those of the table. Raises UserError naming the first
    tensor that is missing, unknown, of another shape, or holds what is no number.
    """
    with TensorFiles(folder) as files:
        entries = [*table, *(Entry(name, (name,)) for name in beside)]
        names = {name: _name_in_file(name, family, files.names) for entry in entries for name in _theirs(entry)}
        used = {name for name in names.values() if name is not None}
        unknown = sorted(name for name in files.names - used if not family.ignores(name))
        missing = sorted(
            name
            for entry in entries
            for name in _theirs(entry)
            if names[name] is None and not (isinstance(entry, Entry) and entry.optional)
        )
        if unknown or missing:
            problem = f"unknown tensor {unknown[0]}" if unknown else f"no tensor {missing[0]}"
            raise UserError(f"{folder}: {problem}; its config.json says {family.name}")

        def tensor(name: str) -> Tensor:
            return files.tensor(names[name] or name)

        out: dict[str, Tensor] = {}
        for entry in entries:
            if isinstance(entry, Stacked):
                out[entry.ours] = _stacked(folder, entry, tensor, shapes[entry.ours], dtype)
            elif not entry.optional:
                stored = tensor(entry.theirs)
                out |= _parts(folder, entry, stored, shapes, dtype)
        for entry in entries:
            if isinstance(entry, Entry) and entry.optional and names[entry.theirs] is not None:
                _check_repeated(folder, entry, _parts(folder, entry, tensor(entry.theirs), shapes, dtype), out)
        return out


def _check_repeated(folder: Path, entry: Entry, parts: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
    """Raises UserError where a tensor that should be another one once more is not."""
    if not all(torch.equal(part, out[name]) for name, part in parts.items()):
        raise UserError(
            f"{folder}: {entry.theirs} is not the tensor that config.json ties it to; "
            "if it is a matrix of its own, set tie_word_embeddings to false there"
        )


def _theirs(entry: Entry | Stacked) -> tuple[str, ...]:
    return entry.theirs if isinstance(entry, Stacked) else (entry.theirs,)


def _name_in_file(name: str, family: Family, stored: set[str]) -> str | None:
    """What a tensor is called in this file: dumps of a model without its head lack a prefix."""
    if name in stored:
        return name
    short = name.removeprefix(family.prefix)
    return short if short != name and short in stored else None


def _parts(
    folder: Path, entry: Entry, stored: Tensor, shapes: Mapping[str, torch.Size], dtype: torch.dtype
) -> dict[str, Tensor]:
    expected = [tuple(shapes[name]) for name in entry.ours]
    try:
        parts = list(entry.split(stored))
    except (RuntimeError, IndexError):
        parts = []
    if [tuple(part.shape) for part in parts] != expected:
        wanted = " and ".join(str(shape) for shape in dict.fromkeys(expected))
        raise (
            UserError(f"{folder}: {entry.theirs} has shape {tuple(stored.shape)}, not {wanted} in all its parts")
            if (len(expected) > 1)
            else UserError(f"{folder}: {entry.theirs} has shape {tuple(stored.shape)}, not {expected[0]}")
        )
    return {name: part.to(dtype).contiguous() for name, part in zip(entry.ours, parts, strict=True)}


def _stacked(
    folder: Path, entry: Stacked, tensor: Callable[[str], Tensor], shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    out: Tensor | None = None
    for number, name in enumerate(entry.theirs):
        stored = tensor(name)
        if stored.shape != shape[1:]:
            raise UserError(f"{folder}: {name} has shape {tuple(stored.shape)}, not {tuple(shape[1:])}")
        if out is None:  # not before: a wrong size could be anything
            out = torch.empty(shape, dtype=dtype)
        out[number] = stored
    assert out is not None
    return out


def assign(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Make `tensors` the parameters of a model, by name; nothing is copied."""
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, nn.Parameter(tensor))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Shape of every parameter."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> NeuralLanguageModel:
    """Open the checkpoint folder of a network, its parameters in `dtype`."""
    family, config = read_config(folder)
    with torch.device("meta"):
        model = build(config)
    assign(model, read_parameters(folder, family, table_of(folder, family, config), shapes_of(model), dtype))
    return model


def table_of(folder: Path, family: Family, config: Any) -> Iterable[Entry | Stacked]:
    """The table that the files of a folder follow: the other one where they have a tensor that it alone names."""
    table = list(family.table(config))
    if family.other_table is None:
        return table
    other = list(family.other_table(config))
    known = {name for entry in table for name in _theirs(entry)}
    telling = {name for entry in other for name in _theirs(entry)} - known
    with TensorFiles(folder) as files:
        follows = any(_name_in_file(name, family, files.names) is not None for name in telling)
    return other if follows else table


def load_transformer(folder: Path) -> Transformer:
    """Open a checkpoint folder that must be a decoder. Raises UserError for any other model."""
    if read_values(folder).get("model_type") == NGRAM:
        raise UserError(f"{folder} is an n-gram model; name the checkpoint folder of a Transformer")
    model = load_model(folder)
    if not isinstance(model, Transformer) or not model.config.causal:
        raise UserError(f"{folder} is not a decoder: name the checkpoint folder of a decoder-only Transformer")
    return model


def load_language_model(folder: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Open any checkpoint folder Parlance knows. `dtype` is that of a network's parameters."""
    kind = read_values(folder).get("model_type")
    if kind == NGRAM:
        from parlance.models.ngram import NGramModel  # its loops are compiled by numba, which takes time to import

        return NGramModel.load(folder)
    if kind == EXACT:
        from parlance.models.exact import ConditionalFrequencies

        return ConditionalFrequencies.load(folder)
    return load_model(folder, dtype)


# --- writing ---------------------------------------------------------------------------------------------------------


def family_for(config: Any, name: str | None = None) -> Family:
    """The first family that can say all of a configuration; `name`: that one, or UserError where it cannot."""
    if name is None:
        return next(family for family in FAMILIES if family.expresses(config))
    for family in FAMILIES:
        if family.name == name:
            if not family.expresses(config):
                ways = [other.name for other in FAMILIES if other.expresses(config)]
                parts = ", ".join(family.unsaid(config))
                if not parts and not isinstance(config, TransformerConfig):
                    parts = f"it is of the kind {ways[-1].removeprefix('parlance-')}"
                raise UserError(
                    f"this model cannot be written as {name}: it has parts that {name} has not "
                    f"({parts + '; ' if parts else ''}it can be written as {', '.join(ways)})"
                )
            return family
    raise UserError(f"{name!r} is not a family this version writes ({', '.join(family.name for family in FAMILIES)})")


def checkpoint_values(
    config: Any,
    *,
    end_of_text: int,
    pad: int,
    end_of_turn: int | None = None,
    mask: int | None = None,
    family: Family | None = None,
    dtype: torch.dtype = torch.float32,
) -> Values:
    """`config.json` of a model: the fields of its family, and the token ids that programs need.

    `mask` is that of an encoder; None: what the tokenizer beside it calls [MASK], if anything.
    """
    family = family or family_for(config)
    return {
        "architectures": [family.architectures[0]],
        "model_type": family.name,
        **family.write(config),
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text if end_of_turn is None else [end_of_turn, end_of_text],
        "pad_token_id": pad,
        **({} if mask is None else {"mask_token_id": mask}),
    }


def checkpoint_tensors(
    table: Iterable[Entry | Stacked], parameters: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Parameters (our names) under the names of a family, on the CPU."""

    def ready(name: str) -> Tensor:
        return parameters[name].detach().to("cpu", dtype)

    out: dict[str, Tensor] = {}
    for entry in table:
        if isinstance(entry, Stacked):
            out |= {name: part.contiguous() for name, part in zip(entry.theirs, ready(entry.ours), strict=True)}
        elif not entry.optional:
            out[entry.theirs] = entry.join([ready(name) for name in entry.ours]).contiguous()
    return out


def write_checkpoint(
    folder: Path, values: Values, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the tensors, then `config.json` (a folder without it is not a checkpoint), each file atomically."""
    write_tensors(folder, tensors, shard_bytes)
    if "SequenceClassification" not in values["architectures"][0]:
        ids = {key: values[key] for key in GENERATION_IDS if key in values}
        write_json(folder / "generation_config.json", ids)
    write_json(folder / "config.json", values)


def save_model(
    folder: Path,
    model: NeuralLanguageModel,
    *,
    end_of_text: int,
    pad: int,
    end_of_turn: int | None = None,
    mask: int | None = None,
) -> None:
    """Write a checkpoint folder; a decoder's opens with `transformers.AutoModelForCausalLM`. See `checkpoint_values`
    for the token ids."""
    config = model.config
    family = family_for(config)
    values = checkpoint_values(
        config, end_of_text=end_of_text, pad=pad, end_of_turn=end_of_turn, mask=mask, family=family
    )
    write_checkpoint(folder, values, checkpoint_tensors(family.table(config), dict(model.named_parameters())))
