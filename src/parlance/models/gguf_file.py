"""Files of the format GGUF: key-value pairs and tensors for llama.cpp, and its blocks of 8- and 4-bit integers.

    write_gguf(Path("model.gguf"), {"general.architecture": "llama", ...}, [GGUFTensor("output_norm.weight", ...), ...])

Whole numbers are written as uint32, others as float32; a list is an array of strings, of int32 or of float32. Matrices
are (outputs, inputs); blocks of 32 share a float16 scale. The bytes of the blocks are those of ggml's own quantiser
(`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`): the integers are computed with the scale before it is rounded.

Source: ggml's description of the format, version 3; ggml-quants.c.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.artifacts import write_file
from parlance.core.errors import UserError

TensorType = Literal["f32", "f16", "q8_0", "q4_0"]
Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]
Metadata = Mapping[str, Value]

TYPE_CODES: dict[TensorType, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
BLOCK = 32
"""Weights that share a scale."""
_BLOCK_BYTES: dict[TensorType, int] = {"q8_0": 34, "q4_0": 18}
_MOST: dict[TensorType, float] = {"f32": math.inf, "f16": 65504.0, "q8_0": 65504.0 * 127, "q4_0": 65504.0 * 8}
"""The largest number that each type, or its float16 scale, can hold."""
_ALIGNMENT = 32
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a file."""

    name: str
    type: TensorType
    values: Tensor
    """The numbers, of any type; they are converted when they are written."""

    @property
    def nbytes(self) -> int:
        """Bytes of the data in the file."""
        count = self.values.numel()
        if self.type in _BLOCK_BYTES:
            return count // BLOCK * _BLOCK_BYTES[self.type]
        return count * (2 if self.type == "f16" else 4)

    def data(self) -> NDArray[np.uint8]:
        """The bytes of the file. Raises UserError where its type cannot hold the numbers."""
        values: NDArray[np.float32] = self.values.detach().float().contiguous().numpy()
        largest = float(np.abs(values).max(initial=0.0))
        if largest > _MOST[self.type]:
            raise UserError(f"{self.name} holds {largest:.3g}, more than numbers of type {self.type} reach")
        if self.type == "q8_0":
            return q8_0_blocks(values)
        if self.type == "q4_0":
            return q4_0_blocks(values)
        return np.ascontiguousarray(values, dtype=np.float16 if self.type == "f16" else np.float32).view(np.uint8)


def q8_0_blocks(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(..., multiple of 32) to the blocks (N, 34): a float16 scale, 32 int8; scale = largest size / 127."""
    blocks = values.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    rounded = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled)  # halves away from zero
    # Adding a half to the number just below it gives one, in float32.
    rounded = np.where(np.abs(scaled) < np.float32(0.5), 0, rounded)
    return np.concatenate([scale.astype("<f2").view(np.uint8), rounded.astype(np.int8).view(np.uint8)], axis=1)


def q4_0_blocks(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(..., multiple of 32) to the blocks (N, 18): a float16 scale, 16 bytes of two integers each.

    The scale is what makes the largest value -8; the low half of byte i is integer i, the high half integer i + 16.
    """
    blocks = values.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-8)
    codes = np.minimum(np.trunc(blocks * _inverse(scale) + np.float32(8.5)), 15).astype(np.uint8)
    return np.concatenate([scale.astype("<f2").view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def _inverse(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where a block holds nothing else."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def write_gguf(path: Path, metadata: Metadata, tensors: Sequence[GGUFTensor]) -> None:
    """Write a file, whole or not at all; one tensor at a time is in memory."""
    header = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    header += [_string(key) + _pair(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        header += [_string(tensor.name), struct.pack("<I", tensor.values.ndim)]
        header += [struct.pack("<Q", size) for size in reversed(tensor.values.shape)]
        header += [struct.pack("<IQ", TYPE_CODES[tensor.type], offset)]
        offset += _padded(tensor.nbytes)
    start = b"".join(header)

    def write(file: BinaryIO) -> None:
        file.write(start.ljust(_padded(len(start)), b"\0"))
        for tensor in tensors:
            data = tensor.data()
            assert data.nbytes == tensor.nbytes
            file.write(np.ascontiguousarray(data).data)
            file.write(b"\0" * (_padded(data.nbytes) - data.nbytes))

    write_file(path, write)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode("utf-8", errors="replace")
    return struct.pack("<Q", len(data)) + data


def _pair(value: Value) -> bytes:
    """Type and value of a key."""
    kind = _kind(value)
    if kind == _STRING:
        return struct.pack("<I", kind) + _string(str(value))
    if kind != _ARRAY:
        return struct.pack({_BOOL: "<I?", _UINT32: "<II", _FLOAT32: "<If"}[kind], kind, value)
    assert isinstance(value, Sequence)
    inner = _STRING if not value else {_UINT32: _INT32}.get(_kind(value[0]), _kind(value[0]))
    start = struct.pack("<IIQ", kind, inner, len(value))
    if inner == _STRING:
        return start + b"".join(_string(str(item)) for item in value)
    return start + np.asarray(value, dtype="<i4" if inner == _INT32 else "<f4").tobytes()


def _kind(value: Value) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _UINT32
    if isinstance(value, float):
        return _FLOAT32
    return _STRING if isinstance(value, str) else _ARRAY
