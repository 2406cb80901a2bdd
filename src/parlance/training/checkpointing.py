"""Resume state of a training stage: written whole or not at all, checksummed, newest intact one wins.

A state is a dictionary of named tensors plus a small JSON-able dictionary. The two newest states are kept, so that a
damaged newest one costs a few seconds of work, not the run.

    states = TrainingStates(Path("runs/demo/base/training"))
    states.save(120, {"model.norm.weight": tensor}, {"tokens": 491_520})
    step, tensors, info = states.latest()
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from parlance.core.artifacts import (
    PARTIAL,
    atomic_directory,
    ensure_directory,
    read_json,
    sha256,
    write_bytes,
    write_json,
)
from parlance.core.errors import UserError
from parlance.core.progress import say

KEPT = 2


class TrainingStates:
    """The states in one folder, named `step-00000120`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Store a state and drop all but the newest two. Raises UserError (full disk, ...)."""
        ensure_directory(self.folder)
        for leftover in self.folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        with atomic_directory(self.folder / f"step-{step:08d}") as folder:
            content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
            write_bytes(folder / "state.safetensors", content)
            write_json(
                folder / "state.json", {"step": step, "sha256": sha256(folder / "state.safetensors"), "info": info}
            )
        for old in self._folders()[:-KEPT]:
            shutil.rmtree(old)

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact state as (step, tensors, info), or None. Damaged ones are named and passed over."""
        for folder in reversed(self._folders()):
            try:
                state = read_json(folder / "state.json")
                if sha256(folder / "state.safetensors") != state["sha256"]:
                    raise UserError(f"{folder / 'state.safetensors'} does not match its checksum")
                return state["step"], load_file(folder / "state.safetensors"), state["info"]
            except (UserError, KeyError, TypeError) as error:
                say(f"passing over a damaged training state: {error}")
        return None

    def clear(self) -> None:
        """Delete the folder, once the stage's result is in place or when a stage starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Delete the states and nothing else: a stage may keep its plan and its pilots' log in the same folder."""
        for path in self.folder.glob("step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "" and path.is_dir())
