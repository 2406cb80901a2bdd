"""One division of a user's prompts into training, validation and test, for demonstrations and rankings alike.

Both files are divided by prompt, and by the same table: what is held out in one is never trained on in the other.

    splits = divide_prompts(demonstrated=[prompt_key("Hi")], ranked=[prompt_key("Bye")], seed=0)
    splits[prompt_key("Hi")]        # "train", "validation" or "test"
"""

import itertools
import json
import random
from collections.abc import Iterable

from parlance.alignment.preferences import Prompt, as_messages

HELD_OUT = 0.05
"""Share of the prompts for validation, and again for test."""


def prompt_key(prompt: Prompt) -> str:
    """The prompt in one spelling: a text and a conversation of that one user turn give the same key."""
    return json.dumps([[message["role"], message["content"]] for message in as_messages(prompt)])


def divide_prompts(demonstrated: Iterable[str], ranked: Iterable[str], seed: int) -> dict[str, str]:
    """The split of every key: about 90 % "train", 5 % "validation", 5 % "test".

    `demonstrated`: keys with a demonstration; where there are three or more, each split has one of them at least.
    `ranked`: keys with a preference; where there are three or more, train and test have one of them at least. Keys may
    repeat. The same keys in the same order and the same seed give the same division.
    """
    in_demonstrations, in_rankings = dict.fromkeys(demonstrated), dict.fromkeys(ranked)
    order = list(in_demonstrations | in_rankings)
    random.Random(seed).shuffle(order)
    both = [key for key in order if key in in_demonstrations and key in in_rankings]
    splits: dict[str, str] = {}

    def place(keys: Iterable[str], split: str) -> None:
        """Give `split` the first of `keys` that has none yet."""
        free = next((key for key in keys if key not in splits), None)
        if free is not None:
            splits[free] = split

    if len(both) >= 2:
        # Each of the two serves both files; validation is needed for demonstrations alone.
        place(both, "test")
        place(both, "train")
        place((key for key in order if key in in_demonstrations), "validation")
    else:
        # With one prompt or none in common, each file has enough of its own.
        for keys, needs in ((in_demonstrations, ("train", "test", "validation")), (in_rankings, ("train", "test"))):
            alone = [key for key in order if key in keys]
            if len(alone) >= 3:
                for split in needs:
                    place([key for key in alone if key not in both] + both, split)
    part = round(HELD_OUT * len(order))
    free = iter([key for key in order if key not in splits])
    for split in ("test", "validation"):
        wanted = max(0, part - list(splits.values()).count(split))
        splits.update(dict.fromkeys(itertools.islice(free, wanted), split))
    return {key: splits.get(key, "train") for key in order}
