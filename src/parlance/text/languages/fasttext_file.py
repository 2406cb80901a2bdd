"""Reads fastText's classifier files, `.bin` and the quantised `.ftz`, into numpy arrays; no fastText is needed.

    model = read_fasttext(Path("lid.176.ftz"))
    model.labels, model.rows.shape

The format is that of fastText 0.9 (version 12): header, arguments, dictionary, input matrix, output matrix, all
little-endian. A product-quantised matrix (Joulin et al. 2016, arXiv:1612.03651) is unpacked to float32 while reading.
Read are classifiers over words and character n-grams with the losses softmax and hierarchical softmax. Not read:
word vectors, word n-grams as features, and the losses `ova` and `ns`; a `UserError` says so.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

_MAGIC = 793712314
_VERSION = 12
_SUPERVISED = 3
_HIERARCHICAL_SOFTMAX, _SOFTMAX = 1, 3
_LABEL = "__label__"
_CENTROIDS = 256
_UNKNOWN_COUNT = 10**15  # of a tree node that does not exist yet: above every real count


@dataclass(frozen=True, eq=False)
class FastTextModel:
    """A classifier: the mean of the rows of a text's features times the output matrix. R rows, d width, L labels."""

    labels: tuple[str, ...]
    """L labels without `__label__`, the most frequent in training first."""
    words: tuple[bytes, ...]
    """W words that have a row of their own: rows 0 to W - 1."""
    bucket_rows: Int32
    """(buckets,) the row of the character n-grams with that hash modulo `buckets`; -1: none."""
    min_ngram: int
    """Characters in the shortest character n-gram."""
    max_ngram: int
    """Characters in the longest; 0: there are none."""
    rows: Float32
    """(R, d)"""
    output: Float32
    """(L, d), or (L - 1, d) with a tree: one row for each inner node."""
    tree: Int32
    """(L - 1, 2) children of the inner nodes, the root last; leaves are 0 to L - 1, node n is L + n. Empty: softmax."""


def read_fasttext(path: Path) -> FastTextModel:
    """Read a classifier. Raises UserError for a file that is missing, broken or of another kind."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot read {path}: {reason[0].lower()}{reason[1:]}") from error
    try:
        return _model(_Cursor(data), path)
    except (IndexError, ValueError, UnicodeDecodeError, OverflowError) as error:
        raise UserError(f"{path} is cut short or damaged; fetch the model again") from error


class _Cursor:
    """A place in the file's bytes; every method takes what it returns. Raises IndexError behind the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def array(self, kind: str, count: int) -> NDArray[np.generic]:
        kind_of = np.dtype(kind)
        size = kind_of.itemsize * count
        if count < 0 or self.at + size > len(self.data):
            raise IndexError("the file ends too early")
        self.at += size
        return np.frombuffer(self.data, kind_of, count, self.at - size)

    def integers(self, kind: str, count: int) -> list[int]:
        return [int(value) for value in self.array(kind, count).tolist()]

    def integer(self, kind: str) -> int:
        return self.integers(kind, 1)[0]

    def string(self) -> bytes:
        end = self.data.index(b"\0", self.at)
        start, self.at = self.at, end + 1
        return self.data[start:end]


def _model(cursor: _Cursor, path: Path) -> FastTextModel:
    if len(cursor.data) < 8 or cursor.integer("<i4") != _MAGIC:
        raise UserError(f"{path} is not a fastText model; name a .bin or .ftz file")
    if (version := cursor.integer("<i4")) != _VERSION:
        raise UserError(f"{path} has version {version} of fastText's format; Parlance reads version {_VERSION}")
    # Arguments: width, window, epochs, least count, negatives, word n-grams, loss, kind of model, buckets, shortest and
    # longest character n-gram, learning-rate steps, and a double: the sampling threshold.
    _, _, _, _, _, word_ngrams, loss, kind, buckets, min_ngram, max_ngram, _ = cursor.integers("<i4", 12)
    cursor.array("<f8", 1)
    if kind != _SUPERVISED:
        raise UserError(f"{path} holds word vectors; a classifier is needed")
    if loss not in (_HIERARCHICAL_SOFTMAX, _SOFTMAX) or word_ngrams != 1:
        raise UserError(
            f"{path} is a fastText classifier of a kind that Parlance does not read; train it with wordNgrams 1 and"
            " the loss softmax or hs"
        )
    _, word_count, label_count = cursor.integers("<i4", 3)
    _, pruned = cursor.integers("<i8", 2)
    words, labels, label_counts = [], [], []
    for _ in range(word_count + label_count):
        word, count, is_label = cursor.string(), cursor.integer("<i8"), cursor.integer("u1")
        if is_label:
            labels.append(word.decode("utf-8").removeprefix(_LABEL))
            label_counts.append(count)
        else:
            words.append(word)
    if len(labels) != label_count or label_count < 2:
        raise ValueError("labels are missing")
    bucket_rows = _bucket_rows(cursor, buckets if max_ngram else 1, pruned, word_count)
    rows = _matrix(cursor)
    output = _matrix(cursor)
    tree = _tree(label_counts) if loss == _HIERARCHICAL_SOFTMAX else np.empty((0, 2), np.int32)
    if (
        rows.shape[1] != output.shape[1]
        or len(output) < (len(tree) or label_count)
        or len(rows) < max(word_count, int(bucket_rows.max()) + 1)
    ):
        raise ValueError("the matrices do not fit the dictionary")
    output = output[: len(tree) or label_count].copy()
    return FastTextModel(tuple(labels), tuple(words), bucket_rows, min_ngram, max_ngram, rows, output, tree)


def _bucket_rows(cursor: _Cursor, buckets: int, pruned: int, first: int) -> Int32:
    """Rows of the n-gram buckets; a model may have dropped most of them (`pruned` >= 0 are left)."""
    if pruned < 0:
        return np.arange(first, first + buckets, dtype=np.int32)
    rows = np.full(buckets, -1, np.int32)
    pairs = cursor.array("<i4", 2 * pruned).reshape(-1, 2).astype(np.int64)
    rows[pairs[:, 0]] = first + pairs[:, 1]
    return rows


def _matrix(cursor: _Cursor) -> Float32:
    if not cursor.integer("u1"):
        height, width = cursor.integers("<i8", 2)
        return cursor.array("<f4", height * width).reshape(height, width).astype(np.float32)
    has_norms = cursor.integer("u1")
    height, width = cursor.integers("<i8", 2)
    codes = cursor.array("u1", cursor.integer("<i4"))
    rows = _quantised(cursor, codes, height, width)
    if has_norms:
        norm_codes = cursor.array("u1", height)
        rows *= _quantised(cursor, norm_codes, height, 1)
    return rows


def _quantised(cursor: _Cursor, codes: NDArray[np.generic], height: int, width: int) -> Float32:
    """Put each row together from the centroids that its codes name, one code for each part of the width."""
    dimension, parts, part_width, _ = cursor.integers("<i4", 4)
    if dimension != width or len(codes) != height * parts:
        raise ValueError("the codes do not fit the matrix")
    centroids = cursor.array("<f4", dimension * _CENTROIDS).astype(np.float32)
    codes = codes.reshape(height, parts)
    rows = np.empty((height, width), np.float32)
    for part in range(parts):
        start = part * part_width
        end = min(start + part_width, width)  # the last part may be narrower
        table = centroids[start * _CENTROIDS : end * _CENTROIDS].reshape(_CENTROIDS, end - start)
        rows[:, start:end] = table[codes[:, part].astype(np.int64)]
    return rows


def _tree(counts: list[int]) -> Int32:
    """The Huffman tree over label counts in falling order, built as fastText does, ties included."""
    leaves = len(counts)
    totals = counts + [_UNKNOWN_COUNT] * (leaves - 1)
    children = np.empty((leaves - 1, 2), np.int32)
    leaf, node = leaves - 1, leaves  # the rarest leaf and node without a parent
    for parent in range(leaves, 2 * leaves - 1):
        for side in range(2):
            if leaf >= 0 and totals[leaf] < totals[node]:
                children[parent - leaves, side] = leaf
                leaf -= 1
            else:
                children[parent - leaves, side] = node
                node += 1
        totals[parent] = sum(totals[child] for child in children[parent - leaves])
    return children
