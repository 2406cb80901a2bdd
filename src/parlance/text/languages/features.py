"""From UTF-8 text to the probabilities of a fastText model: the loops, compiled.

    probabilities(tables, buffer, bounds)          # (N, L), one row for each of the N texts in `buffer`

The features are exactly those of fastText: words between white space (space, tab, newline, return, vertical tab, form
feed, NUL), the character n-grams of each word written `<word>`, and one end-of-text mark. As in fastText, words
that begin with `__label__` are not looked at, and a word `</s>` ends the text.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parlance.core.compiled import compiled
from parlance.text.languages.fasttext_file import FastTextModel, Float32, Int32, Int64, UInt8

Float64 = NDArray[np.float64]
UInt32 = NDArray[np.uint32]

_FNV_START, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_LABEL = np.frombuffer(b"__label__", np.uint8)
_END = b"</s>"
_SIGN = np.uint32(0xFFFFFF00)


@dataclass(frozen=True, eq=False)
class Tables:
    """A model in the form that the loops need."""

    model: FastTextModel
    slots: Int32
    """(power of two,) open-addressing table: number of the word, -1: free."""
    spelling: UInt8
    """The words' bytes, one after the other."""
    offsets: Int64
    """(W + 1,) where each word begins in `spelling`."""
    end_row: int
    """Row of the end-of-text mark; -1: none."""


def tables(model: FastTextModel) -> Tables:
    """Index the words of a model."""
    spelling = np.frombuffer(b"".join(model.words), np.uint8)
    offsets = np.zeros(len(model.words) + 1, np.int64)
    np.cumsum([len(word) for word in model.words], out=offsets[1:])
    slots = np.full(1 << (2 * len(model.words)).bit_length(), -1, np.int32)
    index_words(spelling, offsets, slots)
    end_row = model.words.index(_END) if _END in model.words else -1
    return Tables(model, slots, spelling, offsets, end_row)


def probabilities(index: Tables, buffer: UInt8, bounds: Int64) -> Float64:
    """Probability of each label for the N texts buffer[bounds[i]:bounds[i + 1]]: (N, L); zero without any feature."""
    model = index.model
    longest = int(np.diff(bounds).max(initial=0)) + 2
    result = np.zeros((len(bounds) - 1, len(model.labels)))
    classify(
        buffer,
        bounds,
        np.empty(longest, np.uint8),
        index.slots,
        index.spelling,
        index.offsets,
        index.end_row,
        model.bucket_rows,
        model.min_ngram,
        model.max_ngram,
        model.rows,
        model.output,
        model.tree,
        result,
    )
    return result


@compiled
def index_words(spelling: UInt8, offsets: Int64, slots: Int32) -> None:
    """Fill the free table `slots` with the numbers of the words."""
    mask = np.uint32(slots.size - 1)
    for word in range(offsets.size - 1):
        slot = _fnv(spelling, offsets[word], offsets[word + 1]) & mask
        while slots[slot] >= 0:
            slot = (slot + np.uint32(1)) & mask
        slots[slot] = word


@compiled
def _fnv(text: UInt8, start: int, end: int) -> np.uint32:
    """FNV-1a of bytes that are sign-extended, as fastText has it."""
    h = _FNV_START
    for at in range(start, end):
        h = _step(h, text[at])
    return h


@compiled
def _step(h: np.uint32, byte: np.uint8) -> np.uint32:
    value = np.uint32(byte)
    if byte >= 0x80:
        value |= _SIGN
    return np.uint32((h ^ value) * _FNV_PRIME)


@compiled
def _word_row(word: UInt8, length: int, slots: Int32, spelling: UInt8, offsets: Int64) -> int:
    """Number of the word in word[1 : 1 + length], -1 where the model does not know it."""
    mask = np.uint32(slots.size - 1)
    slot = _fnv(word, 1, 1 + length) & mask
    while slots[slot] >= 0:
        known = slots[slot]
        start = offsets[known]
        if offsets[known + 1] - start == length:
            same = True
            for at in range(length):
                if spelling[start + at] != word[1 + at]:
                    same = False
                    break
            if same:
                return int(known)
        slot = (slot + np.uint32(1)) & mask
    return -1


@compiled
def classify(
    buffer: UInt8,
    bounds: Int64,
    word: UInt8,
    slots: Int32,
    spelling: UInt8,
    offsets: Int64,
    end_row: int,
    bucket_rows: Int32,
    min_ngram: int,
    max_ngram: int,
    rows: Float32,
    output: Float32,
    tree: Int32,
    result: Float64,
) -> None:
    """Write the label probabilities of each text into a zeroed `result`; `word` is room for the longest text and 2."""
    width = rows.shape[1]
    buckets = np.uint32(bucket_rows.size)
    total = np.empty(width, np.float32)
    scores = np.empty(output.shape[0] + result.shape[1], np.float64)
    word[0] = 0x3C  # "<"
    for text in range(bounds.size - 1):
        total[:] = 0.0
        count = 0
        at, end = bounds[text], bounds[text + 1]
        while at < end:
            length = 0
            while at < end:
                byte = buffer[at]
                if byte == 0x20 or (0x09 <= byte <= 0x0D) or byte == 0:
                    break
                length += 1
                word[length] = byte
                at += 1
            at += 1
            if length == 0:
                continue
            is_label = length >= _LABEL.size
            for place in range(_LABEL.size if is_label else 0):
                is_label = is_label and word[1 + place] == _LABEL[place]
            if is_label:
                continue
            row = _word_row(word, length, slots, spelling, offsets)
            if row >= 0 and row == end_row:
                break
            if row >= 0:
                for column in range(width):
                    total[column] += rows[row, column]
                count += 1
            word[length + 1] = 0x3E  # ">"
            size = length + 2
            for start in range(size):
                if (word[start] & 0xC0) == 0x80:
                    continue
                h = _FNV_START
                place = start
                for characters in range(1, max_ngram + 1):
                    if place >= size:
                        break
                    h = _step(h, word[place])
                    place += 1
                    while place < size and (word[place] & 0xC0) == 0x80:
                        h = _step(h, word[place])
                        place += 1
                    if characters >= min_ngram and not (characters == 1 and (start == 0 or place == size)):
                        row = bucket_rows[h % buckets]
                        if row >= 0:
                            for column in range(width):
                                total[column] += rows[row, column]
                            count += 1
        if end_row >= 0:
            for column in range(width):
                total[column] += rows[end_row, column]
            count += 1
        if count:
            for column in range(width):
                total[column] *= np.float32(1.0 / count)
            _label_probabilities(total, output, tree, scores, result[text])


@compiled
def _label_probabilities(hidden: Float32, output: Float32, tree: Int32, scores: Float64, result: Float64) -> None:
    nodes = output.shape[0]
    for node in range(nodes):
        product = np.float32(0.0)
        for column in range(hidden.size):
            product += output[node, column] * hidden[column]
        scores[node] = product
    labels = result.size
    if tree.shape[0]:
        # From the root down; inner node n keeps the probability of coming there behind the scores.
        reached = scores[nodes:]
        reached[nodes - 1] = 1.0
        for node in range(nodes - 1, -1, -1):
            right = 1.0 / (1.0 + np.exp(-scores[node]))
            for side in range(2):
                # The 1e-5 is fastText's: it takes the logarithm of p + 1e-5.
                probability = reached[node] * ((right if side else 1.0 - right) + 1e-5)
                child = tree[node, side]
                if child < labels:
                    result[child] = probability
                else:
                    reached[child - labels] = probability
    else:
        highest = scores[0]
        for label in range(labels):
            highest = max(highest, scores[label])
        denominator = 0.0
        for label in range(labels):
            result[label] = np.exp(scores[label] - highest)
            denominator += result[label]
        for label in range(labels):
            result[label] /= denominator
