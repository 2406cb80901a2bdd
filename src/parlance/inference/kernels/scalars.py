"""What compiled loops need beside arithmetic: memory by its address, bits of numbers, waiting, and exp and its kin.

Numbers are float32 throughout. The functions are single expressions that LLVM turns into vectors inside loops.

Source of the exponential's polynomial: Cephes' expf (Moshier); of erf: Abramowitz and Stegun 1964, 7.1.26.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

Kernel = TypeVar("Kernel", bound=Callable[..., object])

FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Sums may be regrouped (always in the same way), but infinities and NaN stay what they are."""

_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()


def inlined(function: Kernel) -> Kernel:
    """Compile into its callers."""
    return cast(Kernel, njit(nogil=True, forceinline=True, error_model="numpy")(function))


def loop(function: Kernel) -> Kernel:
    """Compile as a function of its own, sums regrouped."""
    return cast(Kernel, njit(nogil=True, error_model="numpy", fastmath=FAST)(function))


def maximum(function: Kernel) -> Kernel:
    """As `loop`, for comparisons alone: with numbers that are none, any of the others may come out."""
    return cast(Kernel, njit(nogil=True, error_model="numpy", fastmath=True)(function))


def _instruction(result: Any, arguments: tuple[Any, ...], write: Callable[..., Any]) -> Any:
    """A function of compiled code made of what `write(builder, *values)` emits."""

    def generate(target: Any, builder: Any, _signature: Any, values: Any) -> Any:
        value = write(builder, *values)
        return target.get_dummy_value() if result is types.void else value

    if len(arguments) == 1:

        def one(_context: Any, _first: Any) -> Any:
            return result(*arguments), generate

        return intrinsic(one)

    def two(_context: Any, _first: Any, _second: Any) -> Any:
        return result(*arguments), generate

    return intrinsic(two)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


float_of_bits = _instruction(types.float32, (types.int32,), lambda builder, bits: builder.bitcast(bits, _f32))
"""The float32 with these bits (int32)."""
bits_of_float = _instruction(types.int32, (types.float32,), lambda builder, value: builder.bitcast(value, _i32))
"""The bits (int32) of a float32."""
int64_at = _instruction(
    types.int64, (types.int64,), lambda builder, address: builder.load(_pointer(builder, address, _i64))
)
"""The int64 at an address."""
store_float = _instruction(
    types.void,
    (types.int64, types.float32),
    lambda builder, address, value: builder.store(value, _pointer(builder, address, _f32)),
)
"""Write a float32 to an address."""
copy_pair = _instruction(
    types.void,
    (types.int64, types.int64),
    lambda builder, target, source: builder.store(
        builder.load(_pointer(builder, source, _i64), align=4), _pointer(builder, target, _i64), align=4
    ),
)
"""Copy 8 bytes to an address from another."""
atomic_add = _instruction(
    types.int64,
    (types.int64, types.int64),
    lambda builder, address, value: builder.atomic_rmw("add", _pointer(builder, address, _i64), value, "seq_cst"),
)
"""Add to the int64 at an address in one go, before and after which all other memory is in order; what it was before."""
atomic_load = _instruction(
    types.int64,
    (types.int64,),
    lambda builder, address: builder.load_atomic(_pointer(builder, address, _i64), "seq_cst", 8),
)
"""The int64 at an address, as others have last written it."""
atomic_store = _instruction(
    types.void,
    (types.int64, types.int64),
    lambda builder, address, value: builder.store_atomic(value, _pointer(builder, address, _i64), "seq_cst", 8),
)
"""Write an int64 to an address for others to see."""

_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_ZERO, _HALF, _ONE, _TWO = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.float32(2.0)


@inlined
def exp(x: Any) -> Any:
    """e^x within 2e-7 of it, for x held in -87..88."""
    x = min(max(x, _LEAST), _MOST)
    n = np.floor(x * _LOG2E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    return (p * r * r + r + _ONE) * float_of_bits((np.int32(n) + np.int32(127)) << np.int32(23))


SILU, GELU, GELU_TANH, RELU, RELU2 = range(5)
"""Activations."""

_ROOT_HALF, _P = np.float32(0.7071067811865476), np.float32(0.3275911)
_A1, _A2, _A3 = np.float32(0.254829592), np.float32(-0.284496736), np.float32(1.421413741)
_A4, _A5 = np.float32(-1.453152027), np.float32(1.061405429)
_TWICE_ROOT, _CUBIC = np.float32(2 * 0.7978845608028654), np.float32(0.044715)


@inlined
def magnitude(x: Any) -> Any:
    """The bits of |x|: whole numbers in the order of the magnitudes, whose maximum is one of vectors."""
    return np.int32(bits_of_float(x) & np.int32(0x7FFFFFFF))


@inlined
def rounded(x: Any) -> Any:
    """The nearest int32, halves away from zero."""
    return np.int32(x + (_HALF if x >= _ZERO else -_HALF))


@inlined
def activated(kind: int, x: Any) -> Any:
    """The activation of x."""
    if kind == SILU:
        return x / (_ONE + exp(-x))
    if kind == GELU:
        z = abs(x) * _ROOT_HALF
        t = _ONE / (_ONE + _P * z)
        tail = ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * exp(-z * z)  # 1 - erf(z)
        return _HALF * x * (_TWO - tail if x > _ZERO else tail)
    if kind == GELU_TANH:
        # x (1 + tanh u) / 2 is x / (1 + e^(-2 u)).
        return x / (_ONE + exp(-_TWICE_ROOT * (x + _CUBIC * x * x * x)))
    positive = max(x, _ZERO)
    return positive * positive if kind == RELU2 else positive


@inlined
def bfloat16_bits(x: Any) -> Any:
    """The 16 bits (uint16) of x rounded to the nearest bfloat16, ties to even."""
    bits = np.uint32(bits_of_float(x))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@inlined
def bfloat16_value(bits: Any) -> Any:
    """The float32 of 16 bits of a bfloat16."""
    return float_of_bits(np.int32(np.uint32(bits) << np.uint32(16)))
