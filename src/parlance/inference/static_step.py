"""A step of many texts by one token each, in shapes that repeat: on CUDA it is captured once and then replayed whole.

A step of a small model is hundreds of kernels that take the processor longer to start than the device to run. Here its
inputs (tokens, positions, pages) lie in tensors of their own and nothing in it asks the processor anything, so that it
can be recorded as a CUDA graph; texts and pages are rounded up to powers of two, so that few graphs are needed. Keys
and values lie in the pages of `torch_backend`. On a CPU the same step runs plainly.

    step = StaticStep(model, keys, values)              # per layer (pages + 1, L, K, E), the last page for padding
    logits = step(tokens=[5, 9], positions=[40, 3], tables=[[3, 7], [1]])                           # (2, V) float32

Shapes: B texts, P pages of a row, L positions a page, S = P L keys, K key/value heads, E head width.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import Attention, Block, Layout
from parlance.models.transformer_config import TransformerConfig

WARM_UPS = 2
"""Steps before one is recorded: libraries choose their kernels and take their memory then."""


def is_static(config: TransformerConfig) -> bool:
    """Whether a step asks the processor nothing: not where experts are chosen, nor where attention needs more than the
    new token, the pages and their positions."""
    scaling = config.rope_scaling
    return (
        config.causal
        and not config.cross_attention
        and config.experts is None
        and config.positions in ("rotary", "learned", "none")
        and not (scaling is not None and scaling.kind == "dynamic")
        and not config.dilated_segments
        and not config.head_offsets
        and not config.ngram_tables
    )


@dataclass
class _Inputs:
    """What a step reads, in place."""

    tokens: Tensor  # (B, 1)
    positions: Tensor  # (B, 1)
    table: Tensor  # (B, P)


class _PagedAttention:
    """What an `Attention` calls instead of attending to the new keys alone: see `Attention.across`."""

    def __init__(self, keys: Tensor, values: Tensor, inputs: Callable[[], _Inputs]) -> None:
        self._keys, self._values, self._inputs = keys, values, inputs

    def __call__(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of q (B, H, 1, E) to the pages, after keeping k and v (B, K, 1, E) in them."""
        inputs, size = self._inputs(), self._keys.shape[1]
        pages = inputs.table.gather(1, inputs.positions // size)  # (B, 1)
        rows = (pages * size + inputs.positions % size)[:, 0]
        for memory, new in ((self._keys, k), (self._values, v)):
            memory.view(-1, *memory.shape[2:]).index_copy_(0, rows, new[:, :, 0])
        keys, values = (memory[inputs.table].flatten(1, 2).transpose(1, 2) for memory in (self._keys, self._values))
        return attention._masked(q, keys, values, mask)


class StaticStep:
    """The step of a model for which `is_static`."""

    def __init__(self, model: Transformer, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """The model is not changed, and its weights are not copied."""
        self._scratch, self._size = keys[0].shape[0] - 1, keys[0].shape[1]
        self._model = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
        self._current: _Inputs | None = None
        for layer, block in enumerate(self._model.layers):
            assert isinstance(block, Block)
            block.self_attn.across = _PagedAttention(keys[layer], values[layer], self._read_inputs)
        self._captured: dict[tuple[int, int], tuple[_Inputs, torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
        """Read one token of each text at its position; logits (B, V) float32, valid until the next step.

        tables: the pages of each text, enough for its position.
        """
        texts, pages = _rounded(len(tokens)), _rounded(max(positions) // self._size + 1)
        device = self._model.device
        if device.type != "cuda":
            logits = self._compute(_filled(self._empty(texts, pages), tokens, positions, tables))
            return logits[: len(tokens)]
        shape = (texts, pages)
        if shape not in self._captured:
            self._captured[shape] = self._record(_filled(self._empty(*shape), tokens, positions, tables))
        inputs, graph, logits = self._captured[shape]
        fresh = _filled(self._empty(*shape, device="cpu"), tokens, positions, tables)
        inputs.tokens.copy_(fresh.tokens)
        inputs.positions.copy_(fresh.positions)
        inputs.table.copy_(fresh.table)
        graph.replay()
        return logits[: len(tokens)]

    def _empty(self, texts: int, pages: int, device: str | None = None) -> _Inputs:
        """Rows that nobody has: they write to the page for padding."""
        where = self._model.device if device is None else torch.device(device)
        tokens, positions = (torch.zeros(texts, 1, dtype=torch.int64, device=where) for _ in range(2))
        return _Inputs(tokens, positions, torch.full((texts, pages), self._scratch, dtype=torch.int64, device=where))

    def _record(self, inputs: _Inputs) -> tuple[_Inputs, torch.cuda.CUDAGraph, Tensor]:
        """The graph of a step with these inputs. What the warm-up writes to the pages is what the step will write."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._compute(inputs)
        return inputs, graph, logits

    def _compute(self, inputs: _Inputs) -> Tensor:
        """Logits (B, V) float32."""
        self._current = inputs
        keys_at = torch.arange(inputs.table.shape[1] * self._size, device=inputs.table.device).unsqueeze(0)
        seen = keys_at.unsqueeze(1) <= inputs.positions.unsqueeze(2)  # (B, 1, S)
        hidden = self._model.hidden(inputs.tokens, layout=Layout(inputs.positions, seen, keys_at=keys_at))
        return self._model.logits(hidden[:, 0]).float()

    def _read_inputs(self) -> _Inputs:
        assert self._current is not None
        return self._current


def _rounded(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def _filled(
    inputs: _Inputs, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]
) -> _Inputs:
    """With the texts in the first rows."""
    columns = inputs.table.shape[1]
    table = torch.full(inputs.table.shape, int(inputs.table[0, 0]), dtype=torch.int64)
    for row, pages in enumerate(tables):
        held = torch.tensor(list(pages[:columns]))
        table[row, : len(held)] = held
    inputs.tokens[: len(tokens), 0] = torch.tensor(list(tokens), device=inputs.tokens.device)
    inputs.positions[: len(positions), 0] = torch.tensor(list(positions), device=inputs.positions.device)
    inputs.table.copy_(table)
    return inputs
