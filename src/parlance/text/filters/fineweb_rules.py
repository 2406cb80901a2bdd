"""FineWeb's own rules: punctuation at line ends, short lines, duplicate lines, line ends per word (Penedo et al. 2024,
arXiv:2406.17557, appendix C).

    fineweb("a\\nb\\nc\\n" * 9).reason          # "fineweb: too few lines end in punctuation"

Lines are divided at line feeds alone; blank ones do not count. Words are those of `filters.words`.
"""

from parlance.text.filters.characters import SENTENCE_TERMINALS
from parlance.text.filters.config import FineWebConfig
from parlance.text.filters.gopher_rules import duplicates
from parlance.text.filters.table import thread_table
from parlance.text.filters.verdict import KEEP, Verdict
from parlance.text.filters.view import TextView


def fineweb(text: str, config: FineWebConfig | None = None) -> Verdict:
    """Whether the lines of `text` are those of prose rather than of lists, menus and boilerplate."""
    return fineweb_of_view(TextView(text, thread_table()), config or FineWebConfig())


def fineweb_of_view(view: TextView, config: FineWebConfig) -> Verdict:
    """As `fineweb`."""
    text = view.text
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return _drop("no text", 0, 1)
    punctuated = sum(line[-1] in SENTENCE_TERMINALS for line in lines) / len(lines)
    if punctuated < config.min_punctuated_lines:
        return _drop("too few lines end in punctuation", punctuated, config.min_punctuated_lines)
    short = sum(len(line) <= config.short_line_length for line in lines) / len(lines)
    if short > config.max_short_lines:
        return _drop("too many short lines", short, config.max_short_lines)
    newlines = text.count("\n")
    duplicate = duplicates(lines)[1] / (len(text) - newlines)
    if duplicate > config.max_duplicate_line_characters:
        return _drop("characters in duplicate lines", duplicate, config.max_duplicate_line_characters)
    per_word = newlines / view.word_count
    if per_word > config.max_newlines_per_word:
        return _drop("too many line ends", per_word, config.max_newlines_per_word)
    return KEEP


def _drop(rule: str, figure: float, limit: float) -> Verdict:
    return Verdict(f"fineweb: {rule}", float(figure), float(limit))
