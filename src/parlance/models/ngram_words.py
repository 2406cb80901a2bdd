"""Texts scored straight from their bytes by an n-gram model of words, as n-gram toolkits read them.

A line is a sentence, whose end is predicted too; a word is what ASCII white space or a NUL separates, all other bytes
are part of it. One compiled walk numbers the words by a hash of their bytes, another scores the numbers, in as many
parts as there are cores. No string is made of any word. Words are told apart by 64 bits of a hash alone: a million of
them hold two that are taken for one once in 40 million times.

    table = word_table(["<unk>", "</s>", "the", "fox"], unknown=0, end=1)
    ids, log_probs = score_sentences(b"the fox\\nthe\\n", table, model)         # the fox </s> the </s>

The hash is FNV-1a (Fowler, Noll and Vo), finished as MurmurHash3 does, so that its low bits can be an address.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from parlance.core.compiled import compiled
from parlance.core.devices import usable_cores
from parlance.core.errors import UserError
from parlance.models.ngram import NGramModel
from parlance.models.ngram_counts import Int32, checked_tokens
from parlance.models.ngram_trie import Float64, score_in_one_part

UInt64 = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]

_START = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
_LINE_BREAK = 10
_BYTES_A_THREAD = 1 << 19
"""Fewer are not worth a thread."""


class WordTable(NamedTuple):
    """What the compiled functions read: open addressing, searched from the place that a hash's low bits name."""

    entries: UInt64
    """(S, 2) hash and number of each word; S is a power of two. A hash of 0: nothing is here."""
    unknown: int
    """The number of words that are not in the table; -1: they have none."""
    end: int
    """The number of the end of a sentence."""


def word_table(words: Sequence[str], *, unknown: int | None, end: int) -> WordTable:
    """The table of `words`, each numbered by its place; a text that spells word `end` does not mean it.

    A word that holds white space is not in the table: no text has it. Raises UserError where a word is empty, holds a
    line break, or is there twice.
    """
    spellings = np.frombuffer(_bytes("\n".join((*words, ""))), np.uint8)
    entries = np.zeros((1 << (2 * len(words)).bit_length(), 2), np.uint64)
    whole = np.count_nonzero(spellings == _LINE_BREAK) == len(words)
    if not whole or _enter(spellings, end, entries) != len(words):
        counts = Counter(words)
        wrong = next((word for word in words if not word or "\n" in word or counts[word] > 1), "")
        raise UserError(f"{wrong!r} of the vocabulary is empty, holds a line break or is there twice")
    entries.flags.writeable = False
    return WordTable(entries, -1 if unknown is None else unknown, end)


def score_sentences(text: bytes, table: WordTable, model: NGramModel) -> tuple[Int32, Float64]:
    """(the number of each word and of each line's end, its log-probability in nats), in the order of the text.

    What follows the last line break, if anything, is a line too. Raises UserError for a word that is not in the table
    where nothing stands for such words, and for one whose number the model has not.
    """
    bounds = _parts(text, max(1, min(usable_cores(), len(text) // _BYTES_A_THREAD)))
    data = np.frombuffer(text, np.uint8)

    def part(start: int, stop: int) -> tuple[Int32, Float64]:
        numbers = np.empty(stop - start + 1, np.int32)  # "a" is a word and the end of a sentence
        ids = numbers[: _number(data[start:stop], table, numbers)]
        if table.unknown < 0 and (ids < 0).any():
            words = [word for line in text[start:stop].split(b"\n") for word in _words(line)]
            word = words[int(np.flatnonzero(ids[ids != table.end] < 0)[0])].decode(errors="replace")
            raise UserError(f"the model does not know the word {word!r}, and has no <unk> for such words")
        return ids, score_in_one_part(checked_tokens(ids, model.vocab_size), model.trie)

    if len(bounds) == 2:
        return part(*bounds)
    with ThreadPoolExecutor(len(bounds) - 1) as pool:
        done = list(pool.map(part, bounds[:-1], bounds[1:]))
    return np.concatenate([ids for ids, _ in done]), np.concatenate([scores for _, scores in done])


def _parts(text: bytes, parts: int) -> list[int]:
    """Where each of at most `parts` parts of whole lines begins, and the end."""
    starts = (text.find(b"\n", len(text) * part // parts) + 1 for part in range(1, parts))
    return [0, *sorted({*starts} - {0, len(text)}), len(text)]


def _bytes(word: str) -> bytes:
    """A word as text has it; what is no UTF-8 there is a lone surrogate here."""
    return word.encode(errors="surrogateescape")


def _words(line: bytes) -> list[bytes]:
    """The words of a line, as the compiled walk cuts them."""
    return line.replace(b"\0", b" ").split()


@compiled
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13 or byte == 0


@compiled
def _finished(value: np.uint64) -> np.uint64:
    """The low bits of an FNV hash depend on few bytes: all bits mixed. Never 0."""
    value ^= value >> np.uint64(33)
    value *= _MIX_1
    value ^= value >> np.uint64(33)
    value *= _MIX_2
    value ^= value >> np.uint64(33)
    return value if value != np.uint64(0) else np.uint64(1)


@compiled
def _place(hashed: np.uint64, entries: UInt64) -> int:
    """Where the entry of a hash is, or, where its first entry is 0, would be."""
    mask = np.uint64(entries.shape[0] - 1)
    place = hashed & mask
    while entries[place, 0] != np.uint64(0) and entries[place, 0] != hashed:
        place = (place + np.uint64(1)) & mask
    return int(place)


@compiled
def _enter(spellings: Bytes, end: int, entries: UInt64) -> int:
    """Enter words that line breaks close; returns how many there were before the first that is empty or there twice."""
    number, start, value, torn = 0, 0, _START, False
    for i in range(spellings.size):
        byte = int(spellings[i])
        if byte != _LINE_BREAK:
            torn = torn or _is_space(byte)  # the walk over a text would cut it there
            value = (value ^ np.uint64(byte)) * _PRIME
            continue
        hashed = _finished(value)
        place = _place(hashed, entries)
        if i == start or (not torn and entries[place, 0] != np.uint64(0)):
            return number
        if number != end and not torn:
            entries[place, 0] = hashed
            entries[place, 1] = np.uint64(number)
        number, start, value, torn = number + 1, i + 1, _START, False
    return number


@compiled
def _number(text: Bytes, table: WordTable, numbers: Int32) -> int:
    """Write the number of each word and of each line's end; returns how many there are."""
    count = 0
    value = _START
    inside = open_line = False
    for i in range(text.size + 1):
        byte = int(text[i]) if i < text.size else 32  # what ends the last word
        if not _is_space(byte):
            value = (value ^ np.uint64(byte)) * _PRIME
            inside = open_line = True
            continue
        if inside:
            place = _place(_finished(value), table.entries)
            known = table.entries[place, 0] != np.uint64(0)
            numbers[count] = int(table.entries[place, 1]) if known else table.unknown
            count += 1
            value, inside = _START, False
        if byte == _LINE_BREAK:
            numbers[count] = table.end
            count += 1
            open_line = False
    if open_line:
        numbers[count] = table.end
        count += 1
    return count
