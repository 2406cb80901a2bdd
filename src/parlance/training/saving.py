"""Writing resume states beside the training: a thread writes a copy of the tensors while the next steps run.

There are never two writes at once. A state that cannot be written (full disk, folder that is read-only by now) costs
that state only: it is said, the older states stay as they are, and training goes on.

    with Saver(TrainingStates(folder), background=True) as saver:
        saver.save(step, tensors, info)
"""

import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.training.memory_fit import is_out_of_memory


class States(Protocol):
    """Where resume states lie."""

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Store a state, whole or not at all. Raises UserError (full disk, ...)."""
        ...

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact state as (step, tensors, info), or None."""
        ...

    def discard(self) -> None:
        """Delete the states."""
        ...

    def clear(self) -> None:
        """Delete the folder."""
        ...


class Saver:
    """Writes states to `states`, in a thread where `background`."""

    def __init__(self, states: States, background: bool) -> None:
        self._states, self._background = states, background
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[str, Tensor] = {}
        self._newest: int | None = None
        self.seconds = 0.0
        """How long `save` and the end have kept the caller waiting."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        started = time.perf_counter()
        self._finish()
        self.seconds += time.perf_counter() - started

    def save(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any], *, wait: bool = False) -> bool:
        """Store a state, or begin to; False where nothing was begun or written.

        While the write before is under way nothing is begun, unless `wait`: then it returns when this one is written.
        """
        started = time.perf_counter()
        try:
            if self._thread is not None and self._thread.is_alive() and not wait:
                return False
            self._finish()
            if wait or not self._background or not self._copy(tensors):
                self._write(step, tensors, info)
                return self._told()
            self._thread = threading.Thread(target=self._write, args=(step, dict(self._copies), info))
            self._thread.start()
            return True
        finally:
            self.seconds += time.perf_counter() - started

    def newest(self) -> int | None:
        """The step of the newest state that was written here, once the write under way is done."""
        self._finish()
        return self._newest

    def _copy(self, tensors: dict[str, Tensor]) -> bool:
        """Copies in the memory of the last ones (fresh pages cost more than the copying); False: they do not fit."""
        old, self._copies = self._copies, {}
        try:
            for name, tensor in tensors.items():
                place = old.get(name)
                if place is None or place.shape != tensor.shape or place.dtype != tensor.dtype:
                    place = torch.empty(tensor.shape, dtype=tensor.dtype)
                self._copies[name] = place.copy_(tensor.detach())
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._copies, self._background = {}, False
            say("resume states are written between two steps from now on: there is no memory for a copy of one")
            return False
        return True

    def _write(self, step: int, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        try:
            self._states.save(step, tensors, info)
            self._newest = step
        except BaseException as error:  # told or raised by the caller's thread
            self._error = error

    def _finish(self) -> None:
        """Wait for the write under way, and say what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._told()

    def _told(self) -> bool:
        """Whether the last write went well; raises what is not the disk's fault."""
        error, self._error = self._error, None
        if error is None:
            return True
        if not (isinstance(error, UserError) and isinstance(error.__cause__, OSError)):
            raise error
        say(f"no resume state was written: {error}; training goes on, the older states stay")
        return False
