"""Exact-substring deduplication: every span of 50 tokens or more that occurred before is found and cut out.

A window of `min_length` tokens repeats if an equal window begins at least `min_length` tokens earlier, in the same
document or in one before it; all tokens of repeating windows are removed, so that of each repeated span the first
occurrence stays (the method is that of Lee et al. 2022, arXiv:2107.06499). Windows do not cross documents. Of a
thousand equal tokens the first 50 stay. What remains holds no two equal windows that do not overlap, except where the
two sides of a cut, now neighbours, make one.

Tokens here are pieces of text: words, single punctuation marks, and single Chinese or Japanese characters, numbered by
first appearance. White space is no piece, so that spans that differ in it only are equal; capital letters do count.
Cuts fall between pieces, never inside a word or a character, and never join two words. The result depends on the order
of the documents and on nothing else.

    spans = repeated_spans_of_texts(lambda: iter(texts))                # reads all texts twice
    texts = [without_spans(text, pieces(text).starts, spans.of(d)) for d, text in enumerate(texts)]

`repeated_spans` sorts the suffixes of all tokens. `repeated_spans_of_texts` finds the same spans in less memory: every
window is known by the smallest of the hashes of its runs of half its length (a minimizer: Schleimer, Wilkerson and
Aiken 2003; Roberts et al. 2004). Equal windows have equal ones, so that only where one occurs twice anything can
repeat; these parts alone are sorted, commonly a small share of a corpus. For a distributed corpus the same steps are
`fingerprints` of each text, `repeated_fingerprints` of all, and `candidates` of each text.

Memory of `repeated_spans`: 5 bytes a token beside its 4, and some 2 more while it sorts; English has some 5 bytes of
text a token. Of `repeated_spans_of_texts`: some 2 bytes a token (8 for a fingerprint, one in 13 tokens, and copies to
sort them), then the above for the candidates and 24 to 48 bytes for each distinct piece in them. Pieces are told apart
by 64-bit hashes: among 10^7 distinct ones two have the same with probability 3 in 10^6.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.shingling import character_table, decode, is_word_of_its_own, mix, ngram_hashes
from parlance.text.suffix_array import Order, Tokens, as_unsigned, suffix_array

MIN_LENGTH = 50
"""Tokens in the shortest span that is removed."""

_FIRST_SIZE = 1 << 12
_FREE = np.uint64(0)
_ONE = np.uint64(1)
_START = np.uint64(0x243F6A8885A308D3)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)
_WHOLE, _REPEATS = np.uint8(1), np.uint8(2)


@dataclass(frozen=True, eq=False)
class Pieces:
    """The P pieces of a text in order."""

    hashes: NDArray[np.uint64]
    """(P,) a hash of each, the same on every machine."""
    starts: NDArray[np.int64]
    """(P,) the character of the text at which each begins; it ends where white space or the next one begins."""


def pieces(text: str) -> Pieces:
    """The pieces of `text`: hashes and places."""
    buffer = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    hashes = np.empty(len(text), dtype=np.uint64)
    starts = np.empty(len(text), dtype=np.int64)
    table, _ = character_table(text.isascii())
    count = _hash_pieces(buffer, table, hashes, starts)
    return Pieces(hashes[:count].copy(), starts[:count].copy())


class PieceNumbering:
    """Numbers distinct hashes of pieces 0, 1, ... in the order in which it is given them."""

    def __init__(self) -> None:
        self._keys = np.zeros(_FIRST_SIZE, dtype=np.uint64)
        self._ids = np.zeros(_FIRST_SIZE, dtype=np.uint32)
        self._count = 0

    def __len__(self) -> int:
        """Distinct hashes so far."""
        return self._count

    def ids(self, hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The numbers of `hashes` (P,); new ones are numbered."""
        self._make_room(len(hashes))
        ids = np.empty(len(hashes), dtype=np.uint32)
        self._count = _number(hashes, self._keys, self._ids, self._count, ids)
        return ids

    def _make_room(self, more: int) -> None:
        """At most half of the table may be in use after `more` pieces that could all be new."""
        size = len(self._keys)
        while 2 * (self._count + more) > size:
            size *= 2
        if size > len(self._keys):
            keys, ids = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint32)
            _rehash(self._keys, self._ids, keys, ids)
            self._keys, self._ids = keys, ids


@dataclass(frozen=True, eq=False)
class RepeatedSpans:
    """R spans of tokens, sorted, that neither overlap nor touch in one document."""

    documents: NDArray[np.int64]
    """(R,) the document of each, by its number."""
    starts: NDArray[np.int64]
    """(R,) first token, counted from the beginning of the document."""
    ends: NDArray[np.int64]
    """(R,) one past the last token."""

    def of(self, document: int) -> NDArray[np.int64]:
        """The spans of one document: (r, 2) starts and ends."""
        first, last = np.searchsorted(self.documents, [document, document + 1])
        return np.stack([self.starts[first:last], self.ends[first:last]], axis=1)


def repeated_spans(tokens: Tokens, offsets: NDArray[np.int64], min_length: int = MIN_LENGTH) -> RepeatedSpans:
    """What is to be removed from D documents, the d-th of them tokens[offsets[d]:offsets[d + 1]] (ids of any integers).

    Time is linear in the tokens, with at most `min_length` >= 1 comparisons for each. Raises ValueError where the
    offsets do not divide the tokens.
    """
    if min_length < 1:
        raise ValueError(f"a span has at least one token, not {min_length}")
    bounds = np.ascontiguousarray(offsets, dtype=np.int64)
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError(f"the offsets must ascend from 0 to the number of tokens, {len(tokens)}")
    tokens = as_unsigned(tokens)
    most = len(tokens) // min_length
    spans = np.empty((3, most), dtype=np.int64)
    state = np.zeros(len(tokens), dtype=np.uint8)
    _mark_whole(bounds, min_length, state)
    _mark_repeats(tokens, suffix_array(tokens), min_length, state)
    count = _merge(bounds, min_length, state, spans)
    return RepeatedSpans(*spans[:, :count].copy())


def repeated_spans_of_texts(read: Callable[[], Iterable[str]], min_length: int = MIN_LENGTH) -> RepeatedSpans:
    """`repeated_spans` of the pieces of all texts that `read()` yields, document by document; it is called twice.

    Each time it must yield the same texts in the same order.
    """
    prints = [fingerprints(pieces(text).hashes, min_length) for text in read()]
    repeated = repeated_fingerprints(np.concatenate([np.empty(0, dtype=np.uint64), *prints]))
    del prints
    numbering = PieceNumbering()
    parts: list[NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)]
    places: list[tuple[int, int]] = []
    for document, text in enumerate(read()):
        hashes = pieces(text).hashes
        for first, last in candidates(hashes, repeated, min_length).tolist():
            parts.append(numbering.ids(hashes[first:last]))
            places.append((document, first))
    offsets = np.cumsum([len(part) for part in parts])
    found = repeated_spans(np.concatenate(parts), offsets, min_length)
    documents, firsts = np.array(places, dtype=np.int64).reshape(-1, 2)[found.documents].T
    return RepeatedSpans(documents.copy(), found.starts + firsts, found.ends + firsts)


def fingerprints(hashes: NDArray[np.uint64], min_length: int = MIN_LENGTH) -> NDArray[np.uint64]:
    """Of a text's pieces (P,): the minimizers of its windows, once for each place, some 4 in `min_length` pieces."""
    smallest, changes = _minimizers(hashes, min_length)
    return smallest[changes]


def repeated_fingerprints(prints: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those of the fingerprints of all texts that occur more than once, sorted."""
    ordered = np.sort(prints)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def candidates(
    hashes: NDArray[np.uint64], repeated: NDArray[np.uint64], min_length: int = MIN_LENGTH
) -> NDArray[np.int64]:
    """Spans (c, 2) of a text's pieces (P,) that hold all its windows with a repeated fingerprint; they do not touch."""
    smallest, changes = _minimizers(hashes, min_length)
    runs = np.flatnonzero(changes)
    places = np.minimum(np.searchsorted(repeated, smallest[runs]), len(repeated) - 1)
    may_repeat = repeated[places] == smallest[runs] if len(repeated) else np.zeros(len(runs), dtype=np.bool_)
    state = np.repeat(np.where(may_repeat, _REPEATS, np.uint8(0)), np.diff(runs, append=len(smallest)))
    spans = np.empty((3, len(hashes) // min_length), dtype=np.int64)
    windows = np.zeros(len(hashes), dtype=np.uint8)
    windows[: len(state)] = state
    count = _merge(np.array([0, len(hashes)]), min_length, windows, spans)
    return np.ascontiguousarray(spans[1:, :count].T)


def _minimizers(hashes: NDArray[np.uint64], min_length: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """For each window its smallest hash of a run of half the length, and whether that stands elsewhere than before."""
    if min_length < 1:
        raise ValueError(f"a span has at least one token, not {min_length}")
    runs = ngram_hashes(hashes, (min_length + 1) // 2)
    count = max(len(hashes) - min_length + 1, 0)
    smallest, changes = np.empty(count, dtype=np.uint64), np.empty(count, dtype=np.bool_)
    _slide(runs, min_length // 2 + 1, smallest, changes)
    return smallest, changes


def without_spans(text: str, starts: NDArray[np.int64], spans: NDArray[np.integer[Any]]) -> str:
    """`text` without its pieces [a, b) for each of the sorted spans (r, 2), where piece i begins at starts[i].

    Of the white space on both sides of a cut the one with more line breaks stays; where there is none and both sides
    go on, a space takes its place. What is left of white space at a border of the text is that of the border.
    """
    parts = []
    at = 0
    for first, last in spans.tolist():
        start = int(starts[first])
        end = int(starts[last]) if last < len(starts) else len(text)
        kept, removed = text[at:start], text[start:end]
        body = kept.rstrip()
        before, after = kept[len(body) :], removed[len(removed.rstrip()) :]
        if first == 0:
            space = before
        elif last == len(starts) or after.count("\n") > before.count("\n"):
            space = after
        else:
            space = before or after or " "
        parts += [body, space]
        at = end
    return "".join([*parts, text[at:]])


@compiled
def _is_space(code_point: int) -> bool:
    """What `str.isspace` says."""
    return (
        code_point == 0x20
        or 0x09 <= code_point <= 0x0D
        or 0x1C <= code_point <= 0x1F
        or code_point in (0x85, 0xA0, 0x1680, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
        or 0x2000 <= code_point <= 0x200A
    )


@compiled
def _hash_pieces(
    text: NDArray[np.uint8], table: NDArray[np.int32], hashes: NDArray[np.uint64], starts: NDArray[np.int64]
) -> int:
    """Hash each piece of UTF-8 and write where it begins, in characters; returns how many there are."""
    count = position = at = 0
    state = _START
    is_open = takes_letters = False
    while at < text.size:
        begin = at
        code_point, at = decode(text, at, text.size)
        value = table[code_point] if 0 <= code_point < table.size else 0
        is_mark = value == 1
        is_letter = value > 1 and not is_word_of_its_own(value)
        if is_open and not (is_mark or (is_letter and takes_letters)):
            hashes[count - 1] = mix(state)
            is_open = False
        if not _is_space(code_point):
            if not is_open:
                is_open = True
                takes_letters = is_letter
                starts[count] = position
                state = _START
                count += 1
            for index in range(begin, at):
                state = (state ^ np.uint64(text[index])) * _FACTOR
                state ^= state >> np.uint64(32)
        position += 1
    if is_open:
        hashes[count - 1] = mix(state)
    return count


@compiled
def _slide(runs: NDArray[np.uint64], width: int, smallest: NDArray[np.uint64], changes: NDArray[np.bool_]) -> None:
    """The leftmost smallest of each `width` neighbours: searched again only when it has left the window."""
    place = -1
    for first in range(smallest.size):
        last = first + width - 1
        before = place
        if place < first:
            place = first
            for index in range(first + 1, last + 1):
                if runs[index] < runs[place]:
                    place = index
        elif runs[last] < runs[place]:
            place = last
        smallest[first] = runs[place]
        changes[first] = place != before


@compiled
def _number(
    hashes: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    numbers: NDArray[np.uint32],
    count: int,
    ids: NDArray[np.uint32],
) -> int:
    """Look the hashes up in the table of open addresses, adding those that are not in it; returns the new count."""
    last = np.uint64(keys.size - 1)
    for index in range(hashes.size):
        key = hashes[index]
        if key == _FREE:
            key = _ONE
        place = key & last
        while keys[place] != key:
            if keys[place] == _FREE:
                keys[place] = key
                numbers[place] = count
                count += 1
                break
            place = (place + _ONE) & last
        ids[index] = numbers[place]
    return count


@compiled
def _rehash(
    keys: NDArray[np.uint64],
    numbers: NDArray[np.uint32],
    new_keys: NDArray[np.uint64],
    new_numbers: NDArray[np.uint32],
) -> None:
    last = np.uint64(new_keys.size - 1)
    for index in range(keys.size):
        if keys[index] != _FREE:
            place = keys[index] & last
            while new_keys[place] != _FREE:
                place = (place + _ONE) & last
            new_keys[place] = keys[index]
            new_numbers[place] = numbers[index]


@compiled
def _mark_whole(offsets: NDArray[np.int64], min_length: int, state: NDArray[np.uint8]) -> None:
    """Mark the tokens at which a window begins that ends inside its document."""
    for document in range(offsets.size - 1):
        for index in range(offsets[document], offsets[document + 1] - min_length + 1):
            state[index] = _WHOLE


@compiled
def _mark_repeats(tokens: Tokens, order: Order, min_length: int, state: NDArray[np.uint8]) -> None:
    """Mark the windows that have an equal one at least a window earlier.

    Suffixes with the same first `min_length` tokens are neighbours in `order`, and their smallest start is the first.
    """
    begin = 0
    while begin < order.size:
        first = order[begin] if state[order[begin]] else tokens.size
        end = begin + 1
        while end < order.size and _begin_alike(tokens, order[end - 1], order[end], min_length):
            if state[order[end]]:
                first = min(first, order[end])
            end += 1
        if end - begin > 1:
            for index in range(begin, end):
                if state[order[index]] and order[index] - first >= min_length:
                    state[order[index]] = _REPEATS
        begin = end


@compiled
def _begin_alike(tokens: Tokens, first: int, second: int, length: int) -> bool:
    if max(first, second) + length > tokens.size:
        return False
    offset = 0
    while offset < length and tokens[first + offset] == tokens[second + offset]:
        offset += 1
    return offset == length


@compiled
def _merge(offsets: NDArray[np.int64], min_length: int, state: NDArray[np.uint8], spans: NDArray[np.int64]) -> int:
    """Unions of the marked windows of each document as rows (document, start, end) of `spans`; returns how many."""
    count = 0
    for document in range(offsets.size - 1):
        begin = offsets[document]
        end = -1
        for index in range(begin, offsets[document + 1]):
            if state[index] == _REPEATS:
                if index > end:
                    spans[0, count] = document
                    spans[1, count] = index - begin
                    count += 1
                end = index + min_length
                spans[2, count - 1] = end - begin
    return count
