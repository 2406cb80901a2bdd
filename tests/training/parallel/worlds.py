"""Worlds of real processes for the tests of parallel training: what a module-level function does on every rank.

    run_world(2, check, 7, tmp_path=tmp_path)        # [check(7) of rank 0, check(7) of rank 1]

Each rank is a spawned process of one thread with gloo as its default process group, which knows its rank by
`torch.distributed.get_rank()`. Starting one costs an import of torch; a `World` runs many functions in one start, and
the fixture `world` (conftest.py) shares worlds among all tests of this folder. Functions, arguments and results are
pickled; results are copies, so a rank may send tensors. A function that fails on one rank raises here with that rank's
traceback, and all ranks end: the others may wait for it in a collective. The next call starts afresh.
"""

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

WAIT_SECONDS = 120.0
"""Longest a function may take."""


class World:
    """`size` processes that run one function after another. Starts when first used."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size, self.folder = size, folder
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any, seconds: float = WAIT_SECONDS) -> list[Any]:
        """function(*args) on every rank: the results by rank."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((function, args))
        results: list[Any] = [None] * self.size
        waiting = {connection: rank for rank, connection in enumerate(self._connections)}
        deadline = time.monotonic() + seconds
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                ranks = sorted(waiting.values())
                self.close()
                raise TimeoutError(f"{function.__name__}: ranks {ranks} of {self.size} gave no answer in {seconds:g} s")
            for connection in ready:
                rank = waiting.pop(connection)
                try:
                    succeeded, answer = pickle.loads(connection.recv_bytes())
                except EOFError:
                    succeeded, answer = False, f"its process ended ({self._processes[rank].exitcode})"
                if not succeeded:
                    self.close()
                    raise RuntimeError(f"{function.__name__} failed on rank {rank} of {self.size}:\n{answer}")
                results[rank] = answer
        return results

    def close(self) -> None:
        """End all ranks."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.folder.mkdir(parents=True, exist_ok=True)
        store = Path(tempfile.mkdtemp(dir=self.folder)) / "store"
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, rank, self.size, str(store)), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)


def run_world(
    size: int, function: Callable[..., Any], *args: Any, tmp_path: Path, seconds: float = WAIT_SECONDS
) -> list[Any]:
    """function(*args) in `size` new processes, which end afterwards: the results by rank."""
    world = World(size, tmp_path)
    try:
        return world.run(function, *args, seconds=seconds)
    finally:
        world.close()


def _serve(connection: Connection, rank: int, size: int, store: str) -> None:
    """A rank: run what arrives, until nothing can arrive any more."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    limit = timedelta(seconds=WAIT_SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
    while True:
        try:
            function, args = connection.recv()
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send_bytes(pickle.dumps(answer))
