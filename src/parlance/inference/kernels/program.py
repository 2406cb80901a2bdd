"""A Transformer as a program for the compiled loops: its weights in panels, its constants, and the operations in order.

    program = write_program(model, "bfloat16", quantised={}, geometry=Geometry(...))

All that differs between families is decided here; the loops know operations, not architectures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.kernels import plan
from parlance.inference.kernels.panel_products import LANES, ROW_BYTES
from parlance.inference.kernels.panels import PackedMatrix, Weights, interleaved, interleaved_codes, pack
from parlance.inference.kernels.scalars import GELU, GELU_TANH, RELU, RELU2, SILU
from parlance.models.positions import alibi_slopes, rotary_frequencies, rotary_tables, sinusoids
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Attention, Block, FeedForward, LayerNorm, Linear, RMSNorm

ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu-tanh": GELU_TANH, "relu": RELU, "relu2": RELU2}
CACHES = {"float32": plan.CACHE_FLOAT32, "bfloat16": plan.CACHE_BFLOAT16, "int8": plan.CACHE_INT8}
ALIGNMENT = 64
"""Bytes of a line of the processor's cache."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of memory and step."""

    pages: int
    page_size: int
    """A multiple of 16."""
    longest: int
    """Most positions of a text."""
    rows: int
    """Most rows of one run of the program."""
    threads: int
    cache: str
    """One of CACHES."""


@dataclass(frozen=True)
class Program:
    """What the loops are called with; see `plan.py`."""

    lines: NDArray[np.int64]
    """(operations, plan.OPERANDS)."""
    matrices: NDArray[np.int64]
    """(matrices, plan.MATRIX_COLUMNS)."""
    shape: NDArray[np.int64]
    numbers: NDArray[np.float32]
    arena: NDArray[np.uint8]
    """Constants, activations and what threads need for themselves."""
    weights: NDArray[np.uint8]
    cache: NDArray[np.uint8]
    bytes_a_token: int
    """Weights that a step of one row reads, in bytes."""


def aligned(size: int) -> NDArray[np.uint8]:
    """Zeros (bytes) that begin at a line of the processor's cache."""
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class _Writer:
    """Collects matrices, constants and lines; places are given out as they come."""

    def __init__(self, model: Transformer, weights: Weights, quantised: Mapping[str, QuantisedTensor]) -> None:
        self.model, self.config, self.weights, self.quantised = model, model.config, weights, quantised
        self.names = {module: name for name, module in model.named_modules()}
        self.lines: list[list[int]] = []
        self.packed: list[PackedMatrix] = []
        self.biases: list[tuple[int, int]] = []  # places of bias and factor
        self.constants: list[tuple[int, NDArray[np.float32]]] = []
        self.places = 0
        self.prepared_bytes = 0  # of a row
        self.lone: set[int] = set()  # matrices that no product reads

    def reserve(self, count: int) -> int:
        """So many float32 numbers, at the beginning of a line."""
        place = self.places
        self.places += _up(count, ALIGNMENT // 4)
        return place

    def constant(self, values: Tensor) -> int:
        """Numbers that stay."""
        data = values.detach().float().contiguous().view(-1).numpy()
        place = self.reserve(data.size)
        self.constants.append((place, data))
        return place

    def line(self, operation: int, *operands: int) -> None:
        self.lines.append([operation, *operands] + [0] * (plan.OPERANDS - 1 - len(operands)))

    def matrix(self, weight: Tensor | QuantisedTensor, kind: Weights, bias: Tensor | None, scale: float = 1.0) -> int:
        """The number of a matrix with its bias."""
        packed = pack(weight, kind)
        place = -1
        if bias is not None:
            place = self.constant(torch.nn.functional.pad(bias, (0, packed.panels * LANES - bias.shape[0])))
        factor = self.constant(torch.tensor([packed.factor * scale]))
        self.packed.append(packed)
        self.biases.append((place, factor))
        self.prepared_bytes = max(self.prepared_bytes, packed.blocks * ROW_BYTES[packed.form])
        return len(self.packed) - 1

    def weight_of(self, module: Linear | torch.nn.Embedding) -> Tensor | QuantisedTensor:
        """The given codes of a module, else its weight."""
        return self.quantised.get(f"{self.names[module]}.weight", module.weight)

    def linear(self, *modules: Linear) -> int:
        """Linear maps of the same inputs as one, their outputs one after the other."""
        parts = [self.weight_of(module) for module in modules]
        given = [part for part in parts if isinstance(part, QuantisedTensor)]
        biases = [module.bias for module in modules if module.bias is not None]
        bias = torch.cat(list[Tensor](biases)) if biases else None
        if not given:
            return self.matrix(torch.cat([module.weight for module in modules]), self.weights, bias)
        self._check(given, modules)
        codes, scales = torch.cat([part.codes for part in given]), torch.cat([part.scales for part in given])
        return self.matrix(QuantisedTensor(codes, scales, given[0].bits), self.weights, bias)

    def gated(self, gate: Linear, up: Linear) -> int:
        """Two linear maps whose outputs meet, 16 of the one and 16 of the other by turns."""
        parts = [self.weight_of(gate), self.weight_of(up)]
        given = [part for part in parts if isinstance(part, QuantisedTensor)]
        bias = None if gate.bias is None or up.bias is None else interleaved(gate.bias, up.bias)
        if not given:
            return self.matrix(interleaved(gate.weight.detach(), up.weight.detach()), self.weights, bias)
        self._check(given, (gate, up))
        return self.matrix(interleaved_codes(given[0], given[1]), self.weights, bias)

    def _check(self, given: list[QuantisedTensor], modules: tuple[Linear, ...]) -> None:
        if len(given) != len(modules) or len({part.bits for part in given}) > 1:
            names = ", ".join(self.names[module] for module in modules)
            raise UserError(f"{names} are computed as one matrix: quantise all of them to as many bits, or none")


def write_program(
    model: Transformer, weights: Weights, quantised: Mapping[str, QuantisedTensor], geometry: Geometry
) -> Program:
    """Weights, constants, memory and operations of a model. `quantised`: codes by the name of the parameter."""
    config = model.config
    writer = _Writer(model, weights, quantised)
    inner = config.embedding_width or config.width
    stride = _up(max(config.width, inner), ALIGNMENT)
    query_count = (config.heads + 2 * config.key_value_heads) * config.head_width
    query_stride = _up(query_count, ALIGNMENT)
    attended_stride = _up(config.heads * config.head_width, ALIGNMENT)
    mlp_stride = _up(config.feed_forward_width, ALIGNMENT)
    rows = geometry.rows
    stream, normed, second = (writer.reserve(rows * stride) for _ in range(3))
    queries, attended = writer.reserve(rows * query_stride), writer.reserve(rows * attended_stride)
    inside = writer.reserve(rows * mlp_stride)
    vocab_panels = -(-config.vocab_size // LANES)

    def product(source: int, wide: int, matrix: int, out: int, out_stride: int, mode: int, wanted: int = 0) -> None:
        packed = writer.packed[matrix]
        writer.line(plan.PREPARE, source, wide, packed.form, packed.blocks, wanted)
        writer.line(plan.PRODUCT, matrix, out, out_stride, mode, ACTIVATIONS[config.activation], wanted)

    def norm(module: RMSNorm | LayerNorm | None, source: int, target: int, wanted: int = 0) -> None:
        kind, weight, bias = plan.COPIED, -1, -1
        if isinstance(module, RMSNorm):
            kind = plan.RMS
            weight = -1 if module.weight is None else writer.constant(module.weight)
        elif module is not None:
            kind, weight = plan.LAYER, writer.constant(module.weight)
            bias = -1 if module.bias is None else writer.constant(module.bias)
        writer.line(plan.NORM, source, target, kind, weight, bias, wanted)

    # 1. The embedding.
    head_kind: Weights = "int8" if weights == "int4" else weights
    tied = model.lm_head is None
    _, head_bias = model.head()
    head_module = model.embed_tokens if model.lm_head is None else model.lm_head
    head = writer.matrix(writer.weight_of(head_module), head_kind, head_bias, config.logit_scale)
    table = head
    if not tied or config.logit_scale != 1.0:
        table = len(writer.packed)
        if tied:
            writer.packed.append(writer.packed[head])
            writer.biases.append((-1, writer.constant(torch.tensor([writer.packed[head].factor]))))
        else:
            writer.matrix(writer.weight_of(model.embed_tokens), head_kind, None)
        writer.lone.add(table)
    begun = stream if model.project_in is None else normed
    writer.line(plan.EMBED, table, begun, inner)
    if model.embed_ngrams is not None:
        place = writer.constant(model.embed_ngrams.weight)
        for n, count in config.ngram_tables:
            writer.line(plan.NGRAMS, place, n, count, config.vocab_size + 1, begun, inner)
            place += count * inner
    if model.project_in is not None:
        product(begun, stride, writer.linear(model.project_in), stream, stride, plan.STORED)
    if model.embed_positions is not None:
        positions = writer.constant(model.embed_positions.weight)
        writer.line(plan.TABLE, positions, config.width, config.position_offset, stream)
    elif config.positions == "sinusoidal":
        positions = writer.constant(sinusoids(torch.arange(geometry.longest), config.width))
        writer.line(plan.TABLE, positions, config.width, 0, stream)
    if model.embed_norm is not None:
        norm(model.embed_norm, stream, stream)

    # 2. The blocks.
    def attention(number: int, part: Attention, source: int) -> None:
        matrix = writer.linear(part.q_proj, part.k_proj, part.v_proj)
        product(source, stride, matrix, queries, query_stride, plan.STORED)
        weights_of = [
            -1 if module is None or module.weight is None else writer.constant(module.weight)
            for module in (part.q_norm, part.k_norm)
        ]
        writer.line(plan.HEADS, number, *weights_of)
        writer.line(plan.ATTEND, number, config.window(number) or 1 << 40)
        product(attended, attended_stride, writer.linear(part.o_proj), stream, stride, plan.ADDED)

    def feed_forward(part: FeedForward, source: int) -> None:
        if part.gate_proj is None:
            product(source, stride, writer.linear(part.up_proj), inside, mlp_stride, plan.ACTIVATED)
        else:
            product(source, stride, writer.gated(part.gate_proj, part.up_proj), inside, mlp_stride, plan.GATED)
        product(inside, mlp_stride, writer.linear(part.down_proj), stream, stride, plan.ADDED)

    for number, block in enumerate(model.layers):
        assert isinstance(block, Block)
        assert isinstance(block.mlp, FeedForward)
        if block.post:
            attention(number, block.self_attn, stream)
            norm(block.input_layernorm, stream, stream)
            feed_forward(block.mlp, stream)
            norm(block.post_attention_layernorm, stream, stream)
            continue
        norm(block.input_layernorm, stream, normed)
        if not block.parallel:
            attention(number, block.self_attn, normed)
            norm(block.post_attention_layernorm, stream, normed)
            feed_forward(block.mlp, normed)
            continue
        if block.post_attention_layernorm is not None:
            norm(block.post_attention_layernorm, stream, second)
        attention(number, block.self_attn, normed)
        feed_forward(block.mlp, normed if block.post_attention_layernorm is None else second)

    # 3. The head, for the wanted rows.
    norm(model.norm, stream, normed, wanted=1)
    last = normed
    if model.project_out is not None:
        last = second
        product(normed, stride, writer.linear(model.project_out), second, stride, plan.STORED, wanted=1)
    product(last, stride, head, 0, 0, plan.LOGITS, wanted=1)

    shape, numbers = _shape(writer, geometry)
    sizes = {
        plan.STRIDE: stride, plan.QUERIES: queries, plan.QUERY_STRIDE: query_stride, plan.ATTENDED: attended,
        plan.ATTENDED_STRIDE: attended_stride, plan.VOCAB_STRIDE: vocab_panels * LANES,
    }  # fmt: skip
    for index, value in sizes.items():
        shape[index] = value
    return _assembled(writer, geometry, shape, numbers)


def _shape(writer: _Writer, geometry: Geometry) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sizes and numbers that stay, positions included."""
    config = writer.config
    shape = np.zeros(plan.SHAPE_SIZE, np.int64)
    padded = _up(config.head_width, LANES)
    bias_kind, slopes = plan.NO_BIAS, torch.zeros(config.heads)
    if config.positions == "alibi":
        slopes = alibi_slopes(config.heads, config.alibi_bias_max)
        bias_kind = plan.ALIBI
        if config.alibi_before_scaling:
            bias_kind, slopes = plan.ALIBI_BEFORE, slopes.bfloat16().float()
    elif config.head_offsets:
        bias_kind, slopes = plan.OFFSETS, torch.full((config.heads,), config.head_offsets)
    half = 0
    if config.positions == "rotary":
        frequencies, factor = rotary_frequencies(config, geometry.longest, torch.device("cpu"))
        half = frequencies.shape[0]
        cos, sin = rotary_tables(torch.arange(geometry.longest), frequencies, torch.float32, factor)
        shape[plan.COSINES], shape[plan.SINES] = writer.constant(cos[:, :half]), writer.constant(sin[:, :half])
    unit = geometry.page_size * padded * {"float32": 8, "bfloat16": 4, "int8": 2}[geometry.cache]
    if geometry.cache == "int8":
        unit += 8 * geometry.page_size
    widened = geometry.page_size * padded if geometry.cache == "int8" else 0
    scores = max(24 * padded + 16 + widened, 2 * 12 * LANES)
    most = geometry.longest + 2 * geometry.page_size + 32
    scratch = _up(scores + 24 * most, ALIGNMENT // 4)
    values = {
        plan.WIDTH: config.width, plan.HEAD_COUNT: config.heads, plan.KV_HEADS: config.key_value_heads,
        plan.HEAD_WIDTH: config.head_width, plan.HEAD_STRIDE: padded, plan.ROTARY_HALF: half,
        plan.BIAS_KIND: bias_kind, plan.SLOPES: writer.constant(slopes), plan.PAGE_SIZE: geometry.page_size,
        plan.PAGES: geometry.pages, plan.CACHE_KIND: CACHES[geometry.cache], plan.CACHE_UNIT: unit,
        plan.PREPARED: writer.reserve(geometry.rows * writer.prepared_bytes // 4),
        plan.SCRATCH: writer.reserve(scratch * geometry.threads), plan.SCRATCH_STRIDE: scratch,
        plan.SCRATCH_SCORES: scores, plan.LONGEST: most, plan.QK_NORM: int(config.qk_norm),
    }  # fmt: skip
    for index, value in values.items():
        shape[index] = value
    numbers = np.array([config.norm_epsilon, config.scale, config.clip_qkv or 0.0], np.float32)
    return shape, numbers


def _assembled(writer: _Writer, geometry: Geometry, shape: NDArray[np.int64], numbers: NDArray[np.float32]) -> Program:
    """All memory filled and addressed."""
    arena = aligned(4 * writer.places + 8192)
    floats = arena[: 4 * writer.places].view(np.float32)
    for place, data in writer.constants:
        floats[place : place + data.size] = data
    sizes: dict[int, int] = {}  # matrices that share their bytes lie in memory once
    total = 0
    for packed in writer.packed:
        if id(packed) not in sizes:
            sizes[id(packed)] = total
            total += _up(packed.data.size, ALIGNMENT)
    weights = aligned(total + 8192)
    matrices = np.zeros((len(writer.packed), plan.MATRIX_COLUMNS), np.int64)
    for number, (packed, (bias, factor)) in enumerate(zip(writer.packed, writer.biases, strict=True)):
        offset = sizes[id(packed)]
        weights[offset : offset + packed.data.size] = packed.data
        matrices[number] = [
            packed.form, weights.ctypes.data + offset, offset, packed.blocks, packed.panels, bias, factor,
        ]  # fmt: skip
    cache = aligned(
        writer.config.layers * geometry.pages * writer.config.key_value_heads * int(shape[plan.CACHE_UNIT]) + ALIGNMENT
    )
    shape[plan.CACHE_ADDRESS], shape[plan.ARENA_ADDRESS] = cache.ctypes.data, arena.ctypes.data
    read = sum(packed.data.size for number, packed in enumerate(writer.packed) if number not in writer.lone)
    return Program(np.array(writer.lines, np.int64), matrices, shape, numbers, arena, weights, cache, read)
