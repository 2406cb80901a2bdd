"""Several filters, one after another, on one text: `judge`.

    judge(text, FILTER_NAMES, FiltersConfig())

Words and lines are found once for all filters; after a filter that changed the text they are found again.
"""

from collections.abc import Sequence
from typing import assert_never

from parlance.text.filters.c4_rules import c4_of_view
from parlance.text.filters.config import FilterName, FiltersConfig
from parlance.text.filters.fineweb_rules import fineweb_of_view
from parlance.text.filters.gopher_rules import quality_of_view, repetition_of_view
from parlance.text.filters.table import thread_table
from parlance.text.filters.verdict import Verdict
from parlance.text.filters.view import TextView


def judge(text: str, names: Sequence[FilterName], config: FiltersConfig) -> Verdict:
    """Apply the named filters in order; the first that drops decides, and each sees what the one before left.

    The verdict is a function of `text`, `names` and `config` alone. Its text is what the last filter left, None if that
    is `text`.
    """
    view = TextView(text, thread_table())
    for name in names:
        verdict = _apply(name, view, config)
        if verdict.reason is not None:
            return verdict
        if verdict.text is not None:
            view = TextView(verdict.text, view.table)
    return Verdict(text=None if view.text == text else view.text)


def _apply(name: FilterName, view: TextView, config: FiltersConfig) -> Verdict:
    if name == "gopher-repetition":
        return repetition_of_view(view, config.gopher_repetition)
    if name == "gopher-quality":
        return quality_of_view(view, config.gopher_quality)
    if name == "c4":
        return c4_of_view(view, config.c4)
    if name == "fineweb":
        return fineweb_of_view(view, config.fineweb)
    assert_never(name)
