"""Loops of attention: positions into queries and keys, the memory in pages, and each tile of queries over its text.

The memory of one layer, page and key/value head is a unit: its keys in panels of 16 positions (inputs: the head's
components), its values in panels of 16 components (inputs: positions), so that scores and weighted sums are the
products of `panel_products.py`. In float32 and bfloat16 they are read as they lie; int8 codes (one scale a position)
are widened page by page first.
"""

import numpy as np

from parlance.inference.kernels import plan
from parlance.inference.kernels.panel_products import BFLOAT16, FLOAT32, product
from parlance.inference.kernels.plan import Codes, Floats, Halves, Number, Sizes
from parlance.inference.kernels.rows import norm_row
from parlance.inference.kernels.scalars import (
    bfloat16_bits,
    bfloat16_value,
    copy_pair,
    exp,
    float_of_bits,
    int64_at,
    loop,
    magnitude,
    maximum,
    rounded,
)

_ZERO, _ONE, _127 = np.float32(0.0), np.float32(1.0), np.float32(127.0)
_LOWEST = np.float32(-3e38)


@loop
def tile_size(rows: int) -> int:
    """The smallest tile that holds so many rows."""
    if rows > 8:
        return 12
    if rows > 4:
        return 8
    if rows > 2:
        return 4
    return rows


@loop
def turn(floats: Floats, at: int, half: int, cosines: int, sines: int) -> None:
    """Rotary position: component i with component i + half."""
    for k in range(half):
        cos, sin = floats[cosines + k], floats[sines + k]
        first, second = floats[at + k], floats[at + half + k]
        floats[at + k] = first * cos - second * sin
        floats[at + half + k] = second * cos + first * sin


@loop
def finish_head(floats: Floats, shape: Sizes, numbers: Floats, at: int, weight: int, position: int) -> None:
    """Clips, normalises and turns one head's query or key in place; `weight`: of the norm, -1: none."""
    width, clip = shape[plan.HEAD_WIDTH], numbers[plan.CLIP]
    if clip > _ZERO:
        for k in range(width):
            floats[at + k] = min(max(floats[at + k], -clip), clip)
    if shape[plan.QK_NORM] and weight != -2:
        norm_row(floats, at, at, width, plan.RMS, weight, -1, numbers[plan.EPSILON])
    half = shape[plan.ROTARY_HALF]
    if half and weight != -2:
        turn(floats, at, half, shape[plan.COSINES] + position * half, shape[plan.SINES] + position * half)


@loop
def unit_of(shape: Sizes, layer: int, page: int, head: int) -> Number:
    """Where, in bytes of the memory, the keys and values of a page and head begin."""
    return ((layer * shape[plan.PAGES] + page) * shape[plan.KV_HEADS] + head) * shape[plan.CACHE_UNIT]


@loop
def remember(
    floats: Floats,
    shape: Sizes,
    cache_float: Floats,
    cache_half: Halves,
    cache_byte: Codes,
    unit: int,
    slot: int,
    key: int,
    value: int,
    last: bool,
) -> None:
    """Keep one position's key and value in a unit. After the last of a piece, its partner in a pair becomes zero."""
    width, padded, size = shape[plan.HEAD_WIDTH], shape[plan.HEAD_STRIDE], shape[plan.PAGE_SIZE]
    kind = shape[plan.CACHE_KIND]
    panel, lane = slot // 16, slot % 16
    if kind == plan.CACHE_FLOAT32:
        keys, values = unit // 4, unit // 4 + size * padded
        for e in range(width):
            cache_float[keys + (panel * padded + e) * 16 + lane] = floats[key + e]
            at = values + (e // 16 * size + slot) * 16 + e % 16
            cache_float[at] = floats[value + e]
            if last and slot % 2 == 0:
                cache_float[at + 16] = _ZERO
    elif kind == plan.CACHE_BFLOAT16:
        keys, values = unit // 2, unit // 2 + size * padded
        for e in range(width):
            cache_half[keys + (panel * (padded // 2) + e // 2) * 32 + lane * 2 + e % 2] = bfloat16_bits(floats[key + e])
            at = values + (e // 16 * (size // 2) + slot // 2) * 32 + e % 16 * 2
            cache_half[at + slot % 2] = bfloat16_bits(floats[value + e])
            if last and slot % 2 == 0:
                cache_half[at + 1] = 0
    else:
        scales = (unit + 2 * size * padded) // 4
        for part in range(2):
            source = key if part == 0 else value
            largest = np.int32(0)
            for e in range(width):
                largest = max(largest, magnitude(floats[source + e]))
            most = float_of_bits(largest)
            inverse = _127 / most if most > np.float32(1e-30) else _ZERO
            cache_float[scales + part * size + slot] = most / _127
            if part == 1 and last and slot % 2 == 0:
                cache_float[scales + size + slot + 1] = _ZERO
            for e in range(width):
                code = rounded(floats[source + e] * inverse)
                if part == 0:
                    cache_byte[unit + (panel * padded + e) * 16 + lane] = code
                else:
                    cache_byte[unit + size * padded + (e // 16 * size + slot) * 16 + e % 16] = code


@loop
def heads_row(
    floats: Floats,
    shape: Sizes,
    numbers: Floats,
    cache_float: Floats,
    cache_half: Halves,
    cache_byte: Codes,
    rows: Sizes,
    row: int,
    head: int,
    layer: int,
    norms: tuple[int, int],
    pages: int,
) -> None:
    """One key/value head of one row with the queries that belong to it; `norms`: (query weight, key weight)."""
    position = rows[row, plan.POSITION]
    width, count = shape[plan.HEAD_WIDTH], shape[plan.HEAD_COUNT]
    group = count // shape[plan.KV_HEADS]
    base = shape[plan.QUERIES] + row * shape[plan.QUERY_STRIDE]
    for query in range(head * group, (head + 1) * group):
        finish_head(floats, shape, numbers, base + query * width, norms[0], position)
    key = base + (count + head) * width
    value = key + shape[plan.KV_HEADS] * width
    finish_head(floats, shape, numbers, key, norms[1], position)
    finish_head(floats, shape, numbers, value, -2, position)
    size = shape[plan.PAGE_SIZE]
    page = int64_at(pages + 8 * (rows[row, plan.PAGES_AT] + position // size))
    unit = unit_of(shape, layer, page, head)
    last = rows[row, plan.LAST] != 0
    remember(floats, shape, cache_float, cache_half, cache_byte, unit, position % size, key, value, last)


@loop
def widen_keys(
    floats: Floats, cache_float: Floats, cache_byte: Codes, unit: int, size: int, padded: int, target: int
) -> None:
    """A page's keys from int8 to float32."""
    scales = (unit + 2 * size * padded) // 4
    for panel in range(size // 16):
        for e in range(padded):
            at = (panel * padded + e) * 16
            for lane in range(16):
                scale = cache_float[scales + panel * 16 + lane]
                floats[target + at + lane] = np.float32(cache_byte[unit + at + lane]) * scale


@loop
def widen_values(
    floats: Floats, cache_float: Floats, cache_byte: Codes, unit: int, size: int, padded: int, target: int
) -> None:
    """A page's values from int8 to float32."""
    scales = (unit + 2 * size * padded) // 4 + size
    first = unit + size * padded
    for panel in range(padded // 16):
        for slot in range(size):
            at = (panel * size + slot) * 16
            scale = cache_float[scales + slot]
            for lane in range(16):
                floats[target + at + lane] = np.float32(cache_byte[first + at + lane]) * scale


@loop
def add_bias(
    floats: Floats,
    kind: int,
    scores: int,
    first: int,
    low: int,
    high: int,
    position: int,
    slope: Number,
    offset: Number,
    scale: Number,
) -> None:
    """Adds to the scores of keys low..high what depends on where they stand; `scores`: of key `first`."""
    at = scores - first
    if kind == plan.ALIBI:
        for key in range(low, high + 1):
            floats[at + key] += slope * np.float32(key - position)
    elif kind == plan.ALIBI_BEFORE:
        for key in range(low, high + 1):
            place = bfloat16_value(bfloat16_bits(np.float32(key)))
            floats[at + key] += bfloat16_value(bfloat16_bits(slope * place)) * scale
    elif kind == plan.OFFSETS:
        for key in range(low, high + 1):
            floats[at + key] -= slope * abs(np.float32(key - position) + offset)


@maximum
def largest_of(floats: Floats, first: int, last: int) -> Number:
    """The largest of floats[first..last]."""
    most = _LOWEST
    for k in range(first, last + 1):
        most = max(most, floats[k])
    return most


@loop
def soften(floats: Floats, scores: int, low: int, high: int) -> Number:
    """exp(score - largest) of places low..high after `scores`, in place; their sum."""
    most = largest_of(floats, scores + low, scores + high)
    total = _ZERO
    for k in range(low, high + 1):
        value = exp(floats[scores + k] - most)
        floats[scores + k] = value
        total += value
    return total


@loop
def attend(
    floats: Floats,
    shape: Sizes,
    numbers: Floats,
    cache_float: Floats,
    cache_byte: Codes,
    rows: Sizes,
    first_row: int,
    count: int,
    heads: tuple[int, int, int],
    layer: int,
    window: int,
    place: tuple[int, int],
) -> None:
    """Attention of `count` rows of one text and some of the query heads of one key/value head.

    heads: (key/value head, first query head, how many). place: (address of the lists of pages, scratch of the thread).
    """
    head, first_head, head_count = heads
    pages, scratch = place
    width, padded, size = shape[plan.HEAD_WIDTH], shape[plan.HEAD_STRIDE], shape[plan.PAGE_SIZE]
    kind = shape[plan.CACHE_KIND]
    tile = tile_size(count * head_count)
    queries, sums = scratch, scratch + 12 * padded
    totals, scores = sums + 12 * padded, scratch + shape[plan.SCRATCH_SCORES]
    widened = totals + 16
    shares = scores + 12 * shape[plan.LONGEST]
    arena = shape[plan.ARENA_ADDRESS]
    scale = numbers[plan.SCALE]
    # Queries as a tile.
    for lane in range(tile):
        if lane < count * head_count:
            at = shape[plan.QUERIES] + (first_row + lane // head_count) * shape[plan.QUERY_STRIDE]
            at += (first_head + lane % head_count) * width
            for e in range(width):
                floats[queries + ((e >> 1) * tile + lane) * 2 + (e & 1)] = floats[at + e] * scale
            for e in range(width, padded):
                floats[queries + ((e >> 1) * tile + lane) * 2 + (e & 1)] = _ZERO
        else:
            for e in range(padded):
                floats[queries + ((e >> 1) * tile + lane) * 2 + (e & 1)] = _ZERO
    # Scores of all keys that one of the rows sees, page by page.
    newest = rows[first_row + count - 1, plan.POSITION]
    first_page = max(np.int64(0), rows[first_row, plan.POSITION] - window + 1) // size
    last_page = newest // size
    first_key = first_page * size
    longest = (newest - first_key) // 16 * 16 + 32
    table = pages + 8 * rows[first_row, plan.PAGES_AT]
    form = BFLOAT16 if kind == plan.CACHE_BFLOAT16 else FLOAT32
    number = 2 if kind == plan.CACHE_BFLOAT16 else 4  # bytes
    for page in range(first_page, last_page + 1):
        unit = unit_of(shape, layer, int64_at(table + 8 * page), head)
        keys = shape[plan.CACHE_ADDRESS] + unit
        if kind == plan.CACHE_INT8:
            widen_keys(floats, cache_float, cache_byte, unit, size, padded, widened)
            keys = arena + 4 * widened
        panels = size // 16 if page < last_page else newest % size // 16 + 1
        for panel in range(panels):
            out = scores + page * size - first_key + 16 * panel
            product(
                shape[plan.PRODUCTS], form, tile, keys + panel * padded * 16 * number, arena + 4 * queries, padded // 2,
                arena + 4 * out, 4 * longest, False,
            )  # fmt: skip
    # Softmax of each row without its division, as a tile. What a row does not see has a share of 0.
    length = (newest - first_key + 2) // 2 * 2
    for lane in range(tile):
        row = first_row + lane // head_count
        own = scores + lane * longest
        low, high = 0, -1
        if lane < count * head_count:
            position = rows[row, plan.POSITION]
            start = max(np.int64(0), position - window + 1)
            query = first_head + lane % head_count
            bias = shape[plan.BIAS_KIND]
            if bias != plan.NO_BIAS:
                slope = floats[shape[plan.SLOPES] + query]
                add_bias(floats, bias, own, first_key, start, position, position, slope, np.float32(query + 1), scale)
            low, high = start - first_key, position - first_key
            floats[totals + lane] = soften(floats, own, low, high)
        for k in range(low):
            floats[own + k] = _ZERO
        for k in range(high + 1, length):
            floats[own + k] = _ZERO
    for pair in range(length // 2):
        for lane in range(tile):
            copy_pair(arena + 4 * (shares + (pair * tile + lane) * 2), arena + 4 * (scores + lane * longest + 2 * pair))
    # Weighted sums of the values.
    for page in range(first_page, last_page + 1):
        unit = unit_of(shape, layer, int64_at(table + 8 * page), head)
        values = shape[plan.CACHE_ADDRESS] + unit + size * padded * number
        if kind == plan.CACHE_INT8:
            widen_values(floats, cache_float, cache_byte, unit, size, padded, widened)
            values = arena + 4 * widened
        blocks = size // 2 if page < last_page else newest % size // 2 + 1
        for panel in range(padded // 16):
            product(
                shape[plan.PRODUCTS], form, tile, values + panel * size * 16 * number,
                arena + 4 * (shares + (page * size - first_key) * tile), blocks,
                arena + 4 * (sums + 16 * panel), 4 * padded, page > first_page,
            )  # fmt: skip
    for lane in range(count * head_count):
        at = shape[plan.ATTENDED] + (first_row + lane // head_count) * shape[plan.ATTENDED_STRIDE]
        at += (first_head + lane % head_count) * width
        inverse = _ONE / floats[totals + lane]
        for e in range(width):
            floats[at + e] = floats[sums + lane * padded + e] * inverse
