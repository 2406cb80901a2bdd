"""How a corpus is divided into training, validation and test data.

By group where that works: whole groups (a module, a file, a record) go to one split, so that nothing that is held out
has a twin in the training data. By position where groups are too few or too uneven for that, such as a single book:
every document's end is held out.

    assign_groups({"decimal": 230_000, "json": 48_000, ...}, validation=0.04, test=0.06, seed=0)
"""

import hashlib
from collections.abc import Mapping

SPLITS = ("train", "validation", "test")

LEAST_TRAIN = 0.75
"""Whole groups are not used where they would leave less than this share of the bytes for training."""
LEAST_HELD_OUT = 0.25
"""Nor where validation or test would get less than this share of the bytes they should have."""
SHORT = 1000
"""Documents below this many characters are not cut by position as long as there is a longer one."""


def assign_groups(sizes: Mapping[str, int], validation: float, test: float, seed: int) -> dict[str, str] | None:
    """The split of every group, or None where whole groups cannot give splits of about the wanted shares.

    `sizes`: bytes of each group. The groups are put in the order of a hash of seed and name; test and then validation
    take, in that order, every group that still fits into their share of the bytes, or the smallest group that is left
    where none fits. The rest is for training.
    """
    if len(sizes) < 3:
        return None
    total = sum(sizes.values())
    left = sorted(sizes, key=lambda group: (_hash(seed, group), group))
    assigned = {}
    for split, share in (("test", test), ("validation", validation)):
        taken, room = [], share * total
        for group in left:
            if sizes[group] <= room:
                taken.append(group)
                room -= sizes[group]
        if not taken:
            taken = [min(left, key=lambda group: sizes[group])]
        if sum(sizes[group] for group in taken) < LEAST_HELD_OUT * share * total:
            return None
        assigned.update(dict.fromkeys(taken, split))
        left = [group for group in left if group not in assigned]
        if not left:
            return None
    if sum(sizes[group] for group in left) < LEAST_TRAIN * total:
        return None
    return {**assigned, **dict.fromkeys(left, "train")}


def _hash(seed: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{group}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
