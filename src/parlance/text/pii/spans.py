"""A span of personal data, and which of several overlapping ones stays.

    resolve_overlaps([Span(0, 9, "US_SSN", 0.85), Span(0, 9, "PHONE", 0.5)])   # -> [Span(0, 9, "US_SSN", 0.85)]

A span holds places and a category, never the value.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from parlance.text.pii.config import CATEGORIES, Category


class Span(NamedTuple):
    """Personal data at `text[start:end]` (characters). It does not hold the value itself, so it may be logged."""

    start: int
    end: int
    category: Category
    score: float
    """Confidence from 0 to 1; 1 where a strong checksum holds."""


def resolve_overlaps(spans: Iterable[Span]) -> list[Span]:
    """The spans that stay, in order of their start: no two share a character.

    The longer span wins, then the higher score, then the earlier start, then the category named first in `CATEGORIES`.
    The result does not depend on the order of `spans`.
    """
    ranked = sorted(spans, key=lambda s: (s.start - s.end, -s.score, s.start, CATEGORIES.index(s.category)))
    if len(ranked) < 2:
        return ranked
    chosen: list[Span] = []
    taken: list[tuple[int, int]] = []  # disjoint and sorted
    for span in ranked:
        place = bisect_right(taken, (span.start, span.start))
        before_is_free = place == 0 or taken[place - 1][1] <= span.start
        after_is_free = place == len(taken) or span.end <= taken[place][0]
        if before_is_free and after_is_free:
            taken.insert(place, (span.start, span.end))
            chosen.append(span)
    return sorted(chosen)
