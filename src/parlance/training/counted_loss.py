"""How hard a text is: the loss of an n-gram model that is counted on a part of it, for any number of tokens.

    counted = CountedLoss(train, validation, tokens=16_384, seed=0)
    counted(100_000), counted(5_000_000)          # loss in nats per token, and what more than bigrams take off its log
    counted.copying()                             # what copying takes off it

The model is an interpolated Kneser-Ney 5-gram (9-gram for tokens of few bytes), counted on windows in the order in
which a training run draws them. Beyond `MOST_TOKENS`, or the length of the text, the loss goes on falling as between a
third of that and all of it.

Copying: the token that followed the longest match of the last ones, up to `LONGEST` of them, within the same window is
believed as often as matches of that length were right (weights by expectation maximisation); the rest of the
probability is the n-gram model's. Source of the idea: Kuhn and De Mori 1990 (cache language models).
"""

import itertools
import math
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from parlance.models.ngram import NGramModel
from parlance.scaling.pilot_law import Counted
from parlance.text.token_dataset import TokenDataset

Floats = NDArray[np.float64]

MOST_TOKENS = 3_000_000
"""Counting more is no longer done in a second."""
WINDOW = 256
LONGEST = 8
ROUNDS = 30
"""Of expectation maximisation."""
COPYING_TOKENS = 500_000
"""Tokens that the model beside which copying is weighed is counted on."""
ORDERS = (5, 9)
SHORT_TOKENS = 2.0
"""Bytes a token below which the longer context is counted."""


class CountedLoss:
    """See the module."""

    def __init__(self, train: TokenDataset, validation: TokenDataset, *, tokens: int, window: int, seed: int) -> None:
        """`tokens`: how many of the validation split it is measured on; `window`: how far back copying sees."""
        self._window = window
        self._train, self._seed = train, seed
        self._checks = validation.tokens[: tokens + 1].astype("int64")
        long = train.text_bytes / max(1, len(train.tokens)) < SHORT_TOKENS
        self._order, self._vocab_size = ORDERS[long], int(train.info["vocab_size"])
        self._most = min(MOST_TOKENS, len(train.tokens))
        self._drawn: list[NDArray[np.integer[Any]]] = []
        self._losses: dict[tuple[int, int], float] = {}

    def __call__(self, tokens: float) -> Counted:
        """What is reached after so many tokens."""
        most = int(min(tokens, self._most))
        loss = self._loss(most)
        memory = math.log(self._loss(most, order=2) / loss)
        if tokens > self._most:
            loss *= (tokens / self._most) ** self._exponent
        return Counted(loss, memory)

    @cached_property
    def _exponent(self) -> float:
        """How the loss falls at the end of what is counted."""
        return math.log(self._loss(self._most) / self._loss(self._most // 3)) / math.log(3)

    def copying(self) -> float:
        """log(C / C') at `COPYING_TOKENS`, C' the loss with copying: 0 for a text that never repeats itself."""
        log_probs = self._log_probs(min(COPYING_TOKENS, self._most))
        lengths, right = _matches(self._checks, self._window)
        share = np.zeros(LONGEST + 1)
        share[1:] = 0.1
        probabilities = np.exp(log_probs)
        for _ in range(ROUNDS):
            weight = share[lengths]
            copied = np.where(right, weight / (weight + (1 - weight) * probabilities), 0.0)
            sums, counts = (np.bincount(lengths, values, LONGEST + 1) for values in (copied, np.ones_like(copied)))
            share = sums / np.maximum(counts, 1)
            share[0] = 0.0
        weight = share[lengths]
        mixed = np.log((1 - weight) * probabilities + weight * right)
        return math.log(log_probs[1:].mean() / mixed[1:].mean())

    def _loss(self, tokens: int, order: int | None = None) -> float:
        """Counted once for every number of tokens and order."""
        key = tokens, order or self._order
        if key not in self._losses:
            self._losses[key] = -float(self._log_probs(*key)[1:].mean())
        return self._losses[key]

    def _log_probs(self, tokens: int, order: int | None = None) -> Floats:
        """Of the checked tokens, by a model counted on so many."""
        model = NGramModel.train(self._windows(tokens), self._vocab_size, order or self._order)
        return model.log_probs(self._checks)

    def _windows(self, tokens: int) -> list[NDArray[np.integer[Any]]]:
        """Windows in the order of training, at least one."""
        length = min(WINDOW, len(self._train.tokens) - 1)
        count = max(1, -(-tokens // (length + 1)))  # each has its last target too
        if count > len(self._drawn):
            batches = self._train.batches(1, length, seed=self._seed, state=None)
            self._drawn = [rows[0] for rows, _ in itertools.islice(batches, count)]
        return self._drawn[:count]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _matches(
    tokens: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:  # pragma: no cover (compiled)
    """For every token: how many of those before it also stand, latest and longest, before an earlier one of its window,
    and whether that earlier one is the same token."""
    lengths, right = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), np.bool_)
    for here in range(1, len(tokens)):
        first = here // window * window
        for earlier in range(here - 1, first, -1):
            length = 0
            while (
                length < LONGEST
                and earlier - 1 - length >= first
                and tokens[earlier - 1 - length] == tokens[here - 1 - length]
            ):
                length += 1
            if length > lengths[here]:
                lengths[here], right[here] = length, tokens[earlier] == tokens[here]
    return lengths, right
