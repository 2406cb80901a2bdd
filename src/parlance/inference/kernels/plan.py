"""The words of a program for the compiled loops: what `program.py` writes and `interpreter.py` reads.

A program is a table of int64, one operation a line: its code, then its operands. Places are indices of float32 numbers
in the arena (`program.py`), unless they are called bytes or address.
"""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Halves: TypeAlias = NDArray[np.uint16]
Words: TypeAlias = NDArray[np.int32]
Codes: TypeAlias = NDArray[np.int8]
Bytes: TypeAlias = NDArray[np.uint8]
Sizes: TypeAlias = NDArray[np.int64]
Number: TypeAlias = Any
"""A float32 of compiled code."""

# --- operations: operands ---
EMBED = 0
"""matrix, out: the tokens' rows of a matrix."""
TABLE = 1
"""table, stride, first, out: adds row `first + position` of a table."""
NGRAMS = 2
"""table, n, rows, symbols, out: adds the embedding of the last n tokens."""
NORM = 3
"""source, target, kind, weight, bias, wanted: a norm of each row (of the wanted ones, moved to the front)."""
PREPARE = 4
"""source, stride, form, blocks, wanted: rows as tiles of a form, in `prepared`."""
PRODUCT = 5
"""matrix, out, stride, mode, activation, wanted: what `prepared` holds times a matrix."""
HEADS = 6
"""layer, query norm, key norm: clips, normalises and turns queries and keys, and remembers keys and values."""
ATTEND = 7
"""layer, window: attention of each tile of queries."""
OPERANDS = 8
"""Columns of a program, the code included."""

# --- norms ---
COPIED, RMS, LAYER = range(3)

# --- modes of PRODUCT ---
STORED, ADDED, GATED, ACTIVATED, LOGITS = range(5)

# --- columns of the table of matrices ---
FORM, ADDRESS, OFFSET, BLOCKS, PANELS, BIAS, FACTOR = range(7)
"""OFFSET: bytes in the memory of weights; BIAS and FACTOR: places, BIAS -1 where there is none."""
MATRIX_COLUMNS = 7

# --- sizes that stay: indices of `shape` ---
(
    WIDTH,
    STRIDE,
    HEAD_COUNT,
    KV_HEADS,
    HEAD_WIDTH,
    HEAD_STRIDE,
    ROTARY_HALF,
    COSINES,
    SINES,
    BIAS_KIND,
    SLOPES,
    PAGE_SIZE,
    PAGES,
    CACHE_KIND,
    CACHE_UNIT,
    CACHE_ADDRESS,
    QUERIES,
    QUERY_STRIDE,
    ATTENDED,
    ATTENDED_STRIDE,
    PREPARED,
    SCRATCH,
    SCRATCH_STRIDE,
    SCRATCH_SCORES,
    LONGEST,
    QK_NORM,
    VOCAB_STRIDE,
    ARENA_ADDRESS,
    PRODUCTS,
) = range(29)
SHAPE_SIZE = 29

# --- numbers that stay: indices of `numbers` ---
EPSILON, SCALE, CLIP = range(3)

# --- biases of scores ---
NO_BIAS, ALIBI, ALIBI_BEFORE, OFFSETS = range(4)

# --- forms of the memory ---
CACHE_FLOAT32, CACHE_BFLOAT16, CACHE_INT8 = range(3)

# --- what changes with a step: indices of `call` ---
ROWS, WANTED, TASKS, TABLES_ADDRESS, LOGITS_ADDRESS, ACTIVE = range(6)
CALL_SIZE = 6

# --- columns of what is known of each row ---
TOKEN, POSITION, PAGES_AT, LAST = range(4)
"""PAGES_AT: where in the list of pages the row's text begins; LAST: whether the row is the last of its piece."""
ROW_COLUMNS = 4

# --- columns of a tile of queries: rows of one text that follow each other ---
TILE_ROW, TILE_COUNT = range(2)
