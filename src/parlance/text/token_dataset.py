"""A prepared corpus as tokens on disk, and endless streams of training rows out of it that can be resumed exactly.

How the files look is in `token_shards.py`. There are two ways to make rows of T targets out of documents:

- "stream", `batches`: windows of T+1 tokens start T apart, so that no target is used twice in an epoch; the tokens form
  a ring, and every epoch shifts the ring by a random offset. Fewer than T targets, other ones in each epoch, are left
  out; documents are cut wherever a window ends.
- "best-fit", `packed_batches`: documents stay whole where they fit, see `packing.py`. No token is left out, a few
  positions are empty.

Every epoch shuffles the rows anew. A stream is a function of (data, T, seed, sample number) only: a number is all that
resuming needs, with any batch size and any number of processes. An epoch's order takes 8 bytes a row.

    tokenize_corpus(Path("runs/demo/corpus"), tokenizer, Path("runs/demo/tokens"))
    dataset = TokenDataset.open(Path("runs/demo/tokens"), "train")
    for batch, state in dataset.batches(batch_size=8, context_length=256, seed=0): ...
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.documents import utf8_length
from parlance.text.packing import PackedBatch, Packing, PackingPlan
from parlance.text.splits import SPLITS, read_split
from parlance.text.token_shards import (
    TokenShards,
    TokenWriter,
    map_split,
    read_info,
    token_writer,
    verify_split,
    write_token_dataset,
)
from parlance.text.tokenizers import Tokenizer

__all__ = ["State", "TokenDataset", "tokenize_corpus", "write_token_dataset"]

BATCH_BYTES = 8 << 20
"""Text that is handed to the tokenizer at a time."""

State = dict[str, int | str]
"""`{"sample": n, ...}`: n rows have been drawn since the beginning, by all ranks together; the rest says from what."""


def tokenize_corpus(corpus: Path, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Write the three splits of a prepared corpus as a token dataset; returns the content of `dataset.json`."""
    with token_writer(out, tokenizer) as writer:
        for split in SPLITS:
            _encode_split(corpus, split, tokenizer, writer)
    return writer.info


def _encode_split(corpus: Path, split: str, tokenizer: Tokenizer, writer: TokenWriter) -> None:
    """Encode the documents of a split in parallel, about `BATCH_BYTES` at a time."""
    texts: list[str] = []
    size = 0
    with Progress(f"encode {split}", unit="bytes") as progress:
        for document in read_split(corpus, split):
            texts.append(document.text)
            size += utf8_length(document.text)
            if size >= BATCH_BYTES:
                writer.write_encoded(split, *tokenizer.encode_arrays(texts), text_bytes=size)
                progress.update(size)
                texts, size = [], 0
        writer.write_encoded(split, *tokenizer.encode_arrays(texts), text_bytes=size)
        progress.update(size)


@dataclass(frozen=True)
class TokenDataset:
    """One split of a dataset folder. Open it with `TokenDataset.open`."""

    folder: Path
    split: str
    tokens: TokenShards
    """All N ids, uint16 or uint32, memory-mapped and read-only; end-of-text stands behind every document."""
    documents: NDArray[np.int64]
    """Index in `tokens` of the first token of each document, shape (documents,), increasing from 0."""
    text_bytes: int
    """UTF-8 bytes of the text that the tokens stand for: the denominator of bits per byte."""
    info: dict[str, Any]
    """The content of `dataset.json`."""

    @classmethod
    def open(cls, folder: Path, split: str, verify: bool = False) -> "TokenDataset":
        """Map a split into memory; `verify` compares the checksums, as is wise before a run goes on (1 s a GB).

        Raises UserError where the split is missing, has the wrong size, or is damaged.
        """
        info = read_info(folder)
        tokens, documents = map_split(folder, split, info)
        if verify:
            verify_split(folder, split, info)
        return cls(folder, split, tokens, documents, info["splits"][split]["text_bytes"], info)

    def windows_per_epoch(self, context_length: int) -> int:
        """Windows of `context_length` targets in an epoch. Raises UserError where there is not one."""
        if len(self.tokens) < context_length + 1:
            raise UserError(
                f"the {self.split} split in {self.folder} has {len(self.tokens)} tokens, fewer than the "
                f"{context_length + 1} of one window; give more text, or a context length below {len(self.tokens)}"
            )
        return len(self.tokens) // context_length

    def packing_plan(self, context_length: int) -> PackingPlan:
        """How `packed_batches` packs the documents: rows of an epoch, share that is filled. Takes O(n log n) time."""
        return PackingPlan.best_fit(self.documents, len(self.tokens), context_length)

    def batches(
        self,
        batch_size: int,
        context_length: int,
        seed: int,
        state: State | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[tuple[NDArray[np.int64], State]]:
        """Endless (batch (B, T+1) int64, state after it); inputs are `batch[:, :-1]`, targets `batch[:, 1:]`.

        `state` from an earlier iteration over the same tokens with the same T and seed continues behind that batch.
        `world` processes that pass their `rank` divide the same stream of windows without overlap: together they draw
        what one process with `world * batch_size` draws, and their states are equal.
        Raises UserError where the split has fewer than T+1 tokens, for a state of another stream, and for a rank that
        is not in 0..world-1.
        """
        _check(batch_size, context_length, rank, world)
        windows = self.windows_per_epoch(context_length)
        source = self._source("stream", context_length, seed)
        drawn = _drawn(
            _first_sample(state, source),
            batch_size,
            rank,
            world,
            windows,
            lambda epoch: self._epoch_starts(context_length, seed, epoch, windows),
        )
        return ((self._windows(starts, context_length), dict(source, sample=sample)) for starts, sample in drawn)

    def packed_batches(
        self,
        batch_size: int,
        context_length: int,
        seed: int,
        state: State | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[tuple[PackedBatch, State]]:
        """Endless (rows of whole documents, state after them); arguments, states and ranks as in `batches`.

        A split smaller than T gives rows that are partly empty. Raises UserError as `batches` does otherwise.
        """
        _check(batch_size, context_length, rank, world)
        source = self._source("best-fit", context_length, seed)
        first = _first_sample(state, source)
        plan = self.packing_plan(context_length)
        drawn = _drawn(
            first,
            batch_size,
            rank,
            world,
            plan.rows,
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(plan.rows),
        )
        return ((plan.batch(self.tokens, rows), dict(source, sample=sample)) for rows, sample in drawn)

    def _source(self, packing: Packing, context_length: int, seed: int) -> State:
        """What a stream is a function of, besides the sample number."""
        sums = json.dumps(self.info["splits"][self.split]["sha256"], sort_keys=True)
        tokens = hashlib.sha256(sums.encode()).hexdigest()[:16]
        return {"packing": packing, "context_length": context_length, "seed": seed, "tokens": tokens}

    def _epoch_starts(self, context_length: int, seed: int, epoch: int, windows: int) -> NDArray[np.int64]:
        """First positions of the windows of an epoch in shuffled order, shape (windows,)."""
        generator = np.random.default_rng([seed, epoch])
        offset = int(generator.integers(len(self.tokens)))
        return (offset + generator.permutation(windows) * context_length) % len(self.tokens)

    def _windows(self, starts: NDArray[np.int64], context_length: int) -> NDArray[np.int64]:
        """The windows (B, T+1) that begin at `starts` (B,)."""
        batch = np.empty((len(starts), context_length + 1), dtype=np.int64)
        for row, start in enumerate(starts.tolist()):
            batch[row] = self.tokens.ring(start, context_length + 1)
        return batch


def _check(batch_size: int, context_length: int, rank: int, world: int) -> None:
    if batch_size < 1 or context_length < 1:
        raise UserError(
            f"batches of {batch_size} rows of {context_length} tokens cannot be drawn; both must be above 0"
        )
    if not 0 <= rank < world:
        raise UserError(f"there is no process {rank} among {world}; ranks are 0 to the number of processes less one")


def _first_sample(state: State | None, source: State) -> int:
    """How many rows were drawn before. Raises UserError where they were drawn from another stream."""
    if state is None:
        return 0
    for name, value in source.items():
        if state.get(name) != value:
            raise UserError(
                f"the resume state belongs to another stream of tokens: its {name} is {state.get(name)}, not {value}; "
                "resume with the same data and settings, or begin anew"
            )
    return int(state["sample"])


def _drawn(
    first: int, batch_size: int, rank: int, world: int, per_epoch: int, order: Callable[[int], NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Endless (the values (B,) of this rank's samples, samples drawn by all ranks after them), from `first` on.

    `order(epoch)` gives the values of an epoch, shape (per_epoch,); an epoch goes on in the next within a batch.
    """
    epoch, values = -1, np.empty(0, dtype=np.int64)
    for step_start in itertools.count(first, batch_size * world):
        drawn = np.empty(batch_size, dtype=np.int64)
        row = 0
        while row < batch_size:
            number, index = divmod(step_start + rank * batch_size + row, per_epoch)
            if number != epoch:
                epoch, values = number, order(number)
            here = values[index : index + batch_size - row]
            drawn[row : row + len(here)] = here
            row += len(here)
        yield drawn, step_start + batch_size * world
