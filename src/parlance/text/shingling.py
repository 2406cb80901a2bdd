"""Text -> simplified words -> 64-bit hashes of word n-grams, with the characters that each covers.

The simplification is that of FineWeb (Penedo et al. 2024, arXiv:2406.17557), so that two copies of a text that
differ only in case, accents, figures, punctuation or layout have the same words. Character by character:

1. lower case (the Greek final sigma becomes the other one),
2. canonical decomposition (NFD); combining marks (Mn, Me) and format characters (Cf, such as the soft hyphen) vanish,
   except the zero-width space, which separates,
3. every decimal digit (Nd) becomes `0`,
4. letters (L*), numbers (N*) and spacing vowel signs (Mc) make words, and everything else separates them. Each Chinese
   or Japanese character is a word of its own.

It does not divide Thai, Lao, Khmer or Burmese runs into words, does not stem, and keeps no word: only their hashes.

Hashes depend on nothing but the words, not on machine, process or version of Parlance: a word's UTF-8 bytes, in
little-endian blocks of 8 padded with zeros, are absorbed by h <- x ^ (x >> 32), x = (h ^ block) * K, from h = K', and
finished by the mixer of SplitMix64 (Steele et al. 2014); an n-gram's hash is that mixer of sum_i P^(n-1-i) * word_i
modulo 2^64. Characters newer than Unicode 14 may separate words under one version of Python and belong to them under a
later one. The hash is no secret: texts that collide can be constructed.

    shingle_hashes("The quick brown fox", 2)          # 3 hashes
    word_hashes("Crème brûlée, 12.5 %").hashes        # 4: creme brulee 00 0

Memory: 12 bytes for each byte of the one text at hand.
"""

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

# What the table says of a character: one of these two, or the code point that takes its place, with a flag or without.
_SEPARATOR = 0
_VANISHES = 1
_WORD_OF_ITS_OWN = 1 << 24
_SEVERAL = 1 << 25  # the rest is the place in the list of expansions: their number, then the code points
_CODE_POINT = (1 << 24) - 1

_START = np.uint64(0x243F6A8885A308D3)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)
_BASE = np.uint64(0x9E3779B97F4A7C13)  # 3 modulo 8: differences of its first 16 powers keep 59 bits or more
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ZERO, _EIGHT, _MASK_6 = np.uint64(0), np.uint64(8), np.uint64(0x3F)
_S6, _S12, _S18, _S27, _S30, _S31, _S32 = (np.uint64(shift) for shift in (6, 12, 18, 27, 30, 31, 32))
_ONE, _THREE, _S7, _BYTE = np.uint64(1), np.uint64(3), np.uint64(7), np.uint64(0xFF)
_ONES = np.uint64(0x0101010101010101)
_TOPS = np.uint64(0x80 * 0x0101010101010101)
_CASE = np.uint64(0x20 * 0x0101010101010101)
_ZEROS = np.uint64(0x30 * 0x0101010101010101)
# Added to a byte below 0x80 they set its top bit from "a", after "z", from "0", after "9".
_TO_TOP_A, _TO_TOP_Z = np.uint64(0x1F * 0x0101010101010101), np.uint64(0x05 * 0x0101010101010101)
_TO_TOP_0, _TO_TOP_9 = np.uint64(0x50 * 0x0101010101010101), np.uint64(0x46 * 0x0101010101010101)
_LEAD_2, _LEAD_3, _LEAD_4, _CONTINUES = (np.uint64(byte) for byte in (0xC0, 0xE0, 0xF0, 0x80))


@dataclass(frozen=True, eq=False)
class WordHashes:
    """The W simplified words of a text in order."""

    hashes: UInt64
    """(W,) one 64-bit hash a word."""
    starts: Int64
    """(W,) the character of the text at which each word begins."""
    ends: Int64
    """(W,) the character after its last one, marks that belong to it included."""


def word_hashes(text: str) -> WordHashes:
    """Hashes of the simplified words of `text` and where they stand, in characters."""
    buffer = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    return _words_of_buffer(buffer, text.isascii())


def shingle_hashes(text: str, n: int) -> UInt64:
    """Hash of each run of `n` >= 1 words, in order: shape (words - n + 1,); empty where `text` has fewer words."""
    return ngram_hashes(word_hashes(text).hashes, n)


def shingle_spans(text: str, n: int) -> WordHashes:
    """As `shingle_hashes`, and for each run the characters [start, end) of `text` that it covers."""
    words = word_hashes(text)
    hashes = ngram_hashes(words.hashes, n)
    return WordHashes(hashes, words.starts[: len(hashes)], words.ends[len(words.ends) - len(hashes) :])


def ngram_hashes(words: UInt64, n: int) -> UInt64:
    """Hash of each run of `n` >= 1 of the word hashes (W,): shape (max(W - n + 1, 0),)."""
    if n < 1:
        raise ValueError(f"an n-gram has at least one word, not {n}")
    hashes = np.empty(max(len(words) - n + 1, 0), dtype=np.uint64)
    roll(words, len(words), n, hashes)
    return hashes


def _words_of_buffer(buffer: UInt8, is_ascii: bool) -> WordHashes:
    table, expansions = character_table(is_ascii)
    most = len(buffer) // 2 + 1  # a word takes a letter and a separator, or a character of at least two bytes
    hashes = np.empty(most, dtype=np.uint64)
    starts = np.empty(most, dtype=np.int64)
    ends = np.empty(most, dtype=np.int64)
    count = hash_words(buffer, 0, len(buffer), table, expansions, hashes, starts, ends)
    return WordHashes(hashes[:count], starts[:count], ends[:count])


@functools.cache
def character_table(is_ascii: bool) -> tuple[Int32, Int32]:
    """What becomes of each code point, and the expansions of those that become several; made once (0.1 s, 4.5 MB)."""
    size = 0x80 if is_ascii else 0x110000
    planes = range(size) if is_ascii else (*range(0x40000), *range(0xE0000, 0xF0000))  # the others hold no character
    table = np.zeros(size, dtype=np.int32)
    expansions: list[int] = []
    for code_point in planes:
        category = unicodedata.category(chr(code_point))
        if category in ("Mn", "Me", "Cf"):
            table[code_point] = _SEPARATOR if code_point == 0x200B else _VANISHES
        elif category == "Nd":
            table[code_point] = ord("0")
        elif category[0] in "LN" or category == "Mc":
            becomes = _simplified(chr(code_point))
            if len(becomes) == 1:
                alone = _WORD_OF_ITS_OWN if _is_word_of_its_own(ord(becomes)) else 0
                table[code_point] = ord(becomes) | alone
            elif becomes:
                table[code_point] = _SEVERAL | len(expansions)
                expansions += [len(becomes), *map(ord, becomes)]
            else:
                table[code_point] = _VANISHES
    return table, np.array(expansions or [0], dtype=np.int32)


def _simplified(character: str) -> str:
    decomposed = unicodedata.normalize("NFD", character.lower()).replace("ς", "σ")
    return "".join(c for c in decomposed if unicodedata.category(c) not in ("Mn", "Me"))


def _is_word_of_its_own(code_point: int) -> bool:
    """Chinese characters and both Japanese syllabaries, their marks of repetition and length included."""
    return (
        0x3005 <= code_point <= 0x3007
        or 0x3031 <= code_point <= 0x30FF
        or 0x31F0 <= code_point <= 0x31FF
        or 0x3400 <= code_point <= 0x4DBF
        or 0x4E00 <= code_point <= 0x9FFF
        or 0xF900 <= code_point <= 0xFAFF
        or 0xFF66 <= code_point <= 0xFF9F
        or 0x1AFF0 <= code_point <= 0x1B16F
        or 0x20000 <= code_point <= 0x3FFFF
    )


@compiled
def is_word_of_its_own(value: int) -> bool:
    """Whether what `character_table` says of a character is that it is Chinese or Japanese."""
    return (value & _WORD_OF_ITS_OWN) != 0


@compiled
def mix(x: np.uint64) -> np.uint64:
    """A bijection of 64-bit integers that spreads every input bit: the finaliser of SplitMix64."""
    x = (x ^ (x >> _S30)) * _MIX_1
    x = (x ^ (x >> _S27)) * _MIX_2
    return x ^ (x >> _S31)


@compiled
def roll(words: UInt64, count: int, n: int, hashes: UInt64) -> int:
    """Write the hashes of the n-grams of the first `count` words into `hashes`; returns how many."""
    if count < n:
        return 0
    leaving = np.uint64(1)
    for _ in range(n):
        leaving *= _BASE
    rolled = _ZERO
    for index in range(n - 1):
        rolled = rolled * _BASE + words[index]
    for index in range(n - 1, count):
        rolled = rolled * _BASE + words[index]
        if index >= n:
            rolled -= leaving * words[index - n]
        hashes[index - n + 1] = mix(rolled)
    return count - n + 1


@compiled
def hash_words(
    text: UInt8, begin: int, end: int, table: Int32, expansions: Int32, hashes: UInt64, starts: Int64, ends: Int64
) -> int:
    """Hash the words of the UTF-8 in text[begin:end] into `hashes`, with their places in characters; returns how many.

    Bytes that are no UTF-8 separate words. The outputs must hold (end - begin) // 2 + 1 words.
    """
    count = 0
    position = 0  # in characters
    start = last = 0
    is_open = alone = False
    state = _START
    block = shift = _ZERO
    at = begin
    while at < end:
        if at + 8 <= end and not alone:
            # Eight bytes at once where they begin with ASCII letters and digits.
            folded, outside = _fold_eight(_load(text, np.uint64(at)))
            lowest = outside & (_ZERO - outside)  # the top bit of the first byte that is neither; none: 0
            taken = (lowest >> _S7) - _ONE  # all bits below that byte; none: all
            length = ((taken & _ONES) * _ONES) >> np.uint64(56)
            if length:
                if not is_open:
                    is_open = True
                    start = position
                    state = _START
                    block = shift = _ZERO
                folded &= taken
                block |= folded << shift
                shift += length << _THREE
                if shift >= 64:
                    state = _absorb(state, block)
                    shift -= np.uint64(64)
                    block = folded >> ((length << _THREE) - shift) if shift else _ZERO
                position += int(length)
                at += int(length)
                last = position
                if length == 8:
                    continue
        code_point, at = decode(text, at, end)
        value = table[code_point] if 0 <= code_point < table.size else _SEPARATOR
        position += 1
        if value == _VANISHES:
            last = position
            continue
        if is_open and (value == _SEPARATOR or alone or value & _WORD_OF_ITS_OWN):
            if shift:
                state = _absorb(state, block)
            hashes[count] = mix(state)
            starts[count] = start
            ends[count] = last
            count += 1
            is_open = False
        if value == _SEPARATOR:
            continue
        if not is_open:
            is_open = True
            start = position - 1
            state = _START
            block = shift = _ZERO
            alone = (value & _WORD_OF_ITS_OWN) != 0
        last = position
        if value < 0x80:
            block |= np.uint64(value) << shift
            shift += _EIGHT
            if shift == 64:
                state = _absorb(state, block)
                block = shift = _ZERO
            continue
        first, number = 0, 1
        if value & _SEVERAL:
            first = (value & _CODE_POINT) + 1
            number = expansions[first - 1]
        for index in range(first, first + number):
            code_point = expansions[index] if value & _SEVERAL else value & _CODE_POINT
            encoded, length = _encode(np.uint64(code_point))
            block |= encoded << shift
            shift += length
            if shift >= 64:
                state = _absorb(state, block)
                shift -= np.uint64(64)
                block = encoded >> (length - shift) if shift else _ZERO
    if is_open:
        if shift:
            state = _absorb(state, block)
        hashes[count] = mix(state)
        starts[count] = start
        ends[count] = last
        count += 1
    return count


@compiled
def decode(text: UInt8, at: int, end: int) -> tuple[int, int]:
    """The code point at text[at] and where the next one begins; -1 for a byte that begins no UTF-8 before `end`."""
    byte = int(text[at])
    if byte < 0x80:
        return byte, at + 1
    size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
    if byte < 0xC0 or at + size > end:
        return -1, at + 1
    code_point = byte & (0x7F >> size)
    for offset in range(1, size):
        code_point = (code_point << 6) | (text[at + offset] & 0x3F)
    return code_point, at + size


@compiled
def _load(text: UInt8, at: np.uint64) -> np.uint64:
    """Eight bytes as a little-endian integer; LLVM makes one load of it, for an unsigned index cannot be negative."""
    loaded = _ZERO
    for offset in range(8):
        loaded |= np.uint64(text[at + np.uint64(offset)]) << np.uint64(8 * offset)
    return loaded


@compiled
def _fold_eight(x: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Eight bytes with ASCII letters in lower case, digits 0 and the rest zero; and the top bits of that rest."""
    low = x & ~_TOPS
    lower = low | _CASE
    letters = (lower + _TO_TOP_A) & ~(lower + _TO_TOP_Z) & ~x & _TOPS
    digits = (low + _TO_TOP_0) & ~(low + _TO_TOP_9) & ~x & _TOPS
    folded = (lower & ((letters >> _S7) * _BYTE)) | (_ZEROS & ((digits >> _S7) * _BYTE))
    return folded, ~(letters | digits) & _TOPS


@compiled
def _absorb(state: np.uint64, block: np.uint64) -> np.uint64:
    state = (state ^ block) * _FACTOR
    return state ^ (state >> _S32)


@compiled
def _encode(code_point: np.uint64) -> tuple[np.uint64, np.uint64]:
    """UTF-8 of a code point as a little-endian integer, and its length in bits."""
    low = _CONTINUES | (code_point & _MASK_6)
    if code_point < 0x80:
        return code_point, np.uint64(8)
    if code_point < 0x800:
        return (_LEAD_2 | (code_point >> _S6)) | (low << np.uint64(8)), np.uint64(16)
    middle = _CONTINUES | ((code_point >> _S6) & _MASK_6)
    if code_point < 0x10000:
        return (_LEAD_3 | (code_point >> _S12)) | (middle << np.uint64(8)) | (low << np.uint64(16)), np.uint64(24)
    upper = _CONTINUES | ((code_point >> _S12) & _MASK_6)
    lead = _LEAD_4 | (code_point >> _S18)
    return lead | (upper << np.uint64(8)) | (middle << np.uint64(16)) | (low << np.uint64(24)), np.uint64(32)
