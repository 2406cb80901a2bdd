"""Cutting UTF-8 into pieces, compiled: one function for each family of patterns, written out by hand, no look-back.

Each `*_end` function gets the place where a piece starts and returns where it ends, as a backtracking engine would
match the pattern of the same name in `parlance.text.bpe.patterns`. All take linear time:
what is read beyond a piece's end is at most the rest of one run of white space or of letters.

`words[i]` is the 64-bit integer at byte i of valid UTF-8 (unaligned), which 16 more bytes follow.
"""

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.bpe.inlining import inlined
from parlance.text.bpe.unicode_classes import (
    BLANK,
    LETTER,
    LOWER,
    MARK,
    NEWLINE,
    NUMBER,
    OTHER,
    SPACE,
    UPPER,
    class_table,
)

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]

GPT2, GPT4, GPT4O, PARLANCE = range(4)
"""Families of patterns."""

# Sets of classes, one bit each.
_LETTERS = 1 << UPPER | 1 << LOWER | 1 << LETTER
_NUMBERS = 1 << NUMBER
_WHITE = 1 << NEWLINE | 1 << BLANK | 1 << SPACE
_OTHERS = 1 << OTHER | 1 << MARK
_WORD = _LETTERS | 1 << MARK
_SIGNS = 1 << OTHER
_CAPITALS = 1 << UPPER | 1 << LETTER | 1 << MARK  # [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
_SMALLS = 1 << LOWER | 1 << LETTER | 1 << MARK  # [\p{Ll}\p{Lm}\p{Lo}\p{M}]
_EITHER = 1 << LETTER | 1 << MARK

# Signed, because numba makes floats of sums of signed and unsigned 64-bit integers. The compiled code on disk holds a
# copy of both: whoever changes the table changes this file as well, or numba does not notice.
_CLASS_OF, _BLOCK_OF = (table.astype(np.int16) for table in class_table())
_NEVER = 99
# Unsigned: numba takes it for granted that signed products and sums never overflow, and LLVM builds on that.
_LOW_BITS = np.uint64(0x7F7F7F7F7F7F7F7F)
_ONES = np.uint64(0x0101010101010101)
_FROM_A = np.uint64(0x1F1F1F1F1F1F1F1F)  # 0x80 - "a" in each byte
_BEYOND_Z = np.uint64(0x0505050505050505)
_TOP_BITS_BUT_FIRST = np.uint64(0x8080808080808000)
_PLACES = np.uint64(0x0001020304050607)  # times 2^8n: n in the top byte
_ZERO, _ONE, _SEVEN, _TOP_BYTE = np.uint64(0), np.uint64(1), np.uint64(7), np.uint64(56)


def _needs(prefixes: str, letter: int) -> Bytes:
    """The last argument of `short_word`: words may start with one of `prefixes`."""
    table = np.full(256, _NEVER, dtype=np.uint8)
    table[list(prefixes.encode())] = 1
    table[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")] = letter
    return table


_ANY = "".join(map(chr, range(128))).translate({ord(c): None for c in "\r\n0123456789"})
_GPT2_NEEDS = _needs(" ", 0)
_GPT4_NEEDS = _needs(_ANY.replace("'", ""), 0)  # an apostrophe can start a contraction
_O200K_NEEDS = _needs(_ANY, 1)
_PARLANCE_NEEDS = _needs(_ANY, 0)


@compiled
def wide(word: int) -> int:
    """Class * 8 + bytes of the character beyond ASCII that `word` starts with. Rare in most texts, so not in line."""
    byte, second = word & 255, (word >> 8) & 63
    if byte < 0xE0:
        code, step = (byte & 31) << 6 | second, 2
    elif byte < 0xF0:
        code, step = (byte & 15) << 12 | second << 6 | (word >> 16) & 63, 3
    else:
        code, step = (byte & 7) << 18 | second << 12 | ((word >> 16) & 63) << 6 | (word >> 24) & 63, 4
    return int(_CLASS_OF[int(_BLOCK_OF[code >> 7]) << 7 | (code & 127)]) << 3 | step


@inlined
def character(words: Integers, at: int) -> tuple[int, int]:
    """(class, where the next character starts)."""
    word = words[at]
    byte = word & 255
    if byte < 0x80:
        return int(_CLASS_OF[byte]), at + 1
    kind_and_step = wide(word)
    return kind_and_step >> 3, at + (kind_and_step & 7)


@inlined
def skip(words: Integers, at: int, end: int, members: int) -> int:
    """Where the run of characters with a class in `members` that starts at `at` ends."""
    while at < end:
        byte = words[at] & 255
        if byte < 0x80:
            if not (members >> int(_CLASS_OF[byte])) & 1:
                break
            at += 1
        else:
            kind_and_step = wide(words[at])
            if not (members >> (kind_and_step >> 3)) & 1:
                break
            at += kind_and_step & 7
    return at


@inlined
def short_word(words: Integers, at: int, end: int, cased: int, needs: Bytes) -> int:
    """Length of the ASCII word at `at`, as far as it lies in the first 8 bytes; 0 where there is none.

    One word of 64 bits is looked at as a whole, without a branch for each letter. `needs` says, for the first byte, how
    many bytes there must be at least, less one: 0 for a letter that is a word by itself, 1 for one that needs a letter
    behind it, `_NEVER` for bytes that no word starts with. `cased` is 32 where capitals count as letters, 0 where only
    small ones do (behind the first byte).
    """
    word = np.uint64(words[at])
    letter = (word & _LOW_BITS) | np.uint64(cased) * _ONES
    # The top bit of each byte: at least "a"; beyond "z"; not ASCII.
    is_letter = (letter + _FROM_A) & ~(letter + _BEYOND_Z) & ~word
    others = ~is_letter & _TOP_BITS_BUT_FIRST
    lowest = (others & (~others + _ONE)) >> _SEVEN
    length = int(np.int64(lowest * _PLACES >> _TOP_BYTE)) if others != _ZERO else 8
    length = min(length, end - at)
    return length if length > needs[words[at] & 255] else 0


@inlined
def newlines(words: Integers, at: int, end: int) -> int:
    """`[\\r\\n]*`"""
    while at < end and ((words[at] & 255) == 10 or (words[at] & 255) == 13):
        at += 1
    return at


@inlined
def contraction(words: Integers, at: int, end: int, fold: int) -> int:
    """`'(?:[sdmt]|ll|ve|re)`, in any case where `fold` is 32 and not 0; `at` where there is none.

    The long s, U+017F, is an s to a search that ignores case.
    """
    if at + 1 >= end or (words[at] & 255) != 39:
        return at
    first = (words[at + 1] & 255) | fold
    if first == 115 or first == 100 or first == 109 or first == 116:
        return at + 2
    if at + 2 < end:
        second = (words[at + 2] & 255) | fold
        if (first == 108 and second == 108) or ((first == 118 or first == 114) and second == 101):
            return at + 3
        if fold and (words[at + 1] & 255) == 0xC5 and (words[at + 2] & 255) == 0xBF:
            return at + 3
    return at


@inlined
def digits(words: Integers, at: int, end: int, most: int) -> int:
    """`\\p{N}{0,most}`"""
    for _ in range(most):
        if at >= end:
            break
        kind, following = character(words, at)
        if kind != NUMBER:
            break
        at = following
    return at


@inlined
def before_last(words: Integers, at: int, stop: int, end: int) -> int:
    """`\\s+(?!\\S)|\\s+` in the white space from `at` to `stop`: all but its last character, if that leaves any."""
    if stop == end:
        return stop
    last = stop - 1
    while (words[last] & 255) & 0xC0 == 0x80:
        last -= 1
    return last if last > at else stop


@inlined
def after_newline(words: Integers, at: int, stop: int) -> int:
    """`\\s*[\\r\\n]` within the run of white space from `at` to `stop`; `at` where it has no newline."""
    while stop > at and (words[stop - 1] & 255) != 10 and (words[stop - 1] & 255) != 13:
        stop -= 1
    return stop


@inlined
def gpt2_end(words: Integers, at: int, end: int) -> int:
    """Contraction; letters, numbers or others with a blank before them; white space."""
    length = short_word(words, at, end, 32, _GPT2_NEEDS)
    if length > 0:
        stop = at + length
        if length == 8 or (words[stop] & 255) >= 0x80:
            stop = skip(words, stop, end, _LETTERS)
        return stop
    stop = contraction(words, at, end, 0)
    if stop > at:
        return stop
    kind, stop = character(words, at)
    if kind == BLANK and stop < end:
        next_kind, next_stop = character(words, stop)
        if not (_WHITE >> next_kind) & 1:
            kind, stop = next_kind, next_stop
    if kind >= UPPER:
        return skip(words, stop, end, _LETTERS)
    if kind == NUMBER:
        return skip(words, stop, end, _NUMBERS)
    if (_OTHERS >> kind) & 1:
        return skip(words, stop, end, _OTHERS)
    return before_last(words, at, skip(words, stop, end, _WHITE), end)


@inlined
def gpt4_end(words: Integers, at: int, end: int, most: int, whole_end: int) -> int:
    """Contraction; letters with one other character before them; digits; others; white space.

    `whole_end`: `\\s++$` comes before `\\s*[\\r\\n]`.
    """
    length = short_word(words, at, end, 32, _GPT4_NEEDS)
    if length > 0:
        stop = at + length
        if length == 8 or (words[stop] & 255) >= 0x80:
            stop = skip(words, stop, end, _LETTERS)
        return stop
    kind, stop = character(words, at)
    if kind >= UPPER:
        return skip(words, stop, end, _LETTERS)
    if kind == NUMBER:
        return digits(words, stop, end, most - 1)
    after = contraction(words, at, end, 32)
    if after > at:
        return after
    next_kind, next_stop = NEWLINE, stop
    if stop < end:
        next_kind, next_stop = character(words, stop)
    if kind != NEWLINE and next_kind >= UPPER:
        return skip(words, next_stop, end, _LETTERS)
    if kind == BLANK and (_OTHERS >> next_kind) & 1:
        kind = OTHER
    if (_OTHERS >> kind) & 1:
        return newlines(words, skip(words, stop, end, _OTHERS), end)
    stop = skip(words, stop, end, _WHITE)
    if whole_end and stop == end:
        return end
    after = after_newline(words, at, stop)
    return after if after > at else before_last(words, at, stop, end)


@inlined
def cased_word(words: Integers, at: int, end: int) -> int:
    """`[capitals]*[smalls]+` from `at`, where capitals and smalls share the letters without case; `at` if none."""
    stop = skip(words, at, end, _CAPITALS)
    after = skip(words, stop, end, _SMALLS)
    if after > stop:
        return after
    # The capitals give back characters until the last one can be a small.
    while stop > at:
        last = stop - 1
        while (words[last] & 255) & 0xC0 == 0x80:
            last -= 1
        if (_EITHER >> character(words, last)[0]) & 1:
            return stop
        stop = last
    return at


@inlined
def o200k_end(words: Integers, at: int, end: int, most: int) -> int:
    """Words by case, with one other character before and a contraction behind; digits; others; white space."""
    length = short_word(words, at, end, 0, _O200K_NEEDS)
    if length > 0:
        stop = at + length
        if length == 8 or (words[stop] & 255) >= 0x80:
            stop = skip(words, stop, end, _SMALLS)
        return contraction(words, stop, end, 32)
    kind, stop = character(words, at)
    if kind == NUMBER:
        return digits(words, stop, end, most - 1)
    word = at
    if kind != NEWLINE:
        # Both alternatives first with, then without the leading character, which a mark can be.
        prefixed = kind < UPPER
        word = stop if prefixed else at
        start, word = word, cased_word(words, word, end)
        if word == start and kind == MARK:
            start, word = at, cased_word(words, at, end)
        if word == start:
            start = stop if prefixed else at
            word = skip(words, start, end, _CAPITALS)
            if word == start and kind == MARK:
                start, word = at, skip(words, at, end, _CAPITALS)
        if word > start:
            return contraction(words, word, end, 32)
    if kind == BLANK and stop < end:
        next_kind, _ = character(words, stop)
        if (_OTHERS >> next_kind) & 1:
            kind = OTHER
    if (_OTHERS >> kind) & 1:
        stop = skip(words, stop, end, _OTHERS)
        while stop < end and ((words[stop] & 255) == 10 or (words[stop] & 255) == 13 or (words[stop] & 255) == 47):
            stop += 1
        return stop
    stop = skip(words, stop, end, _WHITE)
    after = after_newline(words, at, stop)
    return after if after > at else before_last(words, at, stop, end)


@inlined
def parlance_end(words: Integers, at: int, end: int, most: int) -> int:
    """Letters and marks with one other character before them; digits; signs; newlines and indentation; white space."""
    length = short_word(words, at, end, 32, _PARLANCE_NEEDS)
    if length > 0:
        stop = at + length
        if length == 8 or (words[stop] & 255) >= 0x80:
            stop = skip(words, stop, end, _WORD)
        return stop
    kind, stop = character(words, at)
    if (_WORD >> kind) & 1:
        return skip(words, stop, end, _WORD)
    if kind == NUMBER:
        return digits(words, stop, end, most - 1)
    next_kind, next_stop = NEWLINE, stop
    if stop < end:
        next_kind, next_stop = character(words, stop)
    if kind != NEWLINE and (_WORD >> next_kind) & 1:
        return skip(words, next_stop, end, _WORD)
    if kind == BLANK and next_kind == OTHER:
        kind = OTHER
    if kind == OTHER:
        stop = skip(words, stop, end, _SIGNS)
        after = newlines(words, stop, end)
    else:
        stop = skip(words, stop, end, _WHITE)
        after = after_newline(words, at, stop)
        if after == at:
            return stop
    if after > at and ((words[after - 1] & 255) == 10 or (words[after - 1] & 255) == 13):
        while after < end and ((words[after] & 255) == 32 or (words[after] & 255) == 9):
            after += 1
    return after


@compiled
def scan(
    words: Integers,
    bounds: Integers,
    cursor: Integers,
    ends: NDArray[np.int32],
    family: int,
    most: int,
    whole_end: int,
) -> int:
    """Write the ends of the next pieces into `ends`; returns how many, 0 when all documents are done.

    Document i lies from byte `bounds[i]` to `bounds[i + 1]`. `cursor` is [document, place] and moves along.
    """
    document, at = cursor[0], cursor[1]
    count = 0
    while document < len(bounds) - 1 and count < len(ends):
        end = bounds[document + 1]
        while at < end and count < len(ends):
            if family == GPT2:
                at = gpt2_end(words, at, end)
            elif family == GPT4:
                at = gpt4_end(words, at, end, most, whole_end)
            elif family == GPT4O:
                at = o200k_end(words, at, end, most)
            else:
                at = parlance_end(words, at, end, most)
            ends[count] = at
            count += 1
        if at == end:
            document += 1
    cursor[0], cursor[1] = document, at
    return count
