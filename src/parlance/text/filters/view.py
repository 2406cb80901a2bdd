"""One text as the filters look at it: its lines, runs, words and figures, each computed once, when first asked for.

view = TextView("Some text.\\nAnother line.")
view.totals.words, len(view.lines)         # 6, 2
"""

import functools
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parlance.text.filters.table import WordTable


class Totals(NamedTuple):
    """Sums over the words of a text."""

    words: int
    """All words, punctuation included."""
    proper_words: int
    """Words that are more than punctuation."""
    proper_characters: int
    """Characters in those."""
    words_with_letter: int
    """Words that contain a letter."""
    longest_run: int
    """Characters of the longest run without white space."""


class TextView:
    """A text and what follows from it alone. Not to be kept beyond the judging of one text."""

    def __init__(self, text: str, table: WordTable) -> None:
        self.text = text
        self.table = table

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines, divided at line feeds and all other line ends Unicode knows."""
        return self.text.splitlines()

    @functools.cached_property
    def lines_of_runs(self) -> list[list[str]]:
        """The runs without white space of each line."""
        return [line.split() for line in self.lines]

    @functools.cached_property
    def runs(self) -> NDArray[np.int32]:
        """(R,) the runs without white space, by number in the table."""
        return self.table.look_up(list(chain.from_iterable(self.lines_of_runs)))

    @functools.cached_property
    def lowered(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @property
    def totals(self) -> Totals:
        """Sums over the words."""
        return self._gathered[2]

    @functools.cached_property
    def word_count(self) -> int:
        """How many words, punctuation included."""
        runs, words = self.runs, self.table.arrays()
        return int((words.firsts[runs + 1] - words.firsts[runs]).sum())

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """(W,) a hash of each word."""
        return self._gathered[0]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """(W,) the length of each word in characters."""
        return self._gathered[1]

    @functools.cached_property
    def _gathered(self) -> tuple[NDArray[np.uint64], NDArray[np.int32], Totals]:
        from parlance.text.filters.kernels import gather

        runs, words = self.runs, self.table.arrays()
        hashes = np.empty(self.word_count, dtype=np.uint64)
        lengths = np.empty(self.word_count, dtype=np.int32)
        totals = gather(runs, words.firsts, words.hashes, words.lengths, words.kinds, hashes, lengths)
        return hashes, lengths, Totals(*totals)
