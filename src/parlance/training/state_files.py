"""The files of one resume state: boxes of tensors in safetensors files, and `state.json` that says what is where.

    write_description(folder, 120, {"state.safetensors": written(checksum, pieces)}, info)
    state = StateFiles(folder); state.verify(state.files); state.read()

One process writes whole tensors into one file. Of several, each writes a file with boxes of tensors; whoever reads puts
together the boxes that it wants from whatever boxes there are, so a state can be read by any number of processes.
`state.json` holds step, the files with their SHA-256, of each tensor its shape and boxes (file, offsets, lengths), and
the SHA-256 of all that it says itself.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from parlance.core.artifacts import os_errors, read_json, sha256, write_json
from parlance.core.errors import UserError
from parlance.training.pieces import Piece

DESCRIPTION = "state.json"
CHECKSUM = "sha256"
"""Key of `state.json`: the checksum of the rest of it."""
DAMAGES = (UserError, KeyError, TypeError, ValueError, AttributeError)
"""What reading a damaged state raises."""


Written = dict[str, Any]
"""What `state.json` says of a file: {"sha256": ..., "pieces": {tensor: [shape, offsets, lengths]}}."""


def written(checksum: str, pieces: Mapping[str, Piece]) -> Written:
    """What is said of a file with this SHA-256 and these boxes of tensors."""
    boxes = {name: [piece.shape, piece.offsets, piece.lengths] for name, piece in pieces.items()}
    return {"sha256": checksum, "pieces": boxes}


def write_description(folder: Path, step: int, files: Mapping[str, Written], info: Mapping[str, Any]) -> None:
    """Write `state.json`, which makes the files a state."""
    said = {"step": step, "files": dict(files), "info": dict(info)}
    write_json(folder / DESCRIPTION, {**said, CHECKSUM: _checksum(said)})


def _checksum(said: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values: of the text without spaces, keys in the order that they have in the file."""
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


class StateFiles:
    """A state on disk."""

    def __init__(self, folder: Path) -> None:
        """Raises one of `DAMAGES` where `state.json` is damaged."""
        self.folder = folder
        description = read_json(folder / DESCRIPTION)
        if not isinstance(description, dict) or description.pop(CHECKSUM, None) != _checksum(description):
            raise UserError(f"{folder / DESCRIPTION} does not match its checksum")
        self.step: int = description["step"]
        self.info: dict[str, Any] = description["info"]
        self.files: dict[str, str] = {name: str(written["sha256"]) for name, written in description["files"].items()}
        """SHA-256 by name."""
        self.pieces: dict[str, list[tuple[str, Piece]]] = {}
        """Of each tensor, the files with boxes of it."""
        for file, written in description["files"].items():
            for name, parts in written["pieces"].items():
                shape, offsets, lengths = (tuple(map(int, numbers)) for numbers in parts)
                self.pieces.setdefault(name, []).append((file, Piece(shape, offsets, lengths)))

    def verify(self, files: Iterable[str]) -> None:
        """Raises UserError where one of the files is not what was written."""
        for name in files:
            if sha256(self.folder / name) != self.files[name]:
                raise UserError(f"{self.folder / name} does not match its checksum")

    def read(self, wanted: Mapping[str, Piece] | None = None) -> dict[str, Tensor]:
        """Boxes of tensors by name, on the CPU; None: every tensor, whole.

        Raises UserError where the state does not have all of a box.
        """
        if wanted is None:
            wanted = {name: Piece.whole(boxes[0][1].shape) for name, boxes in self.pieces.items()}
        tensors = {}
        with os_errors("read", self.folder):
            opened = {file: safe_open(self.folder / file, framework="pt") for file in self.files}
            for name, piece in wanted.items():
                tensors[name] = self._box(name, piece, opened)
        return tensors

    def _box(self, name: str, wanted: Piece, opened: Mapping[str, Any]) -> Tensor:
        found: Tensor | None = None
        missing = wanted.size
        for file, stored in self.pieces.get(name, []):
            if stored == wanted:
                return opened[file].get_tensor(name)  # type: ignore[no-any-return]
            common = stored.overlap(wanted) if stored.shape == wanted.shape else None
            if common is not None:
                part = opened[file].get_slice(name)[common.within(stored)]
                found = part.new_empty(wanted.lengths) if found is None else found
                found[common.within(wanted)] = part
                missing -= common.size
        if missing:
            raise UserError(f"the state in {self.folder} does not have all of {name}: it is that of another model")
        return torch.empty(wanted.lengths) if found is None else found
