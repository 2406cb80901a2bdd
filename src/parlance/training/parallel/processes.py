"""The processes of one training run: started by `torchrun`, or one alone without any process group.

    with started(timeout_minutes=10, device=torch.device("cpu")) as world:      # reads RANK, WORLD_SIZE, ...
        if world.first: ...
        numbers = world.share({"seed": 3})                                      # what process 0 says, everywhere

Only the first process prints and writes files that all share; the standard streams of the others lead nowhere while the
block runs. A mistake that several find is told by one of them. All processes see one file system. When a process is
lost, gloo's connections to it break, and the others leave with `Interrupted` at their next exchange; one that hangs
costs them the timeout. NCCL has its own watchdog with the same timeout. What goes between processes besides tensors is
JSON, never pickle.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from parlance.core.devices import usable_cores
from parlance.core.errors import Interrupted, UserError
from parlance.core.metrics import MetricsLog

POLL_SECONDS = 0.2
"""How often a process looks whether the first is ready."""
HEARD_SECONDS = 10.0
"""How long the first waits for the others to hear that it failed."""
TOLD_SECONDS = 3.0
"""How long a process waits for the first to tell of a mistake before it tells itself."""
LAUNCHER_ENVIRONMENT = "/proc/{}/environ"
"""What the parent process was started with, on Linux."""


@dataclass(frozen=True)
class World:
    """This process among those that train together. Made without arguments: one alone."""

    rank: int = 0
    size: int = 1
    store: Store | None = None
    """Words that all processes read and write; None: one alone."""

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def exchange(self, value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
        """What every process (of the group) says, by rank; JSON values."""
        if self.size == 1:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = dist.get_world_size(group)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(said)]), group=group)
        longest = max(int(length) for length in lengths)
        heard = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
        dist.all_gather(heard, torch.nn.functional.pad(said, (0, longest - len(said))), group=group)
        texts = (words[: int(length)].numpy().tobytes() for words, length in zip(heard, lengths, strict=True))
        return [json.loads(text) for text in texts]

    def share(self, value: Any) -> Any:
        """What the first process says; JSON values. The others' `value` does not matter."""
        return self.exchange(value if self.first else None)[0]

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The elementwise maximum over all processes; nan where any is."""
        if self.size == 1:
            return list(numbers)
        # NaN counts as above everything: not all reductions keep it.
        pairs = torch.tensor([[*numbers], [float(number != number) for number in numbers]], dtype=torch.float64)
        pairs[0].nan_to_num_(nan=0.0, posinf=float("inf"), neginf=float("-inf"))
        dist.all_reduce(pairs, op=dist.ReduceOp.MAX)
        return [float("nan") if unknown else number for number, unknown in pairs.t().tolist()]

    def objection(self, own: str) -> str:
        """What keeps some process from doing what all must do alike, in its words; nothing where nothing does."""
        return next((words for words in self.exchange(own) if words), "")

    def first_does(self, name: str, work: Callable[[], None]) -> None:
        """Let the first process do `work` while the others wait, however long it takes; `name` is used once a run.

        Where it raises, the others end too, without a word: the first says why.
        """
        if self.store is None:
            work()
        elif self.first:
            try:
                work()
            except BaseException:
                self.store.set(name, "failed")
                self._wait_until_heard(self.store, name)
                raise
            self.store.set(name, "done")
        else:
            while not self.store.check([name]):
                time.sleep(POLL_SECONDS)
            if self.store.get(name) != b"done":
                self.store.add(f"{name} heard", 1)
                raise SystemExit(2)

    def _wait_until_heard(self, store: Store, name: str) -> None:
        """The store may live in this process: it must not end before the others have read that it failed."""
        deadline = time.monotonic() + HEARD_SECONDS
        while store.add(f"{name} heard", 0) < self.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)

    def log(self, path: Path, events: Path | None = None) -> MetricsLog:
        """The metrics log at `path` (and its events), which only the first process writes."""
        return MetricsLog(path, events) if self.first else _NoLog(path)


ALONE = World()
"""One process."""


class _NoLog(MetricsLog):
    """A log that is left to another process."""

    def rewind(self, stage: str, step: int) -> None:
        """Nothing."""

    def write(self, stage: str, step: int, **values: float | str | None) -> None:
        """Nothing."""


def launched() -> bool:
    """Whether a launcher started this process as one of several, or as one that says so."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def share_cores() -> None:
    """Compute with an equal share of the machine's cores, or with as many threads as the user said: OMP_NUM_THREADS.

    torchrun sets OMP_NUM_THREADS=1 for its processes where the user set nothing; that is no wish of the user's, and is
    told from one by the environment that torchrun itself was started with (on Linux; elsewhere 1 counts as torchrun's).
    """
    if _set_by_torchrun():
        del os.environ["OMP_NUM_THREADS"]
    processes = 1 if "OMP_NUM_THREADS" in os.environ else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, usable_cores() // processes))


def _set_by_torchrun() -> bool:
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        inherited = Path(LAUNCHER_ENVIRONMENT.format(os.getppid())).read_bytes()
    except OSError:
        return True
    return b"OMP_NUM_THREADS=" not in inherited


@contextlib.contextmanager
def started(timeout_minutes: float, device: torch.device) -> Iterator[World]:
    """The processes that a launcher started, joined for the length of the block; one alone without a launcher.

    Raises UserError where the launcher's environment makes no sense, Interrupted where another process is lost. What
    all processes stop for alike is raised in the first; the others exit with the same code.
    """
    if not launched():
        yield World()
        return
    rank, size, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    _number("MASTER_PORT")
    if not 0 <= rank < size or not os.environ.get("MASTER_ADDR"):
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={size}, MASTER_ADDR={os.environ.get('MASTER_ADDR', '')!r} name no process of a "
            "group: start several processes with torchrun"
        )
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {rank} is number {local} on its machine, which has {torch.cuda.device_count()} GPUs: start "
                "at most as many processes a machine"
            )
        torch.cuda.set_device(local)
    elif device.type != "cpu":
        raise UserError(f"several processes train on cpu or cuda, not on {device.type}")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    limit = timedelta(minutes=timeout_minutes)
    share_cores()
    with _silent(rank > 0):
        with lost_processes(rank, size), _stopped_alike(rank > 0):
            store = next(iter(rendezvous("env://", timeout=limit)))[0]
            words = PrefixStore("parlance", store)
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=rank, world_size=size, timeout=limit
            )
            with told_once(words, rank):
                yield World(rank, size, words)
        dist.destroy_process_group()


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not (value.isascii() and value.isdigit()):
        raise UserError(f"{name}={value!r} is not a number: start several processes with torchrun")
    return int(value)


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    """Standard output and error lead nowhere in the block; what it raises is told by whoever catches it."""
    if not silent:
        yield
        return
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def _stopped_alike(silent: bool) -> Iterator[None]:
    """A stop that all processes agreed on is told by one of them."""
    try:
        yield
    except Interrupted:
        if silent:
            raise SystemExit(130) from None
        raise


@contextlib.contextmanager
def told_once(words: Store, rank: int) -> Iterator[None]:
    """Of the processes that raise the same UserError in the block one does, the first where it is among them.

    The others exit with its code.
    """
    try:
        yield
    except UserError as error:
        name = f"mistake {hashlib.sha256(str(error).encode()).hexdigest()}"
        try:
            deadline = time.monotonic() + TOLD_SECONDS
            while rank > 0 and not words.check([name]) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
            told_by = words.compare_set(name, "", str(rank))
        except RuntimeError:  # the first keeps the words, and has ended: it told what is wrong
            raise SystemExit(2) from None
        if told_by != str(rank).encode():
            raise SystemExit(2) from None
        raise


@contextlib.contextmanager
def lost_processes(rank: int, size: int) -> Iterator[None]:
    """Turn a broken connection in the block into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if (cause := lost_cause(error)) is None:
            raise
        raise Interrupted(f"process {rank} of {size} stops: {cause}; what was saved last can be resumed") from error


def lost_cause(error: RuntimeError) -> str | None:
    """What a failed exchange says about another process, in words; None where the error is another one."""
    chain: BaseException | None = error
    while chain is not None:  # pipelines wrap what their stages raise
        text = str(chain)
        if "imed out" in text or "imeout" in text:
            return "another process did not answer in time"
        if isinstance(chain, dist.DistError) or any(words in text for words in _BROKEN):
            return "another process of this run has ended"
        chain = chain.__cause__
    return None


_BROKEN = ("onnection closed by peer", "onnection reset by peer", "onnection refused", "roken pipe", "gloo/transport")
"""What gloo's and the store's messages about a lost connection contain."""
