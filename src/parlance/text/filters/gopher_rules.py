"""Gopher's quality rules and its limits on repetition (Rae et al. 2021, arXiv:2112.11446, appendix A.1).

    gopher_quality("Too short.").reason        # "gopher-quality: too few words"
    gopher_repetition("So it goes.\\n" * 9).reason

Where the paper leaves room, they measure as datatrove 0.10 does: words include punctuation marks except where a limit
speaks of words that are more than that, the lines of the quality rules include empty ones, and of several most frequent
n-grams the first counts. Two differences: an n-gram must occur twice to be "most frequent" (`count_single_ngrams`), and
n-grams are equal when their words are, not when their letters are. The words are those of `filters.words`.

Both are English rules: texts in languages without spaces between words fail the one on word length.
"""

import functools
import re

import numpy as np
from numpy.typing import NDArray

from parlance.text.filters.config import GopherQualityConfig, GopherRepetitionConfig
from parlance.text.filters.table import thread_table, word_hash
from parlance.text.filters.verdict import KEEP, Verdict
from parlance.text.filters.view import TextView

_PARAGRAPH_END = re.compile(r"\n{2,}")


def gopher_quality(text: str, config: GopherQualityConfig | None = None) -> Verdict:
    """Whether `text` looks like English prose."""
    return quality_of_view(TextView(text, thread_table()), config or GopherQualityConfig())


def gopher_repetition(text: str, config: GopherRepetitionConfig | None = None) -> Verdict:
    """Whether paragraphs, lines or word n-grams of `text` repeat too much. An empty text is kept."""
    return repetition_of_view(TextView(text, thread_table()), config or GopherRepetitionConfig())


def quality_of_view(view: TextView, config: GopherQualityConfig) -> Verdict:
    """As `gopher_quality`."""
    totals = view.totals
    words, proper = totals.words, totals.proper_words
    if proper < config.min_words:
        return _drop("quality", "too few words", proper, config.min_words)
    if proper > config.max_words:
        return _drop("quality", "too many words", proper, config.max_words)
    if not words:
        return KEEP
    mean = totals.proper_characters / proper if proper else 0.0
    if mean < config.min_mean_word_length:
        return _drop("quality", "words too short", mean, config.min_mean_word_length)
    if mean > config.max_mean_word_length:
        return _drop("quality", "words too long", mean, config.max_mean_word_length)
    text = view.text
    hashes = text.count("#") / words
    if hashes > config.max_symbols_per_word:
        return _drop("quality", "too many hash signs", hashes, config.max_symbols_per_word)
    ellipses = (text.count("...") + text.count("…")) / words
    if ellipses > config.max_symbols_per_word:
        return _drop("quality", "too many ellipses", ellipses, config.max_symbols_per_word)
    lines = view.lines
    if "-" in text or "•" in text:
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
        if bullets > config.max_bullet_lines:
            return _drop("quality", "too many bullet lines", bullets, config.max_bullet_lines)
    if ellipses:
        open_ends = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        if open_ends > config.max_ellipsis_lines:
            return _drop("quality", "too many lines end in an ellipsis", open_ends, config.max_ellipsis_lines)
    alphabetic = totals.words_with_letter / words
    if alphabetic < config.min_alphabetic_words:
        return _drop("quality", "too few words with letters", alphabetic, config.min_alphabetic_words)
    from parlance.text.filters.kernels import count_present

    stop_words = count_present(view.hashes, _hashes_of(config.stop_words))
    if stop_words < config.min_stop_words:
        return _drop("quality", "too few stop words", stop_words, config.min_stop_words)
    return KEEP


def repetition_of_view(view: TextView, config: GopherRepetitionConfig) -> Verdict:
    """As `gopher_repetition`."""
    text = view.text
    if not text:
        return KEEP
    if "\n" in text:
        for unit, parts, most, most_characters in (
            (
                "paragraphs",
                _paragraphs(text),
                config.max_duplicate_paragraphs,
                config.max_duplicate_paragraph_characters,
            ),
            ("lines", _lines(text), config.max_duplicate_lines, config.max_duplicate_line_characters),
        ):
            number, characters = duplicates(parts)
            if number / len(parts) > most:
                return _drop("repetition", f"duplicate {unit}", number / len(parts), most)
            if characters / len(text) > most_characters:
                return _drop("repetition", f"characters in duplicate {unit}", characters / len(text), most_characters)
    from parlance.text.filters.kernels import repeated_ngrams

    top_orders, duplicate_orders = _orders(tuple(config.max_top_ngrams)), _orders(tuple(config.max_duplicate_ngrams))
    top, duplicate = np.empty_like(top_orders), np.empty_like(duplicate_orders)
    repeated_ngrams(view.hashes, view.lengths, top_orders, duplicate_orders, config.count_single_ngrams, top, duplicate)
    for kind, found, limits in (
        ("most frequent", top, config.max_top_ngrams),
        ("duplicate", duplicate, config.max_duplicate_ngrams),
    ):
        for characters, (order, limit) in zip(found.tolist(), limits.items(), strict=True):
            if characters / len(text) > limit:
                name = f"characters in {kind} {order}-gram" + ("s" if kind == "duplicate" else "")
                return _drop("repetition", name, characters / len(text), limit)
    return KEEP


def duplicates(parts: list[str]) -> tuple[int, int]:
    """How many of `parts` occurred before, and how many characters those have."""
    different = set(parts)
    if len(different) == len(parts):
        return 0, 0
    return len(parts) - len(different), sum(map(len, parts)) - sum(map(len, different))


def _paragraphs(text: str) -> list[str]:
    return _PARAGRAPH_END.split(text.strip()) if "\n\n" in text else [text]


def _lines(text: str) -> list[str]:
    """Divided at runs of line feeds; one at either end of the text makes an empty line there, as in datatrove."""
    lines = [line for line in text.split("\n") if line]
    return [""] * text.startswith("\n") + lines + [""] * text.endswith("\n")


@functools.lru_cache(maxsize=16)
def _orders(orders: tuple[int, ...]) -> NDArray[np.int64]:
    return np.array(orders, dtype=np.int64)


@functools.lru_cache(maxsize=16)
def _hashes_of(words: tuple[str, ...]) -> NDArray[np.uint64]:
    return np.array(sorted({word_hash(word) for word in words}), dtype=np.uint64)


def _drop(family: str, rule: str, figure: float, limit: float) -> Verdict:
    return Verdict(f"gopher-{family}: {rule}", float(figure), float(limit))
