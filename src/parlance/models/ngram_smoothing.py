"""Counts -> probabilities of an n-gram model: modified Kneser-Ney, stupid back-off, add-k; with pruning.

Each method turns one `Level` after the other into two arrays, p(w | h) of its n-grams and a back-off weight b(h) of the
contexts below it, such that

    p(w | h) = the n-gram's own value where hw is kept, else b(h) p(w | h without its first word)

is a distribution over the vocabulary after every context. The form is ARPA's, and the same for all methods.

    smoother = smoother_for(NGramTraining(order=3), vocab_size=8)
    parts = [smoother.level(level) for level in count_ngrams(...)]

Sources: S. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling" (1998), section
4.1.6; K. Heafield et al., "Scalable modified Kneser-Ney language model estimation" (2013), section 3; T. Brants et al.,
"Large language models in machine translation" (2007), section 4. Pruning is that of `lmplz --prune`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from parlance.core.compiled import compiled
from parlance.core.config import Config
from parlance.models.ngram_counts import Int32, Int64, Level

MAX_ORDER = 9
STUPID_WEIGHT = 0.4
"""What one step of stupid back-off costs (Brants et al. 2007)."""

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


class NGramTraining(Config):
    """How an n-gram model is trained."""

    order: int = Field(default=5, ge=1, le=MAX_ORDER)
    """Longest n-gram; a token is predicted from the order - 1 tokens before it."""
    smoothing: Literal["kneser-ney", "stupid-backoff", "add-k"] = "kneser-ney"
    """How unseen n-grams get probability. `kneser-ney`: interpolated, modified. `stupid-backoff`: relative frequencies,
    0.4 times the shorter context's where unseen, then divided by their sum. `add-k`: k added to every count."""
    add_k: float = Field(default=1.0, gt=0)
    """The k of `add-k`: 1 is Laplace's rule, 0.5 Jeffreys'. Other methods do not use it."""
    prune: tuple[int, ...] = ()
    """N-grams that occur at most so often are dropped; one number an order from 1, the last for all higher orders.
    They must not decrease, and the first is 0: single tokens are never dropped. (0, 0, 1) drops trigrams and longer
    n-grams that occur once. Empty: nothing is dropped."""

    @model_validator(mode="after")
    def _prune_thresholds(self) -> Self:
        if len(self.prune) > self.order:
            raise ValueError(f"prune has {len(self.prune)} numbers for {self.order} orders")
        if self.prune and self.prune[0] != 0:
            raise ValueError("prune must begin with 0: single tokens are never dropped")
        if any(later < earlier for earlier, later in pairwise(self.prune)):
            raise ValueError("prune must not decrease from one order to the next")
        return self

    def threshold(self, k: int) -> int:
        """What n-grams of order k must occur more often than, to be kept."""
        return self.prune[min(k, len(self.prune)) - 1] if self.prune else 0


class Discount(Config):
    """What is taken off the adjusted counts 1, 2 and 3-or-more of one order, and where the values come from."""

    values: tuple[float, float, float]
    """(D_1, D_2, D_3+); 0 < D_k <= k."""
    method: Literal["closed form", "absolute", "fixed"]
    """`closed form`: D_k = k - (k+1) Y t_{k+1}/t_k. `absolute`: Y for all three. `fixed`: (0.5, 1, 1.5)."""


class Smoothed(NamedTuple):
    """One level's probabilities, of the n-grams that are kept."""

    kept: Bool
    """(n,) which n-grams of the level are kept; all with a kept n-gram's words in a row are kept too."""
    values: Float64
    """(n,) p(w | h) of each n-gram hw; of dropped ones, anything."""
    backoffs: Float64
    """(m,) b(h) of each n-gram h of the order below; order 1: one, of the empty context, unused."""


class Smoother(Protocol):
    """Takes the levels of one training in turn, from order 1."""

    def level(self, level: Level) -> Smoothed:
        """The probabilities of the next order."""
        ...


def smoother_for(training: NGramTraining, vocab_size: int) -> "KneserNey | StupidBackoff | AddK":
    """A fresh smoother."""
    match training.smoothing:
        case "kneser-ney":
            return KneserNey(training, vocab_size)
        case "stupid-backoff":
            return StupidBackoff(training, vocab_size)
        case "add-k":
            return AddK(training, vocab_size)


def estimate_discount(adjusted: Int64) -> Discount:
    """Discounts of one order from its adjusted counts (zeros are passed over), by the first method that is possible.

    With t_k the number of n-grams of adjusted count k and Y = t_1 / (t_1 + 2 t_2): the closed form needs t_1, t_2,
    t_3 > 0 and every D_k > 0 (Chen and Goodman 1998, equation 26); the absolute discount Y needs t_1, t_2 > 0.
    Subword vocabularies have no rare unigrams and reach the fixed values.
    """
    t = [int(n) for n in np.bincount(np.minimum(adjusted, 5), minlength=5)]
    if t[1] and t[2]:
        y = t[1] / (t[1] + 2 * t[2])
        if t[3]:
            d1, d2, d3 = (k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
            if min(d1, d2, d3) > 0:
                return Discount(values=(d1, d2, d3), method="closed form")
        return Discount(values=(y, y, y), method="absolute")
    return Discount(values=(0.5, 1.0, 1.5), method="fixed")


@dataclass
class KneserNey:
    """Interpolated modified Kneser-Ney, as lmplz estimates it."""

    training: NGramTraining
    vocab_size: int

    def __post_init__(self) -> None:
        self.discounts: list[Discount] = []
        self._shorter: Float64 = np.empty(0)

    def level(self, level: Level) -> Smoothed:
        """p(w|h) = (a(hw) - D) / sum_x a(hx) + b(h) p(w|h'), over the uniform distribution at order 1."""
        # Dropped n-grams count when discounts are estimated, and give their whole count to the shorter context.
        self.discounts.append(estimate_discount(level.adjusted))
        order = len(self.discounts)
        kept = level.occurrences > self.training.threshold(order) if order > 1 else np.ones(level.words.size, np.bool_)
        table = np.array([0.0, *self.discounts[-1].values])
        if order > 1:
            values, backoffs = _interpolate(level.offsets, level.suffixes, level.adjusted, kept, table, self._shorter)
        else:
            counts, V = level.adjusted[: self.vocab_size], self.vocab_size
            taken = table[np.minimum(counts, 3)]
            values = np.append((counts - taken + taken.sum() / V) / counts.sum(), 0.0)  # 0: the begin mark
            backoffs = np.ones(1)
        self._shorter = values
        return Smoothed(kept, values, backoffs)


@compiled
def _interpolate(
    offsets: Int64, suffixes: Int32, adjusted: Int64, kept: Bool, discounts: Float64, shorter: Float64
) -> tuple[Float64, Float64]:
    """(p(w|h) of each n-gram, b(h) of each context): b(h) = (sum_x D + dropped counts) / sum_x a(hx).

    b is 1 where nothing follows h. discounts: (4,) D by min(a, 3); shorter: p(w|h') by suffix.
    """
    values = np.zeros(suffixes.size, np.float64)
    backoffs = np.ones(offsets.size - 1, np.float64)
    for context in range(offsets.size - 1):
        total = 0
        taken = 0.0
        for node in range(offsets[context], offsets[context + 1]):
            total += adjusted[node]
            taken += discounts[min(adjusted[node], 3)] if kept[node] else float(adjusted[node])
        if total > 0:
            backoffs[context] = taken / total
        for node in range(offsets[context], offsets[context + 1]):
            if kept[node]:
                own = adjusted[node] - discounts[min(adjusted[node], 3)]
                values[node] = (own + taken * shorter[suffixes[node]]) / total
    return values, backoffs


@dataclass
class StupidBackoff:
    """Brants' scores S, divided by their sum Z(h) over the vocabulary, which makes them probabilities.

    S(w|h) = c(hw) / c(h) where hw is kept, else 0.4 S(w|h'); a token never seen scores 0.4 / V, one step below the
    unigrams. As Z(h) = sum over the kept words of S(w|h) + 0.4 (Z(h') - sum over them of S(w|h')), it costs no pass
    over the vocabulary, and b(h) = 0.4 Z(h') / Z(h).
    """

    training: NGramTraining
    vocab_size: int

    def __post_init__(self) -> None:
        self._order = 0
        self._scores: Float64 = np.empty(0)  # S of the order below
        self._context_sums: Float64 = np.empty(0)  # Z of the contexts that are one token shorter than this order's
        self._context_suffixes: Int32 = np.empty(0, np.int32)

    def level(self, level: Level) -> Smoothed:
        """The next order."""
        self._order += 1
        if self._order == 1:
            counts = level.occurrences[: self.vocab_size]
            scores = np.append(np.where(counts > 0, counts / counts.sum(), STUPID_WEIGHT / self.vocab_size), 0.0)
            sums = np.array([scores.sum()])
            smoothed = Smoothed(np.ones(scores.size, np.bool_), scores / sums, np.ones(1))
        else:
            kept = level.occurrences > self.training.threshold(self._order)
            contexts, m = _context_of_each(level), level.offsets.size - 1
            total = np.bincount(contexts, weights=level.occurrences, minlength=m)
            scores = level.occurrences / total[contexts]
            own = np.bincount(contexts, weights=scores * kept, minlength=m)
            replaced = np.bincount(contexts, weights=self._scores[level.suffixes] * kept, minlength=m)
            below = self._context_sums[self._context_suffixes]
            # Rounding must not make what is left for unseen words negative.
            sums = own + STUPID_WEIGHT * np.maximum(below - replaced, 0.0)
            smoothed = Smoothed(kept, scores / sums[contexts], STUPID_WEIGHT * below / sums)
        self._scores, self._context_sums, self._context_suffixes = scores, sums, level.suffixes
        return smoothed


@dataclass
class AddK:
    """p(w|h) = (c(hw) + k) / (c(h) + kV), h always the order - 1 tokens before w, or all since the document began.

    There is nothing to back off to but the uniform distribution, which the n-grams of the orders between hold.
    Dropped n-grams count as never seen.
    """

    training: NGramTraining
    vocab_size: int

    def __post_init__(self) -> None:
        self._order = 0
        self._begin = 0  # first context that begins a document

    def level(self, level: Level) -> Smoothed:
        """The next order."""
        self._order += 1
        k, V, m = self.training.add_k, self.vocab_size, level.offsets.size - 1
        counts = level.occurrences.astype(np.float64)
        if self._order == 1:
            counts[V:] = 0  # the begin mark
            kept = np.ones(counts.size, np.bool_)
        else:
            kept = level.occurrences > self.training.threshold(self._order)
        contexts = _context_of_each(level)
        total = np.bincount(contexts, weights=counts * kept, minlength=m)
        whole = np.arange(m) >= (0 if self._order == self.training.order else self._begin)  # nothing is cut off
        if self._order == 1 < self.training.order:
            whole[:] = False
        values = np.where(whole[contexts], (counts + k) / (total + k * V)[contexts], 1 / V)
        if self._order == 1:
            values[V:] = 0.0
        self._begin = level.begin
        return Smoothed(kept, values, np.where(whole, k * V / (total + k * V), 1.0))


def _context_of_each(level: Level) -> Int64:
    """(n,) the context of each n-gram, as a number of the order below."""
    return np.repeat(np.arange(level.offsets.size - 1), np.diff(level.offsets))
