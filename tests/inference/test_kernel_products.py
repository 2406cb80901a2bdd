"""The compiled products against numpy, and weights in few bits against their definition."""

import ctypes

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from parlance.inference.kernels.kernel_backend import special_instructions
from parlance.inference.kernels.panel_products import (
    BFLOAT16,
    FLOAT32,
    INPUTS,
    INT4,
    INT8,
    PAIRS,
    PANEL_BYTES,
    ROW_BYTES,
    TILES,
    product_address,
)
from parlance.inference.kernels.panels import interleaved, pack
from parlance.inference.kernels.program import aligned
from parlance.inference.quantisation.rounding import nearest
from parlance.models.quantised_tensors import QuantisedTensor

KINDS = {FLOAT32: "float32", PAIRS: "bfloat16", INT8: "int8", INT4: "int4"}


def processors() -> list[bool]:
    """Which forms of the loops run here: the portable one, and the special one where the processor can."""
    return [False, True] if special_instructions() else [False]


def compiled_product(special: bool):
    kinds = [ctypes.c_int64] * 7 + [ctypes.c_bool]
    return ctypes.CFUNCTYPE(None, *kinds)(product_address(special=special))


def as_tile(form: int, rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rows (R, in) as a tile of a form, and what they are after rounding to it."""
    count, inputs = rows.shape
    blocks = inputs // INPUTS[form]
    if form in (FLOAT32, BFLOAT16):
        data = rows.reshape(count, blocks, 2).transpose(1, 0, 2)
        return np.ascontiguousarray(data).view(np.uint8).ravel(), rows
    if form == PAIRS:
        rounded = torch.from_numpy(rows).bfloat16()
        data = rounded.view(torch.int16).numpy().reshape(count, blocks, 4).transpose(1, 0, 2)
        return np.ascontiguousarray(data).view(np.uint8).ravel(), rounded.float().numpy()
    groups = rows.reshape(count, -1, 32)
    scales = np.abs(groups).max(axis=2) / np.float32(127)
    codes = np.rint(groups / scales[:, :, None]).astype(np.int8)
    correction = codes.sum(axis=2, dtype=np.int32) * (-128 if form == INT8 else -8)
    tile = np.zeros((blocks, count, 80), np.uint8)
    tile[:, :, :64] = codes.reshape(count, blocks, 64).transpose(1, 0, 2).view(np.uint8)
    tile[:, :, 64:72] = np.ascontiguousarray(scales.reshape(count, blocks, 2).transpose(1, 0, 2)).view(np.uint8)
    tile[:, :, 72:] = np.ascontiguousarray(
        correction.astype(np.int32).reshape(count, blocks, 2).transpose(1, 0, 2)
    ).view(np.uint8)
    return tile.ravel(), (codes * scales[:, :, None]).reshape(count, inputs).astype(np.float32)


def weight_values(form: int, weight: torch.Tensor) -> NDArray[np.float32]:
    """What a weight is after rounding to a form."""
    if form == FLOAT32:
        return weight.numpy()
    if form in (PAIRS, BFLOAT16):
        return weight.bfloat16().float().numpy()
    return nearest(weight, 8 if form == INT8 else 4).weight().numpy()


@pytest.mark.parametrize("special", processors())
@pytest.mark.parametrize("form", [FLOAT32, BFLOAT16, PAIRS, INT8, INT4])
def test_a_panel_times_a_tile_is_the_product_of_the_rounded_matrices(form: int, special: bool) -> None:
    call = compiled_product(special)
    generator = np.random.default_rng(form)
    inputs = 192
    weight = torch.from_numpy(generator.normal(size=(16, inputs)).astype(np.float32))
    if form == BFLOAT16:  # as keys in the memory: one pair of inputs a block
        bits = weight.bfloat16().view(torch.int16).numpy().reshape(16, inputs // 2, 2).transpose(1, 0, 2)
        data, factor = np.ascontiguousarray(bits).view(np.uint8).ravel(), 1.0
    else:
        packed = pack(weight, KINDS[form])
        data, factor = packed.data, packed.factor
    panel = aligned(data.size + 8192)
    panel[: data.size] = data
    assert data.size == inputs // INPUTS[form] * PANEL_BYTES[form]
    for rows in TILES:
        x = generator.normal(size=(rows, inputs)).astype(np.float32)
        tile, rounded = as_tile(form, x)
        assert tile.size == inputs // INPUTS[form] * ROW_BYTES[form] * rows
        held = aligned(tile.size)
        held[:] = tile
        out = aligned(rows * 80).view(np.float32).reshape(rows, 20)
        out[:] = 7.0
        arguments = (form, rows, panel.ctypes.data, held.ctypes.data, inputs // INPUTS[form], out.ctypes.data, 80)
        call(*arguments, False)
        expected = rounded.astype(np.float64) @ weight_values(form, weight).astype(np.float64).T
        # The special product of pairs of bfloat16 is exact in each pair, as float32 sums are: 1e-5 of the size.
        assert np.abs(out[:, :16] * factor - expected).max() < 1e-4
        assert (out[:, 16:] == 7.0).all()
        first = out[:, :16].copy()
        call(*arguments, True)
        assert (out[:, :16] == 2 * first).all()


@pytest.mark.parametrize("special", processors())
@pytest.mark.parametrize("form", [FLOAT32, BFLOAT16, PAIRS, INT8, INT4])
def test_a_row_does_not_depend_on_the_rows_of_its_tile(form: int, special: bool) -> None:
    call = compiled_product(special)
    generator = np.random.default_rng(3)
    inputs = 128
    panel = aligned(inputs // INPUTS[form] * PANEL_BYTES[form] + 8192)
    kind = KINDS.get(form, "bfloat16")
    data = pack(torch.from_numpy(generator.normal(size=(16, inputs)).astype(np.float32)), kind).data
    panel[: data.size] = data
    x = generator.normal(size=(12, inputs)).astype(np.float32)
    results = {}
    for rows in TILES:
        tile, _ = as_tile(form, x[:rows])
        held = aligned(tile.size)
        held[:] = tile
        out = np.zeros((rows, 16), np.float32)
        call(form, rows, panel.ctypes.data, held.ctypes.data, inputs // INPUTS[form], out.ctypes.data, 64, False)
        results[rows] = out
    for rows, out in results.items():
        assert (out == results[12][:rows]).all()


def test_scales_keep_their_precision_whatever_their_size() -> None:
    """Packed scales times the factor are the scales, of matrices of tiny and of large weights."""
    for size in (6e-8, 1e-5, 1.0, 60000.0):
        scales = torch.tensor([[size, 0.0], [size / 8, size / 3]]).half().repeat(8, 1)
        packed = pack(QuantisedTensor(torch.ones(16, 64, dtype=torch.int8), scales, 8), "int8")
        kept = packed.data[:64].view(np.float16).astype(np.float64) * packed.factor
        assert (kept == scales.double().T.reshape(-1).numpy()).all()
        assert np.log2(packed.factor) % 1 == 0


def test_rows_of_two_matrices_take_turns() -> None:
    first, second = torch.arange(20.0).view(20, 1), 100 + torch.arange(20.0).view(20, 1)
    joined = interleaved(first, second)[:, 0].tolist()
    assert joined[:16] == list(range(16))
    assert joined[16:32] == list(range(100, 116))
    assert joined[32:48] == [16, 17, 18, 19] + [0] * 12
    assert joined[48:] == [116, 117, 118, 119] + [0] * 12
    assert interleaved(first[:, 0], second[:, 0]).tolist() == joined
