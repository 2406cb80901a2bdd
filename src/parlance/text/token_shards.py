"""Token ids on disk: little-endian uint16 or uint32 shards with document boundaries and checksums, memory-mapped.

A dataset folder has, for every split,

- `NAME-00000.bin`, `NAME-00001.bin`, ...: the ids of all documents one after the other, each document followed by the
  end-of-text token; uint16, or uint32 for vocabularies above 65 536. Every shard but the last holds exactly
  `shard_tokens` ids, so that a position is found by one division; a document may go on in the next shard;
- `NAME.documents.bin`: int64, where each document starts, counted over all shards;

and one `dataset.json` with types, counts, text bytes and SHA-256 sums. The files are a function of the documents, the
tokenizer and `shard_tokens`; how the documents came in batches makes no difference. They are written as the documents
come, hashed on the way, and memory holds one batch.

It does not encode, and it does not read what another version of this format wrote.

    with token_writer(Path("runs/demo/tokens"), tokenizer) as writer:
        writer.write_encoded("train", ids=np.array([5, 6, 7, 8]), offsets=np.array([0, 3, 4]), text_bytes=9)
    tokens, documents = map_split(Path("runs/demo/tokens"), "train", read_info(Path("runs/demo/tokens")))
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import atomic_directory, read_json, sha256, write_json
from parlance.core.errors import UserError
from parlance.text.tokenizers import Tokenizer

FORMAT = "parlance token shards 2"
"""`format` in `dataset.json`."""

SHARD_TOKENS = 1 << 28
"""Ids in a full shard: 512 MiB of uint16."""

BATCH_TOKENS = 1 << 18
"""Ids of documents given as lists that are written at a time."""


class TokenShards:
    """Arrays that are read as one: slices without a step, of shape (length,), as `numpy` would give them.

    A slice within a shard is a view; one across shards is copied.
    """

    def __init__(self, shards: Sequence[NDArray[Any]], shard_tokens: int) -> None:
        """`shards`: arrays of one dtype, all but the last of exactly `shard_tokens` ids."""
        self.shards = list(shards)
        self.shard_tokens = shard_tokens
        self.dtype: np.dtype[Any] = self.shards[0].dtype
        self._length = sum(len(shard) for shard in self.shards)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> NDArray[Any]:
        start, stop, step = part.indices(self._length)
        if step != 1:
            raise ValueError("token shards are sliced without a step")
        first, begin = divmod(start, self.shard_tokens)
        if stop - first * self.shard_tokens <= self.shard_tokens:
            # An empty slice at the very end is behind the last shard.
            return self.shards[min(first, len(self.shards) - 1)][begin : begin + max(0, stop - start)]
        last = (stop - 1) // self.shard_tokens
        pieces = [self.shards[first][begin:], *self.shards[first + 1 : last]]
        return np.concatenate([*pieces, self.shards[last][: stop - last * self.shard_tokens]])

    def ring(self, start: int, count: int) -> NDArray[Any]:
        """`count` ids from `start` on, shape (count,), where the last id is followed by the first.

        `start`: from -1, which is the last id, to len - 1; `count`: up to len + 1.
        """
        start %= self._length
        number, begin = divmod(start, self.shard_tokens)
        here = self.shards[number][begin : begin + count]
        if len(here) == count:
            return here  # the usual case, without a copy
        here = self[start : start + count]
        return here if len(here) == count else np.concatenate((here, self[: count - len(here)]))


class _HashedFile:
    """A file that is written once, front to back, and its SHA-256."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = path.open("wb")

    def write(self, values: NDArray[Any]) -> None:
        data = np.ascontiguousarray(values).data
        self._hash.update(data)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _SplitWriter:
    """The growing shards and boundaries of one split."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, stack: ExitStack) -> None:
        self.tokens = self.documents = self.text_bytes = 0
        self._folder, self._split, self._stack = folder, split, stack
        self._dtype, self._shard_tokens = dtype, shard_tokens
        self._starts = self._open(f"{split}.documents.bin")
        self._shards: list[_HashedFile] = []

    def _open(self, name: str) -> _HashedFile:
        file = _HashedFile(self._folder / name)
        self._stack.callback(file.close)  # also where writing fails
        return file

    def write(self, ids: NDArray[Any], offsets: NDArray[np.int64], end_of_text: int, text_bytes: int) -> None:
        count = len(offsets) - 1
        self._starts.write((self.tokens + offsets[:-1] + np.arange(count)).astype("<i8"))
        stream = np.insert(ids.astype(self._dtype), offsets[1:], end_of_text)
        done = 0
        while done < len(stream):
            number, filled = divmod(self.tokens, self._shard_tokens)
            if number == len(self._shards):
                if self._shards:
                    self._shards[-1].close()
                self._shards.append(self._open(f"{self._split}-{number:05d}.bin"))
            part = stream[done : done + self._shard_tokens - filled]
            self._shards[-1].write(part)
            done += len(part)
            self.tokens += len(part)
        self.documents += count
        self.text_bytes += text_bytes

    def finish(self) -> dict[str, Any]:
        """Close the files; returns the split's row of `dataset.json`. Raises UserError where there is no text."""
        if self.tokens == self.documents:
            raise UserError(f"the {self._split} split has no text to encode; prepare the corpus again with more of it")
        files = [*self._shards, self._starts]
        for file in files:
            file.close()
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "sha256": {file.name: file.hexdigest() for file in files},
        }


class TokenWriter:
    """Takes encoded documents batch by batch. Made by `token_writer`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int, stack: ExitStack) -> None:
        self._folder, self._tokenizer, self._shard_tokens, self._stack = folder, tokenizer, shard_tokens, stack
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._splits: dict[str, _SplitWriter] = {}
        self.info: dict[str, Any] = {}
        """The content of `dataset.json`, once the block of `token_writer` has ended."""

    def write_encoded(self, split: str, ids: NDArray[Any], offsets: NDArray[np.int64], text_bytes: int) -> None:
        """Append D documents to `split`: document d is `ids[offsets[d]:offsets[d + 1]]`, without end-of-text.

        `ids`: (N,) of any integer type; `offsets`: (D + 1,) int64, from 0 to N, not decreasing; `text_bytes`: UTF-8
        bytes of their texts. D may be 0. Raises ValueError for ids outside the vocabulary and for other offsets.
        """
        size = self._tokenizer.vocab_size
        if len(ids) and (int(ids.max()) >= size or int(ids.min()) < 0):
            raise ValueError(f"{split}: a document has ids outside 0..{size - 1}")
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{split}: the offsets do not rise from 0 to the {len(ids)} ids of the batch")
        if split not in self._splits:
            self._splits[split] = _SplitWriter(self._folder, split, self._dtype, self._shard_tokens, self._stack)
        self._splits[split].write(ids, offsets, self._tokenizer.end_of_text, text_bytes)

    def finish(self) -> None:
        """Close all files and write `dataset.json`. Raises UserError for a split without text."""
        self.info = {
            "kind": "token dataset",
            "format": FORMAT,
            "dtype": "uint16" if self._dtype.itemsize == 2 else "uint32",
            "shard_tokens": self._shard_tokens,
            "vocab_size": self._tokenizer.vocab_size,
            "end_of_text": self._tokenizer.end_of_text,
            "tokenizer_sha256": self._tokenizer.sha256,
            "splits": {split: writer.finish() for split, writer in self._splits.items()},
        }
        write_json(self._folder / "dataset.json", self.info)


@contextmanager
def token_writer(folder: Path, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS) -> Iterator[TokenWriter]:
    """Write a token dataset, whole or not at all: `folder` appears when the block ends well.

    An existing dataset is replaced. Raises UserError where `folder` holds something else, and for a split without text.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "dataset.json").is_file())):
        raise UserError(f"{folder} exists and is not a token dataset; choose another folder, or remove it first")
    with atomic_directory(folder) as temporary, ExitStack() as stack:
        writer = TokenWriter(temporary, tokenizer, shard_tokens, stack)
        yield writer
        writer.finish()


def write_token_dataset(
    folder: Path, splits: Mapping[str, Iterable[Sequence[int]]], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Write the documents of each split, given as token lists without end-of-text, whole or not at all.

    An existing dataset is replaced; returns the content of `dataset.json`. Raises UserError where `folder` holds
    something else, and for a split without tokens; ValueError for ids outside the vocabulary.
    """
    with token_writer(folder, tokenizer) as writer:
        for split, documents in splits.items():
            batch: list[NDArray[np.int64]] = []
            waiting = 0
            for document in documents:
                batch.append(np.asarray(document, dtype=np.int64))
                waiting += len(batch[-1]) + 1
                if waiting >= BATCH_TOKENS:
                    _write_lists(writer, split, batch, tokenizer)
                    batch, waiting = [], 0
            _write_lists(writer, split, batch, tokenizer)
    return writer.info


def _write_lists(writer: TokenWriter, split: str, batch: Sequence[NDArray[np.int64]], tokenizer: Tokenizer) -> None:
    ids = np.concatenate([*batch, np.empty(0, dtype=np.int64)])
    offsets = np.concatenate(([0], np.cumsum([len(document) for document in batch], dtype=np.int64)))
    known = ids[(ids >= 0) & (ids < tokenizer.vocab_size)]  # the writer refuses the others
    writer.write_encoded(split, ids, offsets, int(tokenizer.token_byte_lengths[known].sum()))


def read_info(folder: Path) -> dict[str, Any]:
    """The content of `dataset.json`. Raises UserError where it is missing or of another format."""
    info = read_json(folder / "dataset.json")
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise UserError(f"{folder} is not a token dataset of this version of Parlance; write it again")
    return info


def map_split(folder: Path, split: str, info: Mapping[str, Any]) -> tuple[TokenShards, NDArray[np.int64]]:
    """Map a split into memory, read-only: its ids, and the (documents,) int64 positions at which documents start.

    `info` is what `read_info` returned. Raises UserError where the split is missing or a file has the wrong size.
    """
    row = info["splits"].get(split)
    if row is None:
        raise UserError(f"{folder} has no split {split}; it has {', '.join(info['splits'])}")
    dtype, size, total = np.dtype(info["dtype"]).newbyteorder("<"), int(info["shard_tokens"]), int(row["tokens"])
    shards = [
        _map(folder / f"{split}-{number:05d}.bin", dtype, min(size, total - number * size))
        for number in range(-(-total // size))
    ]
    return TokenShards(shards, size), _map(folder / f"{split}.documents.bin", np.dtype("<i8"), int(row["documents"]))


def _map(path: Path, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    if not path.is_file() or path.stat().st_size != count * dtype.itemsize:
        raise UserError(f"{path} is missing or incomplete; write the token dataset again")
    # As a plain array: slices of numpy's own memmap class cost a microsecond more.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r"))


def verify_split(folder: Path, split: str, info: Mapping[str, Any]) -> None:
    """Compare the files of a split with their checksums. Raises UserError naming the first that differs."""
    for name, expected in info["splits"][split]["sha256"].items():
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} is damaged: its checksum differs; write the token dataset again")
