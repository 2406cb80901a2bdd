"""Tokens on disk, memory-mapped, and an endless stream of training windows that can be resumed exactly.

A dataset folder has, for every split, `NAME.bin` (the ids of all documents one after the other, little-endian uint16,
or uint32 for vocabularies above 65 536, each document followed by the end-of-text token) and `NAME.documents.npy`
(int64, where each document starts), and one `dataset.json` with types, counts, text bytes and SHA-256 sums.

Windows of T+1 tokens start T apart, so that no target is used twice in an epoch; the tokens form a ring, and every
epoch shifts the ring by a random offset and shuffles the windows. Fewer than T targets, other ones in each epoch, are
left out. The stream is a function of (seed, sample number) only: a number is all that resuming needs.

    tokenize_corpus(Path("runs/demo/corpus"), tokenizer, Path("runs/demo/tokens"))
    dataset = TokenDataset.open(Path("runs/demo/tokens"), "train")
    for batch, state in dataset.batches(batch_size=8, context_length=256, seed=0): ...
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import atomic_directory, read_json, sha256, write_json
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.documents import utf8_length
from parlance.text.preparation import read_split
from parlance.text.splits import SPLITS
from parlance.text.tokenizers import Tokenizer

BATCH_BYTES = 1 << 20
"""Text that is handed to the tokenizer at a time."""

State = dict[str, int]
"""`{"sample": n}`: n windows have been drawn since the beginning, by all ranks together."""


def tokenize_corpus(corpus: Path, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Write the three splits of a prepared corpus as a token dataset; returns the content of `dataset.json`."""
    return write_token_dataset(out, {split: _encoded(corpus, split, tokenizer) for split in SPLITS}, tokenizer)


def _encoded(corpus: Path, split: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Ids of the documents of a split, encoded in parallel about `BATCH_BYTES` at a time."""
    texts: list[str] = []
    size = 0
    with Progress(f"encode {split}", unit="bytes") as progress:
        for document in read_split(corpus, split):
            texts.append(document.text)
            size += utf8_length(document.text)
            if size >= BATCH_BYTES:
                yield from tokenizer.encode_batch(texts)
                progress.update(size)
                texts, size = [], 0
        yield from tokenizer.encode_batch(texts)
        progress.update(size)


def write_token_dataset(
    folder: Path, splits: Mapping[str, Iterable[Sequence[int]]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Write the documents of each split, given as token lists without end-of-text, whole or not at all.

    An existing dataset is replaced; returns the content of `dataset.json`. Raises UserError where `folder` holds
    something else, and for a split without tokens; ValueError for ids outside the vocabulary.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "dataset.json").is_file())):
        raise UserError(f"{folder} exists and is not a token dataset; choose another folder, or remove it first")
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with atomic_directory(folder) as temporary:
        rows = {
            split: _write_split(temporary, split, documents, dtype, tokenizer) for split, documents in splits.items()
        }
        info = {
            "kind": "token dataset",
            "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
            "vocab_size": tokenizer.vocab_size,
            "end_of_text": tokenizer.end_of_text,
            "tokenizer_sha256": tokenizer.sha256,
            "splits": rows,
        }
        write_json(temporary / "dataset.json", info)
    return info


def _write_split(
    folder: Path, split: str, documents: Iterable[Sequence[int]], dtype: np.dtype[Any], tokenizer: Tokenizer
) -> dict[str, Any]:
    starts = array("q")
    count = text_bytes = 0
    lengths, end = tokenizer.token_byte_lengths, [tokenizer.end_of_text]
    with (folder / f"{split}.bin").open("wb") as file:
        for document in documents:
            ids = np.asarray(document, dtype=np.int64)
            if len(ids) and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
                raise ValueError(f"{split}: a document has ids outside 0..{tokenizer.vocab_size - 1}")
            starts.append(count)
            text_bytes += int(lengths[ids].sum())
            file.write(np.concatenate([ids, end]).astype(dtype).tobytes())
            count += len(ids) + 1
    if count == len(starts):
        raise UserError(f"the {split} split has no text to encode; prepare the corpus again with more of it")
    np.save(folder / f"{split}.documents.npy", np.array(starts, dtype="<i8"))
    return {
        "tokens": count,
        "documents": len(starts),
        "text_bytes": text_bytes,
        "sha256": {name: sha256(folder / name) for name in (f"{split}.bin", f"{split}.documents.npy")},
    }


@dataclass(frozen=True)
class TokenDataset:
    """One split of a dataset folder. Open it with `TokenDataset.open`."""

    folder: Path
    split: str
    tokens: NDArray[Any]
    """All ids, shape (N,), uint16 or uint32, memory-mapped and read-only; end-of-text stands behind every document."""
    documents: NDArray[np.int64]
    """Index in `tokens` of the first token of each document, shape (documents,), increasing from 0."""
    text_bytes: int
    """UTF-8 bytes of the text that the tokens stand for: the denominator of bits per byte."""
    info: dict[str, Any]
    """The content of `dataset.json`."""

    @classmethod
    def open(cls, folder: Path, split: str) -> "TokenDataset":
        """Map a split into memory. Raises UserError where it is missing or has the wrong size."""
        info = read_json(folder / "dataset.json")
        row = info["splits"].get(split)
        if row is None:
            raise UserError(f"{folder} has no split {split}; it has {', '.join(info['splits'])}")
        path, dtype = folder / f"{split}.bin", np.dtype(info["dtype"]).newbyteorder("<")
        starts = folder / f"{split}.documents.npy"
        if not (path.is_file() and starts.is_file()) or path.stat().st_size != row["tokens"] * dtype.itemsize:
            raise UserError(f"{path} is missing or incomplete; write the token dataset again")
        return cls(
            folder=folder,
            split=split,
            tokens=np.memmap(path, dtype=dtype, mode="r"),
            documents=np.load(starts, mmap_mode="r", allow_pickle=False),
            text_bytes=row["text_bytes"],
            info=info,
        )

    def verify(self) -> None:
        """Compare the files with their stored checksums. Raises UserError naming a file that differs."""
        for name, expected in self.info["splits"][self.split]["sha256"].items():
            if sha256(self.folder / name) != expected:
                raise UserError(f"{self.folder / name} is damaged: its checksum differs; write the token dataset again")

    def windows_per_epoch(self, context_length: int) -> int:
        """Windows of `context_length` targets in an epoch. Raises UserError where there is not one."""
        if len(self.tokens) < context_length + 1:
            raise UserError(
                f"the {self.split} split in {self.folder} has {len(self.tokens)} tokens, fewer than the "
                f"{context_length + 1} of one window; give more text, or a context length below {len(self.tokens)}"
            )
        return len(self.tokens) // context_length

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

        `state` from an earlier iteration, with the same other arguments, continues behind that batch. `world`
        processes that pass their `rank` divide the same stream of windows without overlap: together they draw what
        one process with `world * batch_size` draws, and their states are equal.
        Raises UserError where the split has fewer than T+1 tokens.
        """
        windows = self.windows_per_epoch(context_length)
        first = 0 if state is None else state["sample"]
        return self._batches(batch_size, context_length, seed, first, rank, world, windows)

    def _batches(
        self, batch_size: int, context_length: int, seed: int, first: int, rank: int, world: int, windows: int
    ) -> Iterator[tuple[NDArray[np.int64], State]]:
        epoch, starts = -1, np.empty(0, dtype=np.int64)
        batch = np.empty((batch_size, context_length + 1), dtype=np.int64)
        for step_start in itertools.count(first, batch_size * world):
            for row in range(batch_size):
                number, index = divmod(step_start + rank * batch_size + row, windows)
                if number != epoch:
                    epoch, starts = number, self._epoch_starts(context_length, seed, number, windows)
                self._window(int(starts[index]), batch[row])
            yield batch.copy(), {"sample": step_start + batch_size * world}

    def _epoch_starts(self, context_length: int, seed: int, epoch: int, windows: int) -> NDArray[np.int64]:
        """First positions of the windows of an epoch in shuffled order, shape (windows,)."""
        generator = np.random.default_rng([seed, epoch])
        offset = int(generator.integers(len(self.tokens)))
        return (offset + generator.permutation(windows) * context_length) % len(self.tokens)

    def _window(self, start: int, out: NDArray[np.int64]) -> None:
        """Fill `out` (T+1,) with the tokens from `start` on, around the end of the ring."""
        here = self.tokens[start : start + len(out)]
        out[: len(here)] = here
        out[len(here) :] = self.tokens[: len(out) - len(here)]
