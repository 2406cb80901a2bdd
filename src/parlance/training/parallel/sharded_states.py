"""Resume states that many processes write together: each its boxes of the tensors, whole or not at all.

    states = ShardedStates(folder, world, table, model)    # the interface of `TrainingStates`, on all processes alike
    states.save(120, tensors, info)                        # tensors as this process has them
    step, tensors, info = states.latest()                  # ... as this process has them, whatever the division was

A state is a folder of one safetensors file a process and one `state.json`; it gets its name when all files are there,
so one that a killed process left half-written is none. Copies are written once, by processes in turns. What is read is
put together from whatever boxes there are (`state_files.py`): a state written by four processes can be read by one, by
two with the matrices divided, and the other way round. All processes see one file system.

Before anything is written the processes compare their copies of the weights: weights that have come to differ are never
saved.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from parlance.core.artifacts import PARTIAL, ensure_directory, read_json, write_json
from parlance.core.errors import UserError
from parlance.training import state_folders
from parlance.training.checkpointing import KEPT, write_tensors
from parlance.training.parallel import sharding
from parlance.training.parallel.piece_table import PieceTable
from parlance.training.parallel.processes import World
from parlance.training.parallel.replicas import check_replicas
from parlance.training.pieces import Piece
from parlance.training.state_files import DAMAGES, StateFiles, write_description, written

WEIGHTS = "model."
"""Prefix of the names of weights, among the tensors of a state."""
PLAIN = "optimizer."
"""Prefix of tensors that are plain ones; others have the form of the model's parameters."""


class ShardedStates:
    """The states in one folder, named `step-00000120`."""

    def __init__(self, folder: Path, world: World, table: PieceTable, model: nn.Module, kept: int = KEPT) -> None:
        """`table`: what every process holds of the weights; `model`: what this one has of the model."""
        self.folder, self._kept = folder, kept
        self._world, self._table, self._model = world, table, model
        self._writers = table.writers()

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Store a state and drop all but the newest `kept`. Raises UserError on all processes (full disk, ...)."""
        local = {name: sharding.local(tensor) for name, tensor in tensors.items()}
        weights = {name.removeprefix(WEIGHTS): value for name, value in local.items() if name.startswith(WEIGHTS)}
        check_replicas(self._table, weights)
        final = state_folders.state_folder(self.folder, step)
        folder = final.with_name(final.name + PARTIAL)
        try:
            self._together(lambda: self._begin(folder), alone=True)
            self._together(lambda: self._write(folder, local))
            self._together(lambda: self._complete(folder, final, step, info), alone=True)
        except UserError:
            if self._world.first:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact state as (step, this process's tensors, info), or None; the same one on all processes.

        Damaged ones are named and set aside. Raises UserError on all processes where the disk does not let one of them
        read its part: the state is not known to be damaged.
        """
        self._together(lambda: state_folders.put_back(self.folder), alone=True)
        names: list[str] = []
        self._together(lambda: names.extend(folder.name for folder in state_folders.states_in(self.folder)), alone=True)
        for name in reversed(self._world.share(names)):
            state, damage = self._check(self.folder / name)
            told = [said for said in self._world.exchange(damage) if said is not None]
            if not told and state is not None:
                return state.step, self._read(state), state.info
            for code, text in told:
                if state_folders.unreadable(code):
                    raise UserError(text) from OSError(code, os.strerror(code))
            if self._world.first:
                state_folders.set_aside(self.folder / name, told[0][1])
            self._world.exchange(None)
        return None

    def discard(self) -> None:
        """Delete the states and nothing else in their folder."""
        if self._world.first:
            state_folders.discard(self.folder)
        self._world.exchange(None)

    def clear(self) -> None:
        """Delete the folder."""
        if self._world.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._world.exchange(None)

    # --- writing ---------------------------------------------------------------------------------------------------

    def _begin(self, folder: Path) -> None:
        ensure_directory(self.folder)
        state_folders.begin(self.folder)
        ensure_directory(folder)

    def _write(self, folder: Path, local: dict[str, Tensor]) -> None:
        """This process's file, and what is to be said of it."""
        rank = self._world.rank
        pieces = {name: self._piece(name) for name in local}
        mine = {name: piece for name, (weight, piece) in pieces.items() if self._writers[weight].get(piece) == rank}
        file = _file(rank)
        checksum = write_tensors(folder / file, {name: local[name] for name in mine})
        write_json(folder / f"{file}.json", written(checksum, mine))

    def _complete(self, folder: Path, final: Path, step: int, info: dict[str, Any]) -> None:
        files = {}
        for rank in range(self._world.size):
            said = folder / f"{_file(rank)}.json"
            files[_file(rank)] = read_json(said)
            said.unlink()
        write_description(folder, step, files, info)
        state_folders.replace(folder, final)
        state_folders.keep_newest(self.folder, self._kept)

    def _together(self, work: Callable[[], None], *, alone: bool = False) -> None:
        """Do `work` on every process (`alone`: on the first); where it fails on one, all raise UserError."""
        error: UserError | None = None
        if self._world.first or not alone:
            try:
                work()
            except UserError as raised:
                error = raised
        failures = [said for said in self._world.exchange(None if error is None else _told(error)) if said is not None]
        if error is not None:
            raise error
        if failures:
            code, text = failures[0]
            raise UserError(text) from (None if code is None else OSError(code, os.strerror(code)))

    # --- reading ---------------------------------------------------------------------------------------------------

    def _check(self, folder: Path) -> tuple[StateFiles | None, tuple[int | None, str] | None]:
        """The state and None, or what is wrong with it (the system's error, words).

        Each process looks at its share of the files.
        """
        try:
            state = StateFiles(folder)
            state.verify(sorted(state.files)[self._world.rank :: self._world.size])
        except DAMAGES as error:
            return None, _told(error)
        return state, None

    def _read(self, state: StateFiles) -> dict[str, Tensor]:
        wanted = {}
        for name in state.pieces:
            with contextlib.suppress(KeyError):
                wanted[name] = self._piece(name)[1]
        parameters = dict(self._model.named_parameters())
        return {
            name: value if name.startswith(PLAIN) else sharding.like(value, parameters[_weight(name, parameters)])
            for name, value in state.read(wanted).items()
        }

    def _piece(self, name: str) -> tuple[str, Piece]:
        """The weight that a tensor belongs to, and what this process holds of it. KeyError: nothing."""
        weight = _weight(name, self._table.own)
        return weight, self._table.own[weight]


def _file(rank: int) -> str:
    return f"process-{rank:05d}.safetensors"


def _weight(name: str, weights: Any) -> str:
    """The weight that a tensor of a state is, or is a moment of: "optimizer.a.weight.first" is one of "a.weight"."""
    _, _, rest = name.partition(".")
    found = next((known for known in (rest, rest.rpartition(".")[0]) if known in weights), None)
    if found is None:
        raise KeyError(name)
    return found


def _told(error: Exception) -> tuple[int | None, str]:
    return state_folders.errno_of(error), str(error) or type(error).__name__
