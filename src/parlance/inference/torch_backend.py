"""Causal Transformers of every kind through PyTorch, with memory in pages: `Backend` for the CPU and for CUDA.

Every layer has one tensor of keys and one of values, in pages. `Transformer.hidden` reads and writes them through a
cache whose entries stand for tensors (B, K, S, E): what is written goes to the pages of each row, and what is read is
gathered from them, one layer at a time. Pieces of similar lengths go through the model together, padded on the right;
what padding writes lands behind the text or on a page that nobody has. On CUDA, steps of one token each are recorded
and replayed (`static_step`).

    backend = TorchBackend(model, pages=256)
    backend.step([Piece([4, 5], start=0, pages=[0], wanted=1)])            # (1, V)

Shapes: B pieces, T tokens, S keys, K key/value heads, E head width, P pages of a row, L positions a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.backend import Piece
from parlance.inference.static_step import StaticStep, is_static
from parlance.models.key_value_cache import KeyValueCache
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

PAGE = 32
"""Positions a page. It divides the lengths that `Transformer.hidden` rounds to."""
PADDING = 32
"""Most tokens of padding in a group of pieces: about as dear as reading the weights once more for another group."""


class TorchBackend:
    """Follows `backend.Backend`."""

    def __init__(self, model: Transformer, *, pages: int, page_size: int = PAGE) -> None:
        """Memory is taken at once, on the model's device and in its compute dtype. Raises UserError for an encoder."""
        config = model.config
        if not config.causal or config.cross_attention:
            raise UserError("only a causal Transformer without a source can continue texts page by page")
        if any(parameter.dtype != model.compute_dtype for parameter in model.parameters()):
            model = model.inference_copy()  # else each step would convert the weights
        self.model, self.pages, self.page_size = model, pages, page_size
        self.vocab_size = config.vocab_size
        self.context_length: int | None = config.context_length
        shape = (pages + 1, page_size, config.key_value_heads, config.head_width)  # the last page is for padding
        device, dtype = model.device, model.compute_dtype
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._tokens = (
            torch.zeros(pages + 1, page_size, dtype=torch.int64, device=device) if config.looks_back else None
        )
        # On a CPU nothing is gained by shapes that repeat.
        static = device.type == "cuda" and is_static(config)
        self._static = StaticStep(model, self._keys, self._values) if static else None
        self._weight_bytes = model.weight_bytes()
        self._token_bytes = page_bytes(config, 1, model.compute_dtype)
        scaling = config.rope_scaling
        self._alone = scaling is not None and scaling.kind == "dynamic"  # its angles depend on the batch's longest text

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """See `Backend.step`."""
        firsts = np.cumsum([0, *(piece.wanted for piece in pieces)]).tolist()
        out = np.empty((firsts[-1], self.vocab_size), np.float32)
        for group in self._groups(pieces):
            logits = self._read([pieces[place] for place in group])
            taken = 0
            for place in group:
                wanted = pieces[place].wanted
                out[firsts[place] : firsts[place] + wanted] = logits[taken : taken + wanted]
                taken += wanted
        return out

    def _groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Which pieces are read together: as many as cost less so than the weights read once more."""
        if self._alone:
            return [[place] for place in range(len(pieces))]
        groups: list[list[int]] = []
        order = sorted(range(len(pieces)), key=lambda place: (-len(pieces[place].tokens), -_end(pieces[place]), place))
        longest, reach, padding, idle = 0, 0, 0, 0
        for place in order:
            T, end = len(pieces[place].tokens), _end(pieces[place])
            padding += longest - T
            idle += max(0, reach - end)
            fits = pieces[place].start + longest <= (self.context_length or end)
            if groups and fits and padding <= PADDING and idle * self._token_bytes <= self._weight_bytes:
                groups[-1].append(place)
                reach = max(reach, end)
            else:
                groups.append([place])
                longest, reach, padding, idle = T, end, 0, 0
        return groups

    def _read(self, pieces: list[Piece]) -> NDArray[np.float32]:
        """Logits of the wanted tokens of these pieces, one behind the other."""
        if self._static is not None and all(len(piece.tokens) == piece.wanted == 1 for piece in pieces):
            tokens = [piece.tokens[0] for piece in pieces]
            logits = self._static(tokens, [piece.start for piece in pieces], [piece.pages for piece in pieces])
            return logits.cpu().numpy()
        return self._read_pieces(pieces)

    def _read_pieces(self, pieces: list[Piece]) -> NDArray[np.float32]:
        """The same, whatever the pieces are."""
        device, size = self.model.device, self.page_size
        longest = max(len(piece.tokens) for piece in pieces)
        columns = -(-max(piece.start + longest for piece in pieces) // size)
        table = np.full((len(pieces), columns), self.pages, np.int64)
        tokens = np.zeros((len(pieces), longest), np.int64)
        for row, piece in enumerate(pieces):
            held = piece.pages[:columns]
            table[row, : len(held)] = held
            tokens[row, : len(piece.tokens)] = piece.tokens
        state = PagedCache.of(
            self._keys,
            self._values,
            self._tokens,
            torch.from_numpy(table).to(device),
            torch.tensor([piece.start for piece in pieces], device=device),
            longest,
        )
        hidden = self.model.hidden(torch.from_numpy(tokens).to(device), state)
        state.keep_tokens()
        rows = [row for row, piece in enumerate(pieces) for _ in range(piece.wanted)]
        places = [len(p.tokens) - p.wanted + number for p in pieces for number in range(p.wanted)]
        if not rows:
            return np.empty((0, self.vocab_size), np.float32)
        logits = self.model.logits(hidden[torch.tensor(rows, device=device), torch.tensor(places, device=device)])
        return logits.float().cpu().numpy()


def _end(piece: Piece) -> int:
    return piece.start + len(piece.tokens)


def page_bytes(config: TransformerConfig, page_size: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of a page, kept in `dtype`."""
    width = 2 * config.key_value_heads * config.head_width * dtype.itemsize
    return page_size * (config.layers * width + (8 if config.looks_back else 0))


class PagedRows:
    """Stands for the keys or values (B, K, S, E) of one layer of a `KeyValueCache`."""

    def __init__(self, memory: Tensor, table: Tensor, slots: Tensor) -> None:
        """`memory` (pages, L, K, E), `table` (B, P) the pages of each row, `slots` (B, T) where the new tokens go, in
        all positions of all pages."""
        self._memory, self._table, self._slots = memory, table, slots

    def __setitem__(self, where: tuple[Any, ...], value: Tensor) -> None:
        """Keep the new tokens: (B, K, T, E) where rows begin, else (B, T, K, E) of rows that go on."""
        new = value.transpose(1, 2) if isinstance(where[0], slice) else value
        self._memory.view(-1, *self._memory.shape[2:])[self._slots] = new

    def __getitem__(self, where: tuple[slice, slice, slice]) -> Tensor:
        """The first positions of each row, (B, K, S, E)."""
        size, longest = self._memory.shape[1], where[2].stop
        found = self._memory[self._table[:, : -(-longest // size)]]  # (B, P, L, K, E)
        return found.flatten(1, 2)[:, :longest].transpose(1, 2)


@dataclass
class PagedCache(KeyValueCache):
    """A `KeyValueCache` whose rows lie in pages, for one call of `Transformer.hidden`."""

    room: int = 0
    """Positions that the pages of a row have."""
    kept: Tensor | None = None
    """(pages, L): the tokens in all pages, where embeddings depend on them."""
    slots: Tensor | None = None
    """(B, T): where the new tokens go, in all positions of all pages."""
    positions: Tensor | None = None
    """(B, T): where they stand in their rows."""

    @classmethod
    def of(
        cls,
        keys: list[Tensor],
        values: list[Tensor],
        tokens: Tensor | None,
        table: Tensor,
        starts: Tensor,
        count: int,
    ) -> "PagedCache":
        """Rows with `starts` (B,) tokens in the pages of `table` (B, P), about to read `count` more each."""
        size = keys[0].shape[1]
        positions = starts.unsqueeze(1) + torch.arange(count, device=starts.device)
        slots = table.gather(1, positions // size) * size + positions % size
        return cls(
            cast(list[Tensor], [PagedRows(memory, table, slots) for memory in keys]),
            cast(list[Tensor], [PagedRows(memory, table, slots) for memory in values]),
            starts,
            tokens=None if tokens is None else tokens[table].flatten(1),
            room=table.shape[1] * size,
            kept=tokens,
            slots=slots,
            positions=positions,
        )

    @property
    def capacity(self) -> int:
        """Positions that the pages of a row have."""
        return self.room

    def keep_tokens(self) -> None:
        """Put the tokens read, where embeddings depend on them, into their pages."""
        if self.kept is not None and self.tokens is not None and self.positions is not None:
            self.kept.view(-1)[self.slots] = self.tokens.gather(1, self.positions)
