"""Resume state of a training stage: written whole or not at all, checksummed, newest intact one wins.

A state is a dictionary of named tensors plus a small JSON-able dictionary. The newest states (two, unless told
otherwise) are kept, so that a damaged newest one costs a few seconds of work, not the run. What is damaged is set aside
(`state_folders.py`), not deleted; what cannot be read at all ends the attempt, for it may be whole.

    states = TrainingStates(Path("runs/demo/base/training"))
    states.save(120, {"model.norm.weight": tensor}, {"tokens": 491_520})
    step, tensors, info = states.latest()
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from parlance.core.artifacts import atomic_directory, ensure_directory, write_file
from parlance.training import state_folders
from parlance.training.pieces import Piece
from parlance.training.state_files import DAMAGES, StateFiles, write_description, written

FILE = "state.safetensors"
KEPT = 2
"""States that stay by default."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the safetensors format."""


class TrainingStates:
    """The states in one folder, named `step-00000120`."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self._kept = folder, kept

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Store a state and drop all but the newest `kept`. Raises UserError (full disk, ...)."""
        ensure_directory(self.folder)
        state_folders.begin(self.folder)
        with atomic_directory(state_folders.state_folder(self.folder, step)) as folder:
            checksum = write_tensors(folder / FILE, tensors)
            pieces = {name: Piece.whole(tensor.shape) for name, tensor in tensors.items()}
            write_description(folder, step, {FILE: written(checksum, pieces)}, info)
        state_folders.keep_newest(self.folder, self._kept)

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact state as (step, tensors, info), or None. Damaged ones are named and set aside.

        Raises UserError where the disk does not let a state be read: it is not known to be damaged.
        """
        state_folders.put_back(self.folder)
        for folder in reversed(state_folders.states_in(self.folder)):
            try:
                state = StateFiles(folder)
                state.verify(state.files)
                return state.step, state.read(), state.info
            except DAMAGES as error:
                if state_folders.unreadable(state_folders.errno_of(error)):
                    raise
                state_folders.set_aside(folder, str(error))
        return None

    def clear(self) -> None:
        """Delete the folder, once the stage's result is in place or when a stage starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Delete the states and nothing else: a stage may keep its plan and its pilots' log in the same folder."""
        state_folders.discard(self.folder)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a safetensors file, whole or not at all; returns the SHA-256 of its bytes.

    The library's own writer makes a second copy of everything in memory, and the file would be read again for its
    checksum: here both are made from the tensors' memory. Raises UserError (full disk, ...).
    """
    digest = hashlib.sha256()

    def write(file: BinaryIO) -> None:
        for piece in _pieces(tensors):
            file.write(piece)
            digest.update(piece)

    write_file(path, write)
    return digest.hexdigest()


def _pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: the header's length and the header, padded to 8 bytes, then the tensors."""
    header, end = {}, 0
    # Large elements first keeps every tensor aligned, as the library does it.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        values = tensors[name].detach().cpu().contiguous().reshape(-1)
        if values.numel():
            yield values.view(torch.uint8).numpy().data
