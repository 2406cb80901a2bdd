"""A memory of how runs of text divide into words, so that `filters.words` works on each run once.

    table = WordTable()
    runs = table.look_up("do not worry".split())   # one small integer a run
    table.arrays()                                 # what the loops in filters.kernels read about them

A word is known by its 64-bit hash (BLAKE2b of its UTF-8): two of the N different words of a text share one with a
probability of N^2 / 2^65, 10^-11 for 20 000 words. Nothing depends on what the table has seen before. It is emptied
between texts when it has grown to about 80 MB; one table belongs to one thread.
"""

import hashlib
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from parlance.text.filters.characters import SENTENCE_MARKS, SYMBOLS, is_punctuation
from parlance.text.filters.words import split_run

# Bits of what is known of a word.
MORE_THAN_SYMBOLS = 1
HAS_LETTER = 2
SENTENCE_MARK = 4
PUNCTUATION = 8

_MOST_RUNS = 200_000
_MOST_CHARACTERS = 8_000_000

Value = TypeVar("Value")
Number = TypeVar("Number", bound=np.generic)
UInt64 = NDArray[np.uint64]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class WordArrays:
    """R runs and their words, end to end."""

    firsts: Int32
    """(R + 1,) place of each run's first word; the next entry is behind its last one."""
    hashes: UInt64
    """(words,) one hash a word."""
    lengths: Int32
    """(words,) in characters."""
    kinds: UInt8
    """(words,) bits: MORE_THAN_SYMBOLS, HAS_LETTER, SENTENCE_MARK, PUNCTUATION."""


class WordTable:
    """Runs without white space by number, and the words in each."""

    def __init__(self) -> None:
        self._numbers = _Memo(self._number)
        self._known = _Memo(_facts)
        self.clear()

    def look_up(self, runs: Sequence[str]) -> Int32:
        """Numbers of `runs`, valid until the table is cleared."""
        if len(runs) > 1:
            numbers = np.array(operator.itemgetter(*runs)(self._numbers), dtype=np.int32)
        else:
            numbers = np.array([self._numbers[run] for run in runs], dtype=np.int32)
        if self._ends:
            self._enter()
        return numbers

    def arrays(self) -> WordArrays:
        """What is known of all runs so far."""
        return WordArrays(self._firsts, self._hashes, self._lengths, self._kinds)

    def make_room(self) -> None:
        """Clear the table if there is too much in it."""
        if len(self._numbers) > _MOST_RUNS or self._characters > _MOST_CHARACTERS:
            self.clear()

    def clear(self) -> None:
        """Forget everything; numbers looked up before are void then."""
        self._numbers.clear()
        self._known.clear()
        self._characters = self._runs = self._words = 0
        self._firsts = np.zeros(1024, dtype=np.int32)
        self._hashes = np.zeros(1024, dtype=np.uint64)
        self._lengths = np.zeros(1024, dtype=np.int32)
        self._kinds = np.zeros(1024, dtype=np.uint8)
        # Runs that are numbered but not in the arrays yet: their words, and how many there are up to each one's end.
        self._new: list[tuple[int, int, int]] = []
        self._ends: list[int] = []

    def _number(self, run: str) -> int:
        number = len(self._numbers)
        self._new += [self._known[word] for word in split_run(run)]
        self._ends.append(self._words + len(self._new))
        self._characters += len(run)
        return number

    def _enter(self) -> None:
        runs, words = self._runs + len(self._ends), self._words + len(self._new)
        self._firsts = _with_room(self._firsts, runs + 1)
        self._hashes = _with_room(self._hashes, words)
        self._lengths = _with_room(self._lengths, words)
        self._kinds = _with_room(self._kinds, words)
        self._firsts[self._runs + 1 : runs + 1] = self._ends
        hashes, lengths, kinds = zip(*self._new, strict=True)
        self._hashes[self._words : words] = np.array(hashes, dtype=np.uint64)
        self._lengths[self._words : words] = lengths
        self._kinds[self._words : words] = kinds
        self._runs, self._words = runs, words
        self._new, self._ends = [], []


def word_hash(word: str) -> int:
    """64 bits that stand for the word."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8, usedforsecurity=False).digest()
    return int.from_bytes(digest, "little")


def _facts(word: str) -> tuple[int, int, int]:
    return word_hash(word), len(word), word_kind(word)


def _with_room(array: NDArray[Number], size: int) -> NDArray[Number]:
    """`array`, or a longer copy of it if it has fewer than `size` entries."""
    if size <= len(array):
        return array
    return np.concatenate([array, np.zeros(max(size - len(array), len(array)), dtype=array.dtype)])


def word_kind(word: str) -> int:
    """The bits that hold for the word."""
    if word.isascii() and word.isalpha():
        return MORE_THAN_SYMBOLS | HAS_LETTER
    return (
        MORE_THAN_SYMBOLS * (not SYMBOLS.issuperset(word))
        | HAS_LETTER * any(map(str.isalpha, word))
        | SENTENCE_MARK * (word in SENTENCE_MARKS)
        | PUNCTUATION * is_punctuation(word)
    )


class _Memo(dict[str, Value], Generic[Value]):
    """A dictionary that makes what it lacks."""

    def __init__(self, make: Callable[[str], Value]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> Value:
        value = self[key] = self._make(key)
        return value


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.table = WordTable()


_of_thread = _OfThread()


def thread_table() -> WordTable:
    """The calling thread's table, with room for a text."""
    _of_thread.table.make_room()
    return _of_thread.table
