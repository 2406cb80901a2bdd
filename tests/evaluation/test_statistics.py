"""Bootstrap intervals against enumeration and the normal approximation; win rates and diversity by hand."""

import itertools

import numpy as np
import pytest

from parlance.evaluation import statistics
from parlance.evaluation.statistics import (
    bootstrap_interval,
    distinct_ngram_ratio,
    distinct_ratio,
    paired_difference_interval,
    pairwise_accuracy,
    win_rate,
    wins,
)


def test_mean_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(values, resamples=20_000, seed=0)
    half = 1.959964 * values.std() / np.sqrt(values.size)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_interval_agrees_with_enumeration_of_all_resamples() -> None:
    # Five items have 5^5 = 3125 equally likely resamples, so the true percentiles are known. The values are powers of
    # two so that the 70 % ends fall between well separated means.
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    every = np.array([np.mean(draw) for draw in itertools.product(values, repeat=5)])
    interval = bootstrap_interval(values, level=0.7, resamples=40_000, seed=3)
    assert interval.low == pytest.approx(np.quantile(every, 0.15), abs=0.11)
    assert interval.high == pytest.approx(np.quantile(every, 0.85), abs=0.11)


def test_other_statistics_are_computed_per_resample() -> None:
    values = np.random.default_rng(2).exponential(size=301)
    interval = bootstrap_interval(values, lambda rows: np.median(rows, axis=-1), seed=0)
    # Order-statistic interval of the median: ranks n/2 -+ 1.96 sqrt(n)/2.
    ordered, half = np.sort(values), 1.96 * np.sqrt(values.size) / 2
    assert interval.value == np.median(values)
    assert interval.low == pytest.approx(ordered[round(150 - half)], abs=0.05)
    assert interval.high == pytest.approx(ordered[round(150 + half)], abs=0.05)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        interval = bootstrap_interval(generator.normal(size=50), level=0.9, resamples=400, seed=trial)
        covered += interval.low <= 0.0 <= interval.high
    assert 0.82 <= covered / 300 <= 0.95


def test_same_seed_same_interval_and_parts_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0)
    assert bootstrap_interval(values, seed=7) == bootstrap_interval(values, seed=7)
    assert bootstrap_interval(values, seed=7) != bootstrap_interval(values, seed=8)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 1000)
    assert sum(statistics._parts(2000, 30)) == 2000
    assert bootstrap_interval(values, resamples=20_000, seed=7).low == pytest.approx(14.5 - 1.96 * 1.58, abs=0.15)


def test_groups_widen_the_interval_of_repeated_items() -> None:
    # Every item six times: the honest interval is that of the 40 groups, sqrt(6) times wider than that of 240 items.
    values = np.random.default_rng(4).normal(size=40)
    repeated, groups = np.repeat(values, 6), np.repeat(np.arange(40), 6)
    honest = bootstrap_interval(values, resamples=8000, seed=0)
    grouped = bootstrap_interval(repeated, groups=groups, resamples=8000, seed=0)
    naive = bootstrap_interval(repeated, resamples=8000, seed=0)
    assert (grouped.high - grouped.low) == pytest.approx(honest.high - honest.low, rel=0.03)
    assert (grouped.high - grouped.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(6), rel=0.06)


def test_groups_of_unequal_size_keep_the_mean_over_items() -> None:
    interval = bootstrap_interval([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"], seed=0)
    assert (interval.value, interval.low, interval.high) == (0.75, 0.0, 1.0)


def test_win_rate_counts_ties_half() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 4.0 + 1e-12]
    assert wins(a, b).tolist() == [1.0, 0.5, 0.0, 0.5]
    assert wins(a, b, tie=2.0).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert win_rate(a, b, seed=0).value == 0.5
    assert win_rate(b, a, seed=0).value == 0.5


def test_paired_difference_is_narrower_than_unpaired_noise() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.normal(0, 10, size=200)
    a, b = hardness + 0.5 + generator.normal(0, 0.1, 200), hardness
    interval = paired_difference_interval(a, b, seed=0)
    assert 0.4 < interval.low < 0.5 < interval.high < 0.6


def test_pairwise_accuracy() -> None:
    interval = pairwise_accuracy([2.0, 1e-15, -0.5, 0.0], seed=0)
    assert interval.value == (1 + 1 + 0 + 0.5) / 4
    assert interval.as_dict() == {"value": interval.value, "low": interval.low, "high": interval.high}
    assert pairwise_accuracy([1.0, -1.0], groups=[0, 0], seed=0).low == 0.5


def test_distinct_ratios() -> None:
    assert distinct_ratio(["a", "a", "b", "a"]) == 0.5
    # "to be or not to be" has bigrams (to be) twice, (be or), (or not), (not to): 4 different of 5.
    assert distinct_ngram_ratio(["to be or not to be"], 2) == pytest.approx(4 / 5)
    assert distinct_ngram_ratio(["a b", "a b"], 1) == 0.5
    assert distinct_ngram_ratio(["a b", ""], 3) is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0], [2.0]]])
def test_bad_items_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="values must be"):
        bootstrap_interval(values, seed=0)


def test_mismatched_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        wins([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="groups must name"):
        bootstrap_interval([1.0, 2.0], groups=[0], seed=0)
    with pytest.raises(ValueError, match="mean only"):
        bootstrap_interval([1.0, 2.0], lambda rows: np.median(rows, axis=-1), groups=[0, 1], seed=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0, 2.0], level=95, seed=0)
    with pytest.raises(ValueError, match="no texts"):
        distinct_ratio([])
    with pytest.raises(ValueError, match="at least 1"):
        distinct_ngram_ratio(["a"], 0)
