"""The tensors of a checkpoint folder: one safetensors file, or several with an index; read mapped, written in a stream.

    with TensorFiles(Path("base")) as files:
        files.names; files.tensor("model.norm.weight")          # a view of the mapped file: nothing is copied
    write_tensors(Path("base"), {"model.norm.weight": ...}, shard_bytes=5 * 10**9)

Nothing else is read: a `pytorch_model.bin` is a pickle, which runs whatever its maker put into it, and is refused.
The `weight` of a module that is stored as integers (`quantised_tensors.py`) is there like any other, in float32.
The format: an 8-byte little-endian length, a JSON header of names, types, shapes and offsets, then the data.
"""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parlance.core.artifacts import read_json, write_file, write_json
from parlance.core.errors import UserError
from parlance.models.quantised_tensors import PARTS, QuantisedTensor, unpacked

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Larger checkpoints are written as several files of at most this size."""

_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_WHOLE = {torch.int32: "I32", torch.int64: "I64"}
"""Of packed codes and their shapes."""
PICKLE_WARNING = (
    "which can run any program when it is opened: on a machine without secrets, load it with transformers and "
    "save_pretrained it, which writes safetensors"
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
"""How the first BERT files call what all others call weight and bias."""


class TensorFiles:
    """The tensors of a folder, by name. A context manager; the tensors outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._homes: dict[str, tuple[Any, str]] = {}  # our name of it: open file, its name there
        try:
            for path in _weight_files(folder):
                self._open(path)
            self._check_index()
            self._modules = {self._merged(name) for name in self._homes if name.endswith("." + PARTS[0])}
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _open(self, path: Path) -> None:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            for stored in file.keys():  # noqa: SIM118 (not a dict)
                name = stored
                for old, new in _OLD_NAMES:
                    name = name.removesuffix(old) + new if name.endswith(old) else name
                if name in self._homes:
                    raise UserError(f"{path}: tensor {name} is in another file of the folder too")
                self._homes[name] = (file, stored)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def _check_index(self) -> None:
        """Raises UserError where the index names a tensor that no file holds."""
        if (self.folder / WEIGHTS).is_file():
            return
        missing = sorted(
            read_json(self.folder / INDEX)["weight_map"].keys() - {name for _, name in self._homes.values()}
        )
        if missing:
            raise UserError(f"{self.folder / INDEX} names the tensor {missing[0]}, which no file of the folder holds")

    def _merged(self, packed: str) -> str:
        """The module of a packed tensor. Raises UserError where the file lacks what belongs to it."""
        module = packed.removesuffix("." + PARTS[0])
        for part in PARTS:
            if f"{module}.{part}" not in self._homes:
                raise UserError(f"{self.folder}: there is {packed} without {module}.{part}")
        return module

    @property
    def names(self) -> set[str]:
        """All tensors; of a module stored as integers, its `weight`."""
        hidden = {f"{module}.{part}" for module in self._modules for part in PARTS}
        return (set(self._homes) - hidden) | {f"{module}.weight" for module in self._modules}

    def kind(self, name: str) -> tuple[str, int]:
        """Type of a tensor, as the format writes it (F32), and its number of entries; nothing is read."""
        module = name.removesuffix(".weight")
        if module in self._modules:
            return "F32", math.prod(self._stored(f"{module}.{PARTS[2]}").tolist())
        file, stored = self._homes[name]
        part = file.get_slice(stored)
        return str(part.get_dtype()), math.prod(part.get_shape())

    def quantised(self, name: str) -> QuantisedTensor | None:
        """The integers behind a `weight`; None where it is stored as numbers. Raises UserError for damage."""
        module = name.removesuffix(".weight")
        if module not in self._modules:
            return None
        words, scales, shape = (f"{module}.{part}" for part in PARTS)
        where = f"{self.folder}: {name}"
        return unpacked(where, self._stored(words), self._finite(scales), self._stored(shape))

    def tensor(self, name: str) -> Tensor:
        """One tensor, mapped. Raises UserError where it is not of floating point, or holds what is no number."""
        matrix = self.quantised(name)
        return self._finite(name) if matrix is None else matrix.weight()

    def _stored(self, name: str) -> Tensor:
        """One tensor of the files as it is, mapped."""
        file, stored = self._homes[name]
        try:
            tensor: Tensor = file.get_tensor(stored)
        except SafetensorError as error:
            raise UserError(f"{self.folder / WEIGHTS} is damaged: {error}") from error
        return tensor

    def _finite(self, name: str) -> Tensor:
        """One tensor of the files, which must hold numbers."""
        tensor = self._stored(name)
        if tensor.dtype not in _TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{self.folder}: tensor {name} is of type {kind}, of a quantisation that is not read here")
        # A sum of numbers is one, unless it overflows; one pass over memory, and no copy unless it looks wrong.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise UserError(f"{self.folder}: tensor {name} holds values that are not finite numbers (NaN or infinity)")
        return tensor


def weight_bytes_of(folder: Path) -> int:
    """Bytes of a folder's safetensors files; 0 where it has none (an n-gram model)."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors") if path.is_file())


def stored_type(folder: Path) -> torch.dtype:
    """The type of most numbers in a folder's files."""
    with TensorFiles(folder) as files:
        sizes = dict.fromkeys(_TYPES, 0)
        for name in files.names:
            kind, size = files.kind(name)
            for dtype, code in _TYPES.items():
                sizes[dtype] += size if kind == code else 0
    return max(sizes, key=lambda dtype: sizes[dtype])


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder. Raises UserError where there are none, or one of the index is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS).is_symlink():
        raise UserError(f"{folder / WEIGHTS} is a link to a file that is not there; copy the file itself")
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
            raise UserError(f"{folder / INDEX} has no weight_map of tensor names to file names")
        paths = [folder / name for name in sorted(set(files.values()))]
        for name, path in zip(sorted(set(files.values())), paths, strict=True):
            if name != path.name or name in (".", ".."):
                raise UserError(f"{folder / INDEX} names {name[:100]}, which is not a file of the folder")
            if len(name) > 255 or not path.is_file():
                raise UserError(f"{folder} holds no {name[:100]}, which its index names; copy the folder again")
        return paths
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(f"{folder} holds its weights as {pickles[0]}, a pickle, {PICKLE_WARNING}")
    raise UserError(f"{folder} holds no {WEIGHTS}; is it a finished checkpoint?")


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as `model.safetensors`, or as several files with an index where they are more than `shard_bytes`.

    Each file appears whole or not at all. Tensors are fp32, fp16, bf16, int32 or int64, on any device; one at a time is
    copied.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _write(folder / WEIGHTS, shards[0])
        (folder / INDEX).unlink(missing_ok=True)
        return
    homes: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / file, shard)
        homes |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": homes})
    (folder / WEIGHTS).unlink(missing_ok=True)


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.nbytes
        kind = (_TYPES | _WHOLE)[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # so that what is mapped later begins on a cache line

    def write(file: BinaryIO) -> None:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            data = tensor.detach().cpu().contiguous()
            if data.numel():
                file.write(data.flatten().view(torch.uint8).numpy().data)

    write_file(path, write)
