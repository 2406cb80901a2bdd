"""The small statistics behind every number in a report: intervals, win rates, paired differences, diversity.

Intervals are percentile bootstraps: items are drawn with replacement, the statistic is computed on every draw, and the
interval is the middle `level` of what came out. It describes how much the number would move with *other items of the
same kind*; it knows nothing of another training seed. Below about 20 items it is too narrow, and where all items agree
(every pair won) it has no width at all: give the number of items beside it.

Items must be independent. Pairs made from one prompt's ranking are not: pass `groups` (the prompt of each item), and
whole groups are drawn instead.

    accuracy = pairwise_accuracy(chosen_scores - rejected_scores, groups=prompt_index, seed=0)
    print(f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]")

Bootstrap: Efron, "Bootstrap methods: another look at the jackknife", 1979. Distinct n-grams: Li et al., "A
diversity-promoting objective function for neural conversation models", 2016 (arXiv 1510.03055).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps (..., N) to (...): one figure for each row of items."""

DRAWN_AT_ONCE = 4_000_000
"""Items held in memory at a time (32 MB); more resamples are drawn in several parts."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """`{"value", "low", "high"}`, the form in which result files store it."""
        return asdict(self)


def mean(values: Floats) -> Floats:
    """Mean over the last axis, the usual `Statistic`."""
    return np.asarray(values.mean(axis=-1), dtype=np.float64)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = mean,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> Interval:
    """Percentile bootstrap of `statistic` over items `values` (N,), or over groups of items.

    `groups` (N,) names the group of each item; it needs the statistic `mean`, which is then the mean over all items of
    the drawn groups. Raises ValueError for no items, values that are not finite, or a level outside (0, 1).
    """
    items = _items(values)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    if groups is not None and statistic is not mean:
        raise ValueError("groups are supported for the mean only")
    generator = np.random.default_rng(seed)
    if groups is None:
        draws = _draw_items(items, statistic, resamples, generator)
    else:
        draws = _draw_groups(items, np.asarray(groups), resamples, generator)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(items)), float(low), float(high))


def wins(a_scores: ArrayLike, b_scores: ArrayLike, *, tie: float = 1e-9) -> Floats:
    """(N,): 1 where a's score is higher than b's by more than `tie`, 0 where it is lower by more, 0.5 between."""
    difference = _paired(a_scores, b_scores)
    return np.where(np.abs(difference) <= tie, 0.5, (difference > 0).astype(np.float64))


def win_rate(
    a_scores: ArrayLike,
    b_scores: ArrayLike,
    *,
    tie: float = 1e-9,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> Interval:
    """Share of items that a wins against b, a tie counting half, with its interval over items."""
    return bootstrap_interval(wins(a_scores, b_scores, tie=tie), level=level, resamples=resamples, seed=seed)


def paired_difference_interval(
    a_scores: ArrayLike, b_scores: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int
) -> Interval:
    """Mean of a - b over items that both were scored on; zero outside the interval means a real difference."""
    return bootstrap_interval(_paired(a_scores, b_scores), level=level, resamples=resamples, seed=seed)


def pairwise_accuracy(
    margins: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> Interval:
    """Share of pairs with a margin (score of the chosen - score of the rejected) above zero; exactly zero counts half.

    `groups` names the prompt of each pair where one prompt gave several pairs.
    """
    values = _items(margins)
    correct = wins(values, np.zeros_like(values), tie=0.0)
    return bootstrap_interval(correct, groups=groups, level=level, resamples=resamples, seed=seed)


def distinct_ratio(texts: Sequence[str]) -> float:
    """Number of different texts over the number of texts, 0..1; near 0 means a policy that always says the same."""
    if not texts:
        raise ValueError("there are no texts to compare")
    return len(set(texts)) / len(texts)


def distinct_ngram_ratio(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of whitespace words over all n-grams of all texts (distinct-n); None where there is no n-gram.

    Falls with the amount of text: compare only samples of equal size.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    total, distinct = 0, set[tuple[str, ...]]()
    for text in texts:
        words = text.split()
        grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else None


def _items(values: ArrayLike) -> Floats:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or items.size == 0:
        raise ValueError(f"values must be a non-empty list of numbers, not an array of shape {items.shape}")
    if not np.isfinite(items).all():
        raise ValueError("values must be finite numbers")
    return items


def _paired(a_scores: ArrayLike, b_scores: ArrayLike) -> Floats:
    a, b = _items(a_scores), _items(b_scores)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have equal length, not {a.size} and {b.size}")
    return a - b


def _parts(resamples: int, width: int) -> list[int]:
    """Split `resamples` into parts of at most DRAWN_AT_ONCE drawn items."""
    size = max(1, DRAWN_AT_ONCE // width)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _draw_items(items: Floats, statistic: Statistic, resamples: int, generator: np.random.Generator) -> Floats:
    """(resamples,): the statistic of `resamples` draws of N items with replacement."""
    n = items.size
    return np.concatenate([statistic(items[generator.integers(0, n, size=(part, n))]) for part in _parts(resamples, n)])


def _draw_groups(items: Floats, groups: NDArray[np.generic], resamples: int, generator: np.random.Generator) -> Floats:
    """(resamples,): the mean over all items of G groups drawn with replacement from the G groups."""
    if groups.shape != items.shape:
        raise ValueError(f"groups must name the group of each of the {items.size} items, not {groups.shape}")
    _, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=items), np.bincount(index)
    means = []
    for part in _parts(resamples, sums.size):
        drawn = generator.integers(0, sums.size, size=(part, sums.size))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
