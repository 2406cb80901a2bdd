"""The innermost loop: a panel of 16 outputs times a tile of rows, written as LLVM instructions.

A panel holds the weights of 16 outputs so that one 64-byte vector has the same input (or inputs) of each: an input of a
row is broadcast, and nothing is ever summed across a vector. A tile of rows shares what is read of the panel. Forms of
weights, and what a block (one turn of the loop) has of panel and row:

    form      inputs  bytes of the panel                       bytes of a row
    FLOAT32   2       2 x 16 float32                           2 float32
    BFLOAT16  2       16 pairs of bfloat16                     2 float32
    PAIRS     4       2 x 16 pairs of bfloat16                 2 pairs of bfloat16
    INT8      64      2 x 16 float16 scales, 16 x 16 x 4 int8  64 int8, 2 float32 scales, 2 int32 corrections
    INT4      64      2 x 16 float16 scales, 8 x 16 x 4 bytes  the same

Weights in INT8 are stored as code + 128 and in INT4 as code + 8, unsigned, as the processor's instruction wants them;
the correction is -128 or -8 times the sum of the row's codes. In a tile of R rows, block j of row r lies at
`(j R + r) * bytes of a row`.

Each output is summed in the same order whatever the tile: a row's result does not depend, to the last bit, on the rows
beside it. Where the processor has AVX512-BF16 or AVX512-VNNI the products of PAIRS and INT8/INT4 are those
instructions; else LLVM makes what it can of plain ones, on every processor.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from llvmlite import ir  # type: ignore[import-untyped]
from numba import cfunc, types
from numba.extending import intrinsic

FLOAT32, BFLOAT16, PAIRS, INT8, INT4 = range(5)
"""Forms of weights."""

LANES = 16
"""Outputs of a panel."""
INPUTS = {FLOAT32: 2, BFLOAT16: 2, PAIRS: 4, INT8: 64, INT4: 64}
"""Inputs of a block."""
PANEL_BYTES = {FLOAT32: 128, BFLOAT16: 64, PAIRS: 128, INT8: 1088, INT4: 576}
"""Bytes of a panel's block."""
ROW_BYTES = {FLOAT32: 8, BFLOAT16: 8, PAIRS: 8, INT8: 80, INT4: 80}
"""Bytes of a row's block."""
TILES = (12, 8, 4, 2, 1)
"""Rows of a tile: as many accumulators as 32 vector registers hold, and less."""
AHEAD = 4096
"""Bytes between what is read and what is fetched; measured in `benchmarks/decode.py`."""

_i8, _i16, _i32, _i64, _f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_f32s, _i32s, _i16s, _halves = (ir.VectorType(kind, LANES) for kind in (_f32, _i32, _i16, ir.HalfType()))


class _Emitter:
    """Writes the loop of one form and tile into a function that is being compiled."""

    def __init__(self, builder: ir.IRBuilder, form: int, rows: int, special: bool) -> None:
        self.builder, self.form, self.rows, self.special = builder, form, rows, special
        self.chains = 1 if form in (INT8, INT4) else 2

    def emit(
        self, weights: ir.Value, tile: ir.Value, blocks: ir.Value, out: ir.Value, stride: ir.Value, add: ir.Value
    ) -> None:
        """out[r] (16 float32 at `out + r * stride` bytes) = or += the products summed over the blocks."""
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("blocks"), builder.append_basic_block("stored")
        zero = ir.Constant(_f32s, [0.0] * LANES)
        builder.branch(loop)
        builder.position_at_end(loop)
        count = self._phi(_i64, ir.Constant(_i64, 0), before)
        panel_at, tile_at = self._phi(_i64, weights, before), self._phi(_i64, tile, before)
        sums = [[self._phi(_f32s, zero, before) for _ in range(self.chains)] for _ in range(self.rows)]
        fresh = self._block(panel_at, tile_at, sums)
        following = builder.add(count, ir.Constant(_i64, 1))
        end = builder.block
        count.add_incoming(following, end)
        panel_at.add_incoming(builder.add(panel_at, ir.Constant(_i64, PANEL_BYTES[self.form])), end)
        tile_at.add_incoming(builder.add(tile_at, ir.Constant(_i64, ROW_BYTES[self.form] * self.rows)), end)
        for chains, values in zip(sums, fresh, strict=True):
            for phi, value in zip(chains, values, strict=True):
                phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", following, blocks), loop, after)
        builder.position_at_end(after)
        totals = [values[0] if self.chains == 1 else builder.fadd(values[0], values[1]) for values in fresh]
        places = [
            self._at(builder.add(out, builder.mul(stride, ir.Constant(_i64, row))), _f32s) for row in range(self.rows)
        ]
        with builder.if_else(add) as (then, otherwise):
            with then:
                for place, total in zip(places, totals, strict=True):
                    builder.store(builder.fadd(builder.load(place, align=4), total), place, align=4)
            with otherwise:
                for place, total in zip(places, totals, strict=True):
                    builder.store(total, place, align=4)

    def _phi(self, kind: ir.Type, start: ir.Value, before: ir.Block) -> Any:
        phi = self.builder.phi(kind)
        phi.add_incoming(start, before)
        return phi

    def _at(self, address: ir.Value, kind: ir.Type, offset: int = 0) -> ir.Value:
        moved = self.builder.add(address, ir.Constant(_i64, offset)) if offset else address
        return self.builder.inttoptr(moved, kind.as_pointer())

    def _load(self, address: ir.Value, kind: ir.Type, offset: int, align: int) -> ir.Value:
        return self.builder.load(self._at(address, kind, offset), align=align)

    def _spread(self, address: ir.Value, kind: ir.Type, offset: int) -> ir.Value:
        """One number of a row in all lanes."""
        builder, vector = self.builder, ir.VectorType(kind, LANES)
        single = builder.insert_element(
            ir.Constant(vector, ir.Undefined), self._load(address, kind, offset, 4), ir.Constant(_i32, 0)
        )
        return builder.shuffle_vector(
            single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES)
        )

    def _call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, kind, name)
        return self.builder.call(function, arguments)

    def _add_product(self, one: ir.Value, other: ir.Value, total: ir.Value) -> ir.Value:
        """one * other + total, in one rounding where the processor can."""
        return self._call("llvm.fmuladd.v16f32", _f32s, one, other, total)

    def _fetch(self, panel_at: ir.Value) -> None:
        """Ask for the memory that will be read soon."""
        for line in range(0, PANEL_BYTES[self.form], 64):
            place = self._at(panel_at, _i8, AHEAD + line)
            hints = [ir.Constant(_i32, value) for value in (0, 3, 1)]
            self._call("llvm.prefetch.p0", ir.VoidType(), place, *hints)

    def _block(self, panel_at: ir.Value, tile_at: ir.Value, sums: list[list[Any]]) -> list[list[ir.Value]]:
        self._fetch(panel_at)
        if self.form in (INT8, INT4):
            return self._whole_numbers(panel_at, tile_at, sums)
        if self.form == FLOAT32:
            weights = [self._load(panel_at, _f32s, 64 * chain, 64) for chain in range(2)]
        elif self.form == BFLOAT16:
            weights = self._widened(self._load(panel_at, _i32s, 0, 64))
        else:
            return self._pairs(panel_at, tile_at, sums)
        return [
            [
                self._add_product(weights[chain], self._spread(tile_at, _f32, 8 * row + 4 * chain), chains[chain])
                for chain in range(2)
            ]
            for row, chains in enumerate(sums)
        ]

    def _widened(self, pairs: ir.Value) -> list[ir.Value]:
        """The first and the second bfloat16 of each pair, as float32."""
        builder = self.builder
        first = builder.shl(pairs, ir.Constant(_i32s, [16] * LANES))
        second = builder.and_(pairs, ir.Constant(_i32s, [0xFFFF0000] * LANES))
        return [builder.bitcast(first, _f32s), builder.bitcast(second, _f32s)]

    def _pairs(self, panel_at: ir.Value, tile_at: ir.Value, sums: list[list[Any]]) -> list[list[ir.Value]]:
        weights = [self._load(panel_at, _i32s, 64 * chain, 64) for chain in range(2)]
        wide = [] if self.special else [self._widened(pairs) for pairs in weights]
        result = []
        for row, chains in enumerate(sums):
            values = []
            for chain in range(2):
                numbers = self._spread(tile_at, _i32, 8 * row + 4 * chain)
                if self.special:
                    value = self._call(
                        "llvm.x86.avx512bf16.dpbf16ps.512", _f32s, chains[chain], weights[chain], numbers
                    )
                else:
                    first, second = self._widened(numbers)
                    value = self._add_product(wide[chain][1], second, chains[chain])
                    value = self._add_product(wide[chain][0], first, value)
                values.append(value)
            result.append(values)
        return result

    def _whole_numbers(self, panel_at: ir.Value, tile_at: ir.Value, sums: list[list[Any]]) -> list[list[ir.Value]]:
        builder = self.builder
        totals = [chains[0] for chains in sums]
        width = 512 if self.form == INT8 else 256  # bytes of codes of a group
        for group in range(2):
            scales = self._scales(panel_at, 32 * group)
            row_at = [80 * row for row in range(self.rows)]
            dots = [self._spread(tile_at, _i32, at + 72 + 4 * group) for at in row_at]
            codes_at = builder.add(panel_at, ir.Constant(_i64, 64 + group * width))
            inputs_at = builder.add(tile_at, ir.Constant(_i64, 32 * group))
            if self.special:
                for vector in range(width // 64):
                    dots = self._vector(codes_at, inputs_at, vector, dots)
            else:
                dots = self._rolled(codes_at, inputs_at, width // 64, dots)
            for row, at in enumerate(row_at):
                scale = builder.fmul(scales, self._spread(tile_at, _f32, at + 64 + 4 * group))
                totals[row] = self._add_product(builder.sitofp(dots[row], _f32s), scale, totals[row])
        return [[total] for total in totals]

    def _vector(self, codes_at: ir.Value, inputs_at: ir.Value, vector: int, dots: list[ir.Value]) -> list[ir.Value]:
        """`dots` and the products of one vector of codes with each row."""
        builder = self.builder
        codes = self._load(codes_at, _i32s, 64 * vector, 64)
        steps = [(codes, 4 * vector)]
        if self.form == INT4:
            shifted = builder.lshr(codes, ir.Constant(_i32s, [4] * LANES))
            nibble = ir.Constant(_i32s, [0x0F0F0F0F] * LANES)
            steps = [(builder.and_(codes, nibble), 4 * vector), (builder.and_(shifted, nibble), 16 + 4 * vector)]
        for weights, place in steps:
            dots = [
                self._dot(dot, weights, self._spread(inputs_at, _i32, 80 * row + place)) for row, dot in enumerate(dots)
            ]
        return dots

    def _rolled(self, codes_at: ir.Value, inputs_at: ir.Value, vectors: int, dots: list[ir.Value]) -> list[ir.Value]:
        """The same for all vectors of a group, as a loop: without the special instruction each is many."""
        builder = self.builder
        before = builder.block
        loop, after = builder.append_basic_block("vectors"), builder.append_basic_block("vectors_done")
        builder.branch(loop)
        builder.position_at_end(loop)
        count = self._phi(_i64, ir.Constant(_i64, 0), before)
        phis = [self._phi(_i32s, dot, before) for dot in dots]
        codes = builder.add(codes_at, builder.mul(count, ir.Constant(_i64, 64)))
        inputs = builder.add(inputs_at, builder.mul(count, ir.Constant(_i64, 4)))
        fresh = self._vector(codes, inputs, 0, phis)
        following = builder.add(count, ir.Constant(_i64, 1))
        count.add_incoming(following, builder.block)
        for phi, value in zip(phis, fresh, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", following, ir.Constant(_i64, vectors)), loop, after)
        builder.position_at_end(after)
        return fresh

    def _scales(self, panel_at: ir.Value, offset: int) -> ir.Value:
        """16 scales, not negative, from float16 to float32."""
        builder = self.builder
        if self.special:
            return builder.fpext(self._load(panel_at, _halves, offset, 32), _f32s)
        bits = builder.zext(self._load(panel_at, _i16s, offset, 32), _i32s)
        moved = builder.bitcast(builder.shl(bits, ir.Constant(_i32s, [13] * LANES)), _f32s)
        return builder.fmul(moved, ir.Constant(_f32s, [2.0**112] * LANES))

    def _dot(self, total: ir.Value, weights: ir.Value, codes: ir.Value) -> ir.Value:
        """total + the four products of unsigned bytes of `weights` and signed ones of `codes` in each lane."""
        builder = self.builder
        if self.special:
            return self._call("llvm.x86.avx512.vpdpbusd.512", _i32s, total, weights, codes)
        for byte in range(4):
            left, right = 24 - 8 * byte, ir.Constant(_i32s, [24] * LANES)
            weight = builder.lshr(weights, ir.Constant(_i32s, [8 * byte] * LANES))
            weight = builder.and_(weight, ir.Constant(_i32s, [255] * LANES))
            code = builder.ashr(builder.shl(codes, ir.Constant(_i32s, [left] * LANES)), right)
            total = builder.add(total, builder.mul(weight, code))
        return total


def _all_products(special: bool) -> Callable[..., None]:
    def typed(
        _context: Any, _form: Any, _rows: Any, _panel: Any, _tile: Any, _blocks: Any, _out: Any, _stride: Any, _add: Any
    ) -> Any:
        def generate(target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
            form, rows, *rest = arguments
            chosen = builder.add(builder.mul(form, ir.Constant(_i64, LANES)), rows)
            done = builder.append_basic_block("done")
            switch = builder.switch(chosen, done)
            for kind in INPUTS:
                for size in TILES:
                    case = builder.append_basic_block(f"form{kind}rows{size}")
                    switch.add_case(ir.Constant(_i64, LANES * kind + size), case)
                    builder.position_at_end(case)
                    _Emitter(builder, kind, size, special).emit(*rest)
                    builder.branch(done)
            builder.position_at_end(done)
            return target.get_dummy_value()

        return types.void(*[types.int64] * 7, types.boolean), generate

    return cast(Callable[..., None], intrinsic(typed))


_special, _plain = _all_products(special=True), _all_products(special=False)
_SIGNATURE = types.void(*[types.int64] * 7, types.boolean)


def _special_entry(
    form: int, rows: int, panel: int, tile: int, blocks: int, out: int, stride: int, add: bool
) -> None:  # pragma: no cover - compiled
    _special(form, rows, panel, tile, blocks, out, stride, add)


def _plain_entry(
    form: int, rows: int, panel: int, tile: int, blocks: int, out: int, stride: int, add: bool
) -> None:  # pragma: no cover - compiled
    _plain(form, rows, panel, tile, blocks, out, stride, add)


@cache
def _compiled(special: bool) -> Any:
    return cfunc(_SIGNATURE, cache=True)(_special_entry if special else _plain_entry)


def product_address(*, special: bool) -> int:
    """Where the compiled products are, for `product`; `special`: with AVX512-BF16 and AVX512-VNNI."""
    return int(_compiled(special).address)


def _call_product() -> Callable[..., None]:
    def typed(
        _context: Any, _entry: Any, _form: Any, _rows: Any, _panel: Any, _tile: Any, _blocks: Any, _out: Any,
        _stride: Any, _add: Any,
    ) -> Any:  # fmt: skip
        def generate(target: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> ir.Value:
            entry, *rest, add = arguments
            kind = ir.FunctionType(ir.VoidType(), [_i64] * 7 + [_i8])
            builder.call(builder.inttoptr(entry, kind.as_pointer()), [*rest, builder.zext(add, _i8)])
            return target.get_dummy_value()

        return types.void(*[types.int64] * 8, types.boolean), generate

    return cast(Callable[..., None], intrinsic(typed))


product = _call_product()
"""In compiled code: (address of the products, form, rows of the tile, panel, tile, blocks, out, stride of out, whether
to add to what is there). Addresses and sizes in bytes; at least one block."""
