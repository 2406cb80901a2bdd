"""Thresholds of the quality filters, with their published values as defaults.

    FiltersConfig(gopher_quality=GopherQualityConfig(min_words=100))

Sources: Rae et al. 2021 (Gopher, arXiv:2112.11446, appendix A.1); Raffel et al. 2020 (C4, JMLR 21, section 2.2); Xue
et al. 2021 (mC4, arXiv:2010.11934); Penedo et al. 2024 (FineWeb, arXiv:2406.17557, appendix C). Every limit is
inclusive: a text whose figure equals it is kept.
"""

from typing import Literal

from pydantic import Field, field_validator

from parlance.core.config import Config

FilterName = Literal["gopher-repetition", "gopher-quality", "c4", "fineweb"]
FILTER_NAMES: tuple[FilterName, ...] = ("gopher-repetition", "gopher-quality", "c4", "fineweb")
"""All filters in FineWeb's order."""


class GopherQualityConfig(Config):
    """Gopher's rules for whether a text is English prose. Words are those of `filters.words`."""

    min_words: int = Field(default=50, ge=0)
    """Fewest words that are more than punctuation."""
    max_words: int = Field(default=100_000, ge=1)
    """Most words that are more than punctuation."""
    min_mean_word_length: float = Field(default=3.0, ge=0)
    """Least mean length, in characters, of the words that are more than punctuation."""
    max_mean_word_length: float = Field(default=10.0, gt=0)
    """Greatest mean length of the words that are more than punctuation."""
    max_symbols_per_word: float = Field(default=0.1, ge=0)
    """Most `#` per word, and most ellipses (`...` or the single character) per word; punctuation counts as words."""
    max_bullet_lines: float = Field(default=0.9, ge=0, le=1)
    """Largest share of lines that begin with a bullet or `-`."""
    max_ellipsis_lines: float = Field(default=0.3, ge=0, le=1)
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: float = Field(default=0.8, ge=0, le=1)
    """Smallest share of words, punctuation included, that contain a letter."""
    min_stop_words: int = Field(default=2, ge=0)
    """Fewest different stop words."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The stop words; case counts."""


class GopherRepetitionConfig(Config):
    """Gopher's limits on repeated paragraphs, lines and word n-grams, as shares of a text."""

    max_duplicate_paragraphs: float = Field(default=0.30, ge=0, le=1)
    """Largest share of paragraphs (divided by empty lines) that occurred before."""
    max_duplicate_paragraph_characters: float = Field(default=0.20, ge=0, le=1)
    """Largest share of characters in such paragraphs."""
    max_duplicate_lines: float = Field(default=0.30, ge=0, le=1)
    """Largest share of lines (empty ones not counted) that occurred before."""
    max_duplicate_line_characters: float = Field(default=0.20, ge=0, le=1)
    """Largest share of characters in such lines."""
    max_top_ngrams: dict[int, float] = Field(default={2: 0.20, 3: 0.18, 4: 0.16})
    """By n: largest share of characters, spaces between words included, in the most frequent n-gram."""
    max_duplicate_ngrams: dict[int, float] = Field(default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """By n: largest share of characters in n-grams that occurred before, each character counted once."""
    count_single_ngrams: bool = False
    """Let an n-gram that occurs once be the most frequent one, as datatrove does; drops short texts."""

    @field_validator("max_top_ngrams", "max_duplicate_ngrams")
    @classmethod
    def _orders_are_positive(cls, limits: dict[int, float]) -> dict[int, float]:
        if any(order < 1 for order in limits):
            raise ValueError("an n-gram has at least one word")
        return dict(sorted(limits.items()))


class C4Config(Config):
    """C4's rules, most of them for single lines, or mC4's one rule for paragraphs."""

    variant: Literal["c4", "mc4"] = "c4"
    """c4: the rules for lines; mc4: only that there are enough long lines."""
    terminal_punctuation: bool = True
    """Drop lines that do not end in a full stop, question mark, exclamation mark or quotation mark (not in `...`)."""
    max_word_length: int = Field(default=1000, ge=1)
    """Drop lines with a longer word; words are what white space divides."""
    min_words_per_line: int = Field(default=3, ge=0)
    """Drop lines with fewer words."""
    min_sentences: int = Field(default=5, ge=0)
    """Fewest sentences that must be left."""
    remove_citations: bool = True
    """Take out marks such as [1], [edit] and [citation needed]."""
    min_long_lines: int = Field(default=3, ge=1)
    """mc4: fewest lines of at least `long_line_length` characters."""
    long_line_length: int = Field(default=200, ge=1)
    """mc4: characters of a long line."""
    bad_words: tuple[str, ...] = ()
    """Drop texts with one of these words or phrases, in any case; no list comes with Parlance."""
    bad_words_within_words: bool = False
    """Find them inside longer words too: for Chinese, Japanese and Thai, which put no spaces between words."""


class FineWebConfig(Config):
    """FineWeb's own rules, on lines that are not blank."""

    min_punctuated_lines: float = Field(default=0.12, ge=0, le=1)
    """Smallest share of lines that end in a terminal mark of any script."""
    max_short_lines: float = Field(default=0.67, ge=0, le=1)
    """Largest share of short lines."""
    short_line_length: int = Field(default=30, ge=0)
    """Characters of the longest short line."""
    max_duplicate_line_characters: float = Field(default=0.01, ge=0, le=1)
    """Largest share of characters, line ends not counted, in lines that occurred before."""
    max_newlines_per_word: float = Field(default=0.3, ge=0)
    """Most line ends per word, punctuation counted as words."""


class FiltersConfig(Config):
    """The limits of all filters, as FineWeb sets them: C4's rule about terminal punctuation is off."""

    gopher_repetition: GopherRepetitionConfig = GopherRepetitionConfig()
    """Limits of "gopher-repetition"."""
    gopher_quality: GopherQualityConfig = GopherQualityConfig()
    """Limits of "gopher-quality"."""
    c4: C4Config = C4Config(terminal_punctuation=False)
    """Rules of "c4"."""
    fineweb: FineWebConfig = FineWebConfig()
    """Limits of "fineweb"."""
