"""The cleaning of C4 (Raffel et al. 2020, JMLR 21, section 2.2, and its published code) and mC4's rule for paragraphs.

    c4("One line only.", C4Config()).reason          # "c4: too few sentences"
    c4(page).text                                    # the page without the lines that C4 drops

Lines are looked at one by one: a line with a word above 1000 characters is dropped; citation marks are taken out; a
line without terminal punctuation or with fewer than three words is dropped; "lorem ipsum" drops the whole text; a line
with "javascript" is dropped; a curly bracket drops the whole text; a line with a phrase of cookie notices is dropped.
At least five sentences must be left; then bad words are looked for, where a list is given. Words here are what white
space divides. A sentence ends at a terminal mark that is a word of its own (see `filters.words`: not that of "Mr." or
"3.5") and the punctuation behind it; every line ends one.

Lines that are kept lose the white space at their ends and are joined by line feeds.
"""

import functools
import re
from itertools import accumulate

import numpy as np

from parlance.text.filters.config import C4Config
from parlance.text.filters.table import thread_table
from parlance.text.filters.verdict import Verdict
from parlance.text.filters.view import TextView

_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_TERMINAL = (".", "?", "!", '"', "'")
_NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def c4(text: str, config: C4Config | None = None) -> Verdict:
    """What C4 leaves of `text`, or why it drops it."""
    return c4_of_view(TextView(text, thread_table()), config or C4Config())


def c4_of_view(view: TextView, config: C4Config) -> Verdict:
    """As `c4`."""
    if config.variant == "mc4":
        long_lines = sum(len(line) >= config.long_line_length for line in view.text.split("\n"))
        if long_lines < config.min_long_lines:
            return _drop("too few long lines", long_lines, config.min_long_lines)
        kept = view.text
    else:
        lines = _plain_lines(view, config) if _is_plain(view, config) else _lines(view, config)
        if isinstance(lines, Verdict):
            return lines
        kept = "\n".join(lines).strip()
    if config.bad_words:
        found = len(_bad_words(config.bad_words, config.bad_words_within_words).findall(kept.lower()))
        if found:
            return _drop("bad word", found, 0)
    return Verdict(text=None if kept == view.text else kept)


def _is_plain(view: TextView, config: C4Config) -> bool:
    """Whether only the rules on terminal punctuation and on the number of words can apply; they mostly are all."""
    text, lowered = view.text, view.lowered
    return not (
        "{" in text
        or (config.remove_citations and "[" in text and _CITATION.search(text))
        or "javascript" in lowered
        or "lorem ipsum" in lowered
        or any(phrase in lowered for phrase in _NOTICES)
        or view.totals.longest_run > config.max_word_length
    )


def _plain_lines(view: TextView, config: C4Config) -> list[str] | Verdict:
    """The lines that are kept of a plain text, which is most of them: without a look at each one's content."""
    lines = [line.strip() for line in view.lines]
    sizes = [len(runs) for runs in view.lines_of_runs]
    fewest = config.min_words_per_line
    if config.terminal_punctuation:
        keeps = [size >= fewest and _ends(line) for line, size in zip(lines, sizes, strict=True)]
    else:
        keeps = [size >= fewest for size in sizes]
    runs = view.runs
    if not all(keeps):
        lines = [line for line, keep in zip(lines, keeps, strict=True) if keep]
        runs = runs[np.repeat(keeps, sizes)]
        sizes = [size for size, keep in zip(sizes, keeps, strict=True) if keep]
    from parlance.text.filters.kernels import count_sentences

    ends = np.fromiter(accumulate(sizes), dtype=np.int32, count=len(sizes))
    words = view.table.arrays()
    sentences = count_sentences(runs, ends, words.firsts, words.kinds, config.min_sentences)
    return _drop("too few sentences", sentences, config.min_sentences) if sentences < config.min_sentences else lines


def _lines(view: TextView, config: C4Config) -> list[str] | Verdict:
    """The lines that are kept, by all rules."""
    kept = []
    for whole in view.lines:
        line = whole.strip()
        runs = line.split()
        if any(len(run) > config.max_word_length for run in runs):
            continue
        if config.remove_citations:
            line = _CITATION.sub("", line)
        if (config.terminal_punctuation and not _ends(line)) or len(runs) < config.min_words_per_line:
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return _drop("lorem ipsum", lowered.count("lorem ipsum"), 0)
        if "javascript" in lowered:
            continue
        if "{" in line:
            return _drop("curly bracket", line.count("{"), 0)
        if not any(phrase in lowered for phrase in _NOTICES):
            kept.append(line)
    sentences = _sentences(kept, view, config.min_sentences)
    return _drop("too few sentences", sentences, config.min_sentences) if sentences < config.min_sentences else kept


def _sentences(lines: list[str], view: TextView, enough: int) -> int:
    from parlance.text.filters.kernels import count_sentences

    runs = [line.split() for line in lines]
    ends = np.fromiter(accumulate(map(len, runs)), dtype=np.int32, count=len(runs))
    numbers = view.table.look_up([run for line in runs for run in line])
    words = view.table.arrays()
    return count_sentences(numbers, ends, words.firsts, words.kinds, enough)


def _ends(line: str) -> bool:
    return line.endswith(_TERMINAL) and not line.endswith("...")


@functools.lru_cache(maxsize=16)
def _bad_words(words: tuple[str, ...], within: bool) -> re.Pattern[str]:
    """One pattern for all of them, the longest first."""
    one = "|".join(re.escape(word.lower()) for word in sorted(set(words), key=lambda word: (-len(word), word)))
    return re.compile(one if within else rf"(?:\W|^)(?:{one})(?=\W|$)")


def _drop(rule: str, figure: float, limit: float) -> Verdict:
    return Verdict(f"c4: {rule}", float(figure), float(limit))
