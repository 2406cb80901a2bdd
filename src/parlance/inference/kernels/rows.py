"""Loops over the rows of a step: embeddings, norms, and the form in which products read them.

`floats`, `halves`, `ints` and `codes` are the same arena seen as float32, uint16, int32 and int8; places are indices of
float32 numbers.
"""

import numpy as np

from parlance.inference.kernels import plan
from parlance.inference.kernels.panel_products import FLOAT32, INT8, PAIRS
from parlance.inference.kernels.plan import Bytes, Codes, Floats, Halves, Number, Sizes, Words
from parlance.inference.kernels.scalars import (
    bfloat16_bits,
    bfloat16_value,
    float_of_bits,
    inlined,
    int64_at,
    loop,
    magnitude,
    rounded,
)

_ZERO, _ONE, _HALF, _127 = np.float32(0.0), np.float32(1.0), np.float32(0.5), np.float32(127.0)
_FLOAT16 = np.float32(2.0**112)
_MULTIPLIER = np.uint64(0x2545F4914F6CDD1D)


@inlined
def tile_of(row: int, rows: int) -> tuple[int, int]:
    """(first row, rows) of the tile that `row` of `rows` lies in: twelves, then the largest of 8, 4, 2 and 1."""
    first = row // 12 * 12
    if first + 12 <= rows:
        return first, 12
    size = 8
    while True:
        if rows - first >= size:
            if row < first + size:
                return first, size
            first += size
        size //= 2


@loop
def embed_row(
    weights_float: Floats,
    weights_half: Halves,
    weights_byte: Bytes,
    matrix: Sizes,
    token: int,
    width: int,
    factor: Number,
    floats: Floats,
    out: int,
) -> None:
    """Row `token` of a matrix in panels, as `width` float32."""
    form, blocks = matrix[plan.FORM], matrix[plan.BLOCKS]
    lane = token % 16
    if form == FLOAT32:
        at = matrix[plan.OFFSET] // 4 + token // 16 * blocks * 32 + lane
        for k in range(width):
            floats[out + k] = weights_float[at + k * 16]
    elif form == PAIRS:
        at = matrix[plan.OFFSET] // 2 + token // 16 * blocks * 64 + 2 * lane
        for k in range(width):
            floats[out + k] = bfloat16_value(weights_half[at + (k >> 1) * 32 + (k & 1)])
    else:
        for k in range(width):
            at = matrix[plan.OFFSET] + (token // 16 * blocks + k // 64) * 1088
            group, inside = k % 64 // 32, k % 32
            scale = np.int32(weights_half[at // 2 + group * 16 + lane]) << np.int32(13)
            code = np.int32(weights_byte[at + 64 + group * 512 + inside // 4 * 64 + lane * 4 + inside % 4])
            value = float_of_bits(np.int32(scale)) * _FLOAT16 * factor
            floats[out + k] = np.float32(code - np.int32(128)) * value


@loop
def add_table_row(floats: Floats, table: int, out: int, width: int) -> None:
    """Adds `width` numbers."""
    for k in range(width):
        floats[out + k] += floats[table + k]


@loop
def ngram_row(
    rows: Sizes, row: int, pages: int, history: Sizes, page_size: int, n: int, count: int, symbols: int
) -> Number:
    """Row of a table of `count` for the last n tokens up to `row`, as `models/hashed_embeddings.py` defines it.

    `history`: the token at each position of each page; `pages`: the address of the text's list of them.
    """
    exact = symbols**n <= count
    index = np.uint64(0)
    position = rows[row, plan.POSITION]
    for back in range(n - 1, -1, -1):
        at = position - back
        token = symbols - 1
        if at >= 0:
            token = history[int64_at(pages + 8 * (at // page_size)) * page_size + at % page_size]
        if exact:
            index = index * np.uint64(symbols) + np.uint64(token)
        else:
            index = (index + np.uint64(token) + np.uint64(1)) * _MULTIPLIER
            index = index ^ ((index >> np.uint64(29)) & np.uint64((1 << 35) - 1))
    if not exact:
        index = (index & np.uint64((1 << 63) - 1)) % np.uint64(count)
    return np.int64(index)


@loop
def norm_row(
    floats: Floats, source: int, target: int, width: int, kind: int, weight: int, bias: int, epsilon: Number
) -> None:
    """RMSNorm or LayerNorm of one row; weight or bias -1: without."""
    if kind == plan.COPIED:
        for k in range(width):
            floats[target + k] = floats[source + k]
        return
    mean = _ZERO
    if kind == plan.LAYER:
        for k in range(width):
            mean += floats[source + k]
        mean /= np.float32(width)
    squares = _ZERO
    for k in range(width):
        off = floats[source + k] - mean
        squares += off * off
    scale = _ONE / np.sqrt(squares / np.float32(width) + epsilon)
    if weight < 0:
        for k in range(width):
            floats[target + k] = (floats[source + k] - mean) * scale
    elif bias < 0:
        for k in range(width):
            floats[target + k] = (floats[source + k] - mean) * scale * floats[weight + k]
    else:
        for k in range(width):
            floats[target + k] = (floats[source + k] - mean) * scale * floats[weight + k] + floats[bias + k]


@loop
def prepare_chunk(
    floats: Floats,
    halves: Halves,
    ints: Words,
    codes: Codes,
    source: int,
    form: int,
    chunk: int,
    blocks: int,
    tile: int,
    size: int,
    lane: int,
    spare: int,
) -> None:
    """Inputs 64 chunk to 64 chunk + 63 of a row at `source`, as row `lane` of the tile of `size` rows at `tile`.

    `spare`: room for 64 numbers.
    """
    source += 64 * chunk
    if form == PAIRS:
        # Rounded side by side first, which vectors can do, then put where the tile wants them.
        kept = min(64, 4 * (blocks - 16 * chunk))
        for k in range(kept):
            halves[2 * spare + k] = bfloat16_bits(floats[source + k])
        at = tile + (16 * chunk * size + lane) * 2
        for block in range(kept // 4):
            ints[at + block * size * 2] = ints[spare + 2 * block]
            ints[at + block * size * 2 + 1] = ints[spare + 2 * block + 1]
    elif form >= INT8:
        at = tile + (chunk * size + lane) * 20
        for group in range(2):
            first = source + 32 * group
            largest = np.int32(0)
            for k in range(32):
                largest = max(largest, magnitude(floats[first + k]))
            most = float_of_bits(largest)
            inverse = _127 / most if most > np.float32(1e-30) else _ZERO
            total = np.int32(0)
            for k in range(32):
                code = rounded(floats[first + k] * inverse)
                total = np.int32(total + code)
                codes[4 * at + 32 * group + k] = code
            floats[at + 16 + group] = most / _127
            ints[at + 18 + group] = total * np.int32(-128 if form == INT8 else -8)
    else:
        at = tile + (32 * chunk * size + lane) * 2
        for block in range(min(32, blocks - 32 * chunk)):
            floats[at + block * size * 2] = floats[source + 2 * block]
            floats[at + block * size * 2 + 1] = floats[source + 2 * block + 1]
