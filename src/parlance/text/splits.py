"""How a corpus is divided into training, validation and test data.

By group where that works: whole groups (a module, a file, a record) go to one split, so that nothing that is held out
has a twin in the training data. By position where groups are too few or too uneven for that, such as a single book:
every document's end is held out.

    keys = np.array([group_key(seed, name) for name in ("decimal", "json", ...)], dtype=np.uint64)
    assign_groups(keys, np.array([230_000, 48_000, ...]), validation=0.04, test=0.06)

`read_split` reads what was divided.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parlance.core.artifacts import read_jsonl
from parlance.core.errors import UserError
from parlance.text.documents import Document

SPLITS = ("train", "validation", "test")

LEAST_TRAIN = 0.75
"""Whole groups are not used where they would leave less than this share of the bytes for training."""
LEAST_HELD_OUT = 0.25
"""Nor where validation or test would get less than this share of the bytes they should have."""
SHORT = 1000
"""Documents below this many characters are not cut by position as long as there is a longer one."""


def assign_groups(
    keys: NDArray[np.uint64], sizes: NDArray[np.int64], validation: float, test: float
) -> NDArray[np.int8] | None:
    """The split of every group as its place in `SPLITS`, or None where whole groups cannot give about these shares.

    `keys`: the `group_key` of each group, distinct; `sizes`: its bytes. In the order of the keys, test and then
    validation take every group that still fits into their share of the bytes, or the smallest group that is left where
    none fits. The rest is for training.
    """
    if len(keys) < 3:
        return None
    total = int(sizes.sum())
    assigned = np.zeros(len(keys), dtype=np.int8)
    left = np.argsort(keys, kind="stable").tolist()
    bytes_of = sizes.tolist()
    for split, share in (("test", test), ("validation", validation)):
        taken, room = [], share * total
        for group in left:
            if bytes_of[group] <= room:
                taken.append(group)
                room -= bytes_of[group]
        if not taken:
            taken = [min(left, key=lambda group: bytes_of[group])]
        if sum(bytes_of[group] for group in taken) < LEAST_HELD_OUT * share * total:
            return None
        assigned[taken] = SPLITS.index(split)
        left = [group for group in left if not assigned[group]]
        if not left:
            return None
    if sum(bytes_of[group] for group in left) < LEAST_TRAIN * total:
        return None
    return assigned


def group_key(seed: int, group: str) -> int:
    """The place of a group in a random order of all groups: 64 bits of a hash of seed and name."""
    digest = hashlib.blake2b(f"{seed}:{group}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "big")


def cut_by_position(text: str, validation: float, test: float) -> dict[str, tuple[int, int]]:
    """Character ranges of `text` for each split: the end is test, what lies before it validation, the rest train.

    The cuts move back to the end of a line or word where one is near. Texts of fewer than 3 characters are all train.
    """
    if len(text) < 3:
        return {"train": (0, len(text))}
    last = _nice_cut(text, round(len(text) * (1 - test)), 2, len(text) - 1)
    first = _nice_cut(text, round(len(text) * (1 - test - validation)), 1, last - 1)
    return {"train": (0, first), "validation": (first, last), "test": (last, len(text))}


def _nice_cut(text: str, position: int, low: int, high: int) -> int:
    """A cut near `position` within [low, high]: behind a newline, else behind a space, else there."""
    position = min(max(position, low), high)
    reach = max(low, position - len(text) // 100)
    for separator in ("\n", " "):
        found = text.rfind(separator, reach, position) + 1
        if found >= low and found > reach:
            return found
    return position


def read_split(folder: Path, split: str) -> Iterator[Document]:
    """The documents of "train", "validation" or "test" of a prepared corpus. Raises UserError where it is missing."""
    path = folder / f"{split}.jsonl"
    if split not in SPLITS or not path.is_file():
        raise UserError(f"{folder} has no {split} split; prepare it with `parlance corpus prepare`")
    for number, record in read_jsonl(path):
        try:
            yield Document.from_json(record)
        except KeyError as error:
            raise UserError(f"{path}, line {number}: there is no field {error}; prepare the corpus again") from error
