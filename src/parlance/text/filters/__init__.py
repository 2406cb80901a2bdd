"""Quality filters for text: Gopher, C4 and FineWeb, with their published limits, offline and without a model.

- `judge(text, names, config)`: the filters named, in order; `FILTER_NAMES`: all of them, in FineWeb's order
- `gopher_quality`, `gopher_repetition`, `c4`, `fineweb`: one family of rules each, `(text, config) -> Verdict`
- `Verdict`: keep, or the reason with its figure and limit; and the text where lines were taken out
- `FiltersConfig`, `GopherQualityConfig`, `GopherRepetitionConfig`, `C4Config`, `FineWebConfig`: the limits

Each is a function of the text and the configuration alone. What a word is, is in `words`.
"""

from parlance.text.filters.c4_rules import c4
from parlance.text.filters.config import (
    FILTER_NAMES,
    C4Config,
    FilterName,
    FiltersConfig,
    FineWebConfig,
    GopherQualityConfig,
    GopherRepetitionConfig,
)
from parlance.text.filters.fineweb_rules import fineweb
from parlance.text.filters.gopher_rules import gopher_quality, gopher_repetition
from parlance.text.filters.judging import judge
from parlance.text.filters.verdict import Verdict

__all__ = [
    "FILTER_NAMES",
    "C4Config",
    "FilterName",
    "FiltersConfig",
    "FineWebConfig",
    "GopherQualityConfig",
    "GopherRepetitionConfig",
    "Verdict",
    "c4",
    "fineweb",
    "gopher_quality",
    "gopher_repetition",
    "judge",
]
