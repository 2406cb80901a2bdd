"""Batches of examples of unequal length: deterministic, grouped by length so that little is padding, exactly resumable.

batches = LengthGroupedBatches(lengths, tokens_per_batch=4096, seed=0)
for indices, state in batches(None): ...            # endless; `state` continues after this batch
"""

from collections.abc import Iterator, Sequence

import numpy as np


class LengthGroupedBatches:
    """Every epoch visits each example once: examples of similar length share a batch, the batches come in random order.

    A batch holds as many examples as fit in `tokens_per_batch` when padded to the longest of them (at least one).
    """

    def __init__(self, lengths: Sequence[int], tokens_per_batch: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed

    def epoch(self, number: int) -> list[list[int]]:
        """The batches (lists of example indices) of one epoch."""
        generator = np.random.default_rng((self.seed, number))
        order = generator.permutation(len(self.lengths))
        # Ties in length are broken by the random order, so neighbours differ from epoch to epoch.
        order = order[np.argsort(self.lengths[order], kind="stable")]
        batches: list[list[int]] = [[]]
        for index in order.tolist():
            if batches[-1] and (len(batches[-1]) + 1) * self.lengths[index] > self.tokens_per_batch:
                batches.append([])
            batches[-1].append(index)
        return [batches[place] for place in generator.permutation(len(batches)).tolist()]

    def __call__(self, state: int | None) -> Iterator[tuple[list[int], int]]:
        """Yield (indices, number of batches drawn so far), from `state` on, for ever."""
        drawn, first, number = state or 0, 0, 0
        while True:
            batches = self.epoch(number)
            for place in range(max(0, drawn - first), len(batches)):
                drawn = first + place + 1
                yield batches[place], drawn
            first, number = first + len(batches), number + 1
