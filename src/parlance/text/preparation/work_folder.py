"""The folder in which a preparation grows: its plan, and one finished file a shard and step, so that it can be resumed.

    OUT.preparing/
      plan.json             what is prepared: settings, seed, shards; a resumed preparation must have the same
      input/                documents of a corpus that exists in memory only
      evaluation/           n-grams of the evaluation sets
      judge/NNNNN.*         step 1: documents of a shard that passed the filters (Parquet), the removed ones, a tally
      edges/, duplicates.parquet      step 2: which documents repeat others
      decide/NNNNN.parquet, decided.json, spans.parquet       step 3: where each document goes, and which spans repeat
      write/NNNNN.*         step 4: the finished lines of a shard

A step's `NNNNN.json` (its tally) is written last, so that a shard counts as done if and only if it exists.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parlance.core.artifacts import PARTIAL, PREPARING, read_json
from parlance.core.errors import UserError
from parlance.core.locks import FileLock

NUMBER_BITS = 32
"""A document's number is its shard's index times 2^32 plus its row in the shard: increasing in reading order."""


class WorkFolder:
    """Paths inside a work folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.evaluation = path / "evaluation"
        self.edges = path / "edges"
        self.duplicates = path / "duplicates.parquet"
        self.spans = path / "spans.parquet"
        self.decided = path / "decided.json"

    @classmethod
    def beside(cls, out: Path) -> "WorkFolder":
        """The work folder of the preparation whose result is `out`."""
        return cls(out.with_name(out.name + PREPARING))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Raise UserError while another process works in this folder; the system frees the lock of one that dies."""
        lock = FileLock(self.path / "lock")
        if not lock.take():
            raise UserError(f"another process is working in {self.path}; wait for it, or stop it")
        try:
            yield
        finally:
            lock.free()

    def input(self, place: int) -> Path:
        """JSON lines: the documents of a corpus that is not on disk yet, the `place`-th of those named."""
        return self.path / "input" / f"{place:03d}.jsonl"

    def documents(self, index: int) -> Path:
        """Parquet: the documents of a shard that passed the filters."""
        return self.path / "judge" / f"{index:05d}.parquet"

    def removed(self, step: str, index: int) -> Path:
        """JSON lines: what a step removed."""
        return self.path / step / f"{index:05d}.removed.jsonl"

    def decisions(self, index: int) -> Path:
        """Parquet: where each document of a shard goes."""
        return self.path / "decide" / f"{index:05d}.parquet"

    def lines(self, split: str, index: int) -> Path:
        """JSON lines: the finished documents of a shard for one split."""
        return self.path / "write" / f"{index:05d}.{split}.jsonl"

    def order(self, split: str, index: int) -> Path:
        """`.npy`: the sorting key of each of those lines."""
        return self.path / "write" / f"{index:05d}.{split}.npy"

    def tally(self, step: str, index: int) -> Path:
        """JSON: the counts of a shard; its existence says that the step is done."""
        return self.path / step / f"{index:05d}.json"

    def read_tally(self, step: str, index: int) -> Any:
        """The content of `tally`."""
        return read_json(self.tally(step, index))


@contextmanager
def growing(path: Path) -> Iterator[Path]:
    """Another name to write a file or folder under; it becomes `path` at the end of the block, or is removed."""
    # A process of its own name: a worker whose parent was killed may still be writing the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise
