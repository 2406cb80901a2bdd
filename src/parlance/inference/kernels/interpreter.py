"""One compiled function that runs a program of `plan.py` on several threads.

Thread 0 is whoever calls: it starts the others, does its share of each operation and returns when all is done. The
others stay in compiled code for as long as the backend lives: after a step each waits a few microseconds for the next
one and then sleeps in a read from a pipe. Between two operations all threads meet at a counter.

numba keeps compiled code by the text of the file that the function stands in; the texts of the other files are part of
the function as a number, so that a change of theirs compiles it anew.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numba import njit, types

from parlance.inference.kernels import plan
from parlance.inference.kernels.attention import attend, heads_row
from parlance.inference.kernels.panel_products import INPUTS, PANEL_BYTES, ROW_BYTES, product
from parlance.inference.kernels.plan import Floats, Number, Sizes
from parlance.inference.kernels.rows import (
    add_table_row,
    embed_row,
    ngram_row,
    norm_row,
    prepare_chunk,
    tile_of,
)
from parlance.inference.kernels.scalars import (
    activated,
    atomic_add,
    atomic_load,
    atomic_store,
    inlined,
    int64_at,
    loop,
    store_float,
)

_give_way = types.ExternalFunction("sched_yield", types.int32())
_read = types.ExternalFunction("read", types.int64(types.int32, types.int64, types.int64))
_write = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))

PATIENCE = 20_000
"""Looks at a counter before another thread is let onto the processor."""
WAKEFUL = 20_000
"""Looks for a next step before a thread sleeps: some tens of microseconds."""

PANEL_SIZES = np.array([PANEL_BYTES[form] for form in sorted(PANEL_BYTES)])
ROW_SIZES = np.array([ROW_BYTES[form] for form in sorted(ROW_BYTES)])
INPUT_COUNTS = np.array([INPUTS[form] for form in sorted(INPUTS)])

EPOCH, ARRIVED, STOPPED = 0, 8, 16
"""Counters shared by the threads, 64 bytes apart: steps begun, arrivals at meetings, whether to end."""
PASSED, SLEEPING, PIPE_OUT, PIPE_IN, BYTE = range(5)
"""Of each thread from 24 + 8 * thread on: meetings passed, whether it sleeps, its pipe, room for a byte."""


@loop
def finish_product(
    floats: Floats,
    mode: int,
    activation: int,
    scratch: int,
    tile: int,
    factor: Number,
    bias: int,
    panel: int,
    out: int,
    stride: int,
) -> None:
    """Bias, factor and what becomes of a panel's outputs, of `tile` rows at `scratch`, from row `out` on."""
    column = 16 * panel
    for row in range(tile):
        at = scratch + 16 * row
        target = out + row * stride
        if mode == plan.GATED:
            target += column // 2
            for lane in range(16):
                gate, up = floats[at + lane] * factor, floats[at + 192 + lane] * factor
                if bias >= 0:
                    gate += floats[bias + column + lane]
                    up += floats[bias + column + 16 + lane]
                floats[target + lane] = activated(activation, gate) * up
            continue
        target += column
        for lane in range(16):
            value = floats[at + lane] * factor
            if bias >= 0:
                value += floats[bias + column + lane]
            if mode == plan.ACTIVATED:
                value = activated(activation, value)
            if mode == plan.ADDED:
                value += floats[target + lane]
            floats[target + lane] = value


@loop
def product_share(
    floats: Floats, shape: Sizes, matrix: Sizes, step: Sizes, rows: int, logits: int, thread: int, threads: int
) -> None:
    """A thread's panels of a product with all rows."""
    form, blocks = matrix[plan.FORM], matrix[plan.BLOCKS]
    mode = step[4]
    joint = 2 if mode == plan.GATED else 1  # panels whose outputs meet
    units = matrix[plan.PANELS] // joint
    arena = shape[plan.ARENA_ADDRESS]
    scratch = shape[plan.SCRATCH] + thread * shape[plan.SCRATCH_STRIDE]
    panel_bytes, row_bytes = PANEL_SIZES[form] * blocks, ROW_SIZES[form] * blocks
    factor = floats[matrix[plan.FACTOR]]
    for unit in range(units * thread // threads, units * (thread + 1) // threads):
        row = 0
        while row < rows:
            _, size = tile_of(row, rows)
            inputs = arena + 4 * shape[plan.PREPARED] + row * row_bytes
            for part in range(joint):
                panel = matrix[plan.ADDRESS] + (unit * joint + part) * panel_bytes
                product(
                    shape[plan.PRODUCTS],
                    form,
                    size,
                    panel,
                    inputs,
                    blocks,
                    arena + 4 * (scratch + 192 * part),
                    64,
                    False,
                )
            if mode == plan.LOGITS:
                for lane in range(size * 16):
                    place = (row + lane // 16) * shape[plan.VOCAB_STRIDE] + 16 * unit + lane % 16
                    value = floats[scratch + lane] * factor
                    if matrix[plan.BIAS] >= 0:
                        value += floats[matrix[plan.BIAS] + 16 * unit + lane % 16]
                    store_float(logits + 4 * place, value)
            else:
                out = step[2] + row * step[3]
                finish_product(
                    floats, mode, step[5], scratch, size, factor, matrix[plan.BIAS], unit * joint, out, step[3]
                )
            row += size


@inlined
def meet(counters: Sizes, address: int, thread: int, threads: int) -> None:
    """Wait until all threads are here."""
    if threads == 1:
        return
    own = 24 + 8 * thread
    counters[own + PASSED] += 1
    goal = counters[own + PASSED] * threads
    atomic_add(address + 8 * ARRIVED, 1)
    looks = 0
    while atomic_load(address + 8 * ARRIVED) < goal:
        looks += 1
        if looks > PATIENCE:
            _give_way()


@inlined
def await_step(counters: Sizes, address: int, thread: int, seen: int) -> Any:
    """Wait for the step after `seen`; False: there will be none."""
    own = 24 + 8 * thread
    looks = 0
    while atomic_load(address + 8 * EPOCH) == seen:
        looks += 1
        if looks > WAKEFUL:
            atomic_store(address + 8 * (own + SLEEPING), 1)
            if atomic_load(address + 8 * EPOCH) == seen:
                _read(np.int32(counters[own + PIPE_OUT]), address + 8 * (own + BYTE), 1)
            atomic_store(address + 8 * (own + SLEEPING), 0)
    return atomic_load(address + 8 * STOPPED) == 0


@inlined
def begin_step(counters: Sizes, address: int, threads: int) -> None:
    """Start the others."""
    if threads == 1:
        return
    atomic_add(address + 8 * EPOCH, 1)
    for thread in range(1, threads):
        own = 24 + 8 * thread
        if atomic_load(address + 8 * (own + SLEEPING)):
            _write(np.int32(counters[own + PIPE_IN]), address + 8 * (own + BYTE), 1)


def _make(version: int) -> Callable[..., int]:
    def run(
        program: Any, matrices: Any, shape: Any, numbers: Any, call: Any, rows: Any, wanted: Any,
        tiles: Any, history: Any, arena: Any, weights: Any, cache: Any, counters: Any, address: int, thread: int,
    ) -> int:  # fmt: skip
        """Thread 0: one step. Others: all steps until told to end. Returns the number of the code's version."""
        floats, halves, ints, codes = arena
        weights_float, weights_half, weights_byte = weights
        cache_float, cache_half, cache_byte = cache
        stride, width = shape[plan.STRIDE], shape[plan.WIDTH]
        seen = 0
        if thread == 0:
            begin_step(counters, address, call[plan.ACTIVE])
        while thread == 0 or await_step(counters, address, thread, seen):
            seen += 1
            threads, count, pages = call[plan.ACTIVE], call[plan.ROWS], call[plan.TABLES_ADDRESS]
            for line in range(len(program)):
                step = program[line]
                operation = step[0]
                if operation == plan.EMBED:
                    matrix = matrices[step[1]]
                    size = shape[plan.PAGE_SIZE]
                    for row in range(thread, count, threads):
                        token, position = rows[row, plan.TOKEN], rows[row, plan.POSITION]
                        page = int64_at(pages + 8 * (rows[row, plan.PAGES_AT] + position // size))
                        history[page * size + position % size] = token
                        embed_row(
                            weights_float, weights_half, weights_byte, matrix, token, step[3],
                            floats[matrix[plan.FACTOR]], floats, step[2] + row * stride,
                        )  # fmt: skip
                elif operation == plan.TABLE:
                    for row in range(thread, count, threads):
                        at = step[1] + (step[3] + rows[row, plan.POSITION]) * step[2]
                        add_table_row(floats, at, step[4] + row * stride, width)
                elif operation == plan.NGRAMS:
                    for row in range(thread, count, threads):
                        texts = pages + 8 * rows[row, plan.PAGES_AT]
                        entry = ngram_row(rows, row, texts, history, shape[plan.PAGE_SIZE], step[2], step[3], step[4])
                        add_table_row(floats, step[1] + entry * step[6], step[5] + row * stride, step[6])
                elif operation == plan.NORM:
                    for row in range(thread, call[plan.WANTED] if step[6] else count, threads):
                        source = wanted[row] if step[6] else row
                        norm_row(
                            floats, step[1] + source * stride, step[2] + row * stride, width, step[3], step[4], step[5],
                            numbers[plan.EPSILON],
                        )  # fmt: skip
                elif operation == plan.PREPARE:
                    number = call[plan.WANTED] if step[5] else count
                    form, blocks = step[3], step[4]
                    spare = shape[plan.SCRATCH] + thread * shape[plan.SCRATCH_STRIDE]
                    chunks = (blocks * INPUT_COUNTS[form] + 63) // 64
                    for task in range(thread, number * chunks, threads):
                        row, chunk = task // chunks, task % chunks
                        first, size = tile_of(row, number)
                        tile = shape[plan.PREPARED] + first * blocks * ROW_SIZES[form] // 4
                        prepare_chunk(
                            floats,
                            halves,
                            ints,
                            codes,
                            step[1] + row * step[2],
                            form,
                            chunk,
                            blocks,
                            tile,
                            size,
                            row - first,
                            spare,
                        )
                elif operation == plan.PRODUCT:
                    number = call[plan.WANTED] if step[6] else count
                    product_share(
                        floats, shape, matrices[step[1]], step, number, call[plan.LOGITS_ADDRESS], thread, threads
                    )
                elif operation == plan.HEADS:
                    heads = shape[plan.KV_HEADS]
                    for task in range(thread, count * heads, threads):
                        heads_row(
                            floats, shape, numbers, cache_float, cache_half, cache_byte, rows, task // heads,
                            task % heads, step[1], (step[2], step[3]), pages,
                        )  # fmt: skip
                elif operation == plan.ATTEND:
                    group = shape[plan.HEAD_COUNT] // shape[plan.KV_HEADS]
                    parts = (group + 11) // 12
                    scratch = shape[plan.SCRATCH] + thread * shape[plan.SCRATCH_STRIDE]
                    for task in range(thread, call[plan.TASKS] * shape[plan.KV_HEADS] * parts, threads):
                        part = task % parts
                        head = task // parts % shape[plan.KV_HEADS]
                        tile = task // parts // shape[plan.KV_HEADS]
                        begin, end = group * part // parts, group * (part + 1) // parts
                        attend(
                            floats, shape, numbers, cache_float, cache_byte, rows, tiles[tile, 0], tiles[tile, 1],
                            (head, head * group + begin, end - begin), step[1], step[2], (pages, scratch),
                        )  # fmt: skip
                meet(counters, address, thread, threads)
            if thread == 0:
                break
        return version

    return cast(Callable[..., int], njit(cache=True, nogil=True, error_model="numpy")(run))


run = _make(zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))))
"""The compiled function."""
