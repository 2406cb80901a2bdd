"""A Transformer behind `backend.Backend`, computed by the compiled loops of this folder.

    backend = KernelBackend(model, "bfloat16", pages=256, cache="bfloat16", threads=2)
    logits = backend.step([Piece(tokens=prompt, start=0, pages=range(4), wanted=1)])        # (1, V) float32

What is computed for a text does not depend, to the last bit, on the texts beside it, on how its tokens are divided into
steps, or on the number of threads.
"""

import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from parlance.core.errors import UserError
from parlance.inference.backend import Piece
from parlance.inference.kernels import plan
from parlance.inference.kernels.panels import Weights
from parlance.inference.kernels.program import Geometry, Program, aligned, write_program
from parlance.inference.kernels.support import unsupported
from parlance.models.quantised_tensors import QuantisedTensor
from parlance.models.transformer import Transformer

Cache = Literal["float32", "bfloat16", "int8"]

ROWS = 256
"""Most rows of one run of the program: longer steps take several."""
SMALL = 4_000_000
"""Bytes of weights times rows below which one thread is faster than two that wait for each other."""


def special_instructions() -> bool:
    """Whether this processor has the instructions that the loops have a faster form for."""
    from llvmlite import binding  # type: ignore[import-untyped]

    features = binding.get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bf16", "avx512vnni", "f16c"))


@dataclass(frozen=True)
class _Row:
    """Tokens of one piece that one run of the program reads."""

    piece: Piece
    begin: int
    end: int
    wanted: range
    """Of its tokens."""


class KernelBackend:
    """A Transformer with memory in pages. Not for several threads at once; `close` ends its threads."""

    def __init__(
        self,
        model: Transformer,
        weights: Weights,
        *,
        pages: int,
        page_size: int = 32,
        cache: Cache = "bfloat16",
        threads: int = 1,
        quantised: Mapping[str, QuantisedTensor] | None = None,
        special: bool | None = None,
    ) -> None:
        """`weights`: how matrices are kept; with int4 the embedding and the head have 8 bits. `quantised`: codes by the
        name of the parameter, as `models.quantised_checkpoint.read_quantised` finds them, which are taken as they are;
        what is not among them is rounded to nearest. `cache`: how keys and values are kept. `special`: whether to use
        AVX512-BF16 and VNNI; None: where the processor has them.

        Raises UserError where the configuration is not supported.
        """
        config = model.config
        reason = unsupported(config)
        if reason is not None:
            raise UserError(f"the processor's kernels do not compute {reason}: use the torch backend")
        if page_size < 16 or page_size % 16:
            raise UserError(f"pages have a multiple of 16 positions, not {page_size}")
        if pages < 1 or threads < 1:
            raise UserError(f"at least one page and one thread are needed, not {pages} and {threads}")
        self.vocab_size = config.vocab_size
        self.context_length: int | None = config.context_length
        self.page_size, self.pages = page_size, pages
        longest = min(config.context_length, pages * page_size)
        geometry = Geometry(pages, page_size, longest, min(ROWS, pages * page_size), threads, cache)
        self._program = write_program(model, weights, dict(quantised or {}), geometry)
        self._geometry = geometry
        self.weight_bytes = self._program.bytes_a_token
        self.threads = threads
        self._loops = _Loops(self._program, geometry, special_instructions() if special is None else special)
        self._end = weakref.finalize(self, self._loops.end)

    def step(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """See `backend.Backend`. Raises UserError for tokens, pages or positions that do not exist."""
        total = 0
        for piece in pieces:
            self._check(piece)
            total += piece.wanted
        stride = int(self._program.shape[plan.VOCAB_STRIDE])
        logits = np.empty((total, stride), np.float32)
        done = 0
        for parts in _runs(pieces, self._geometry.rows):
            done += self._loops.run(parts, logits, done)
        return logits[:, : self.vocab_size]

    def _check(self, piece: Piece) -> None:
        length = piece.start + len(piece.tokens)
        if not len(piece.tokens) or piece.start < 0 or not 0 <= piece.wanted <= len(piece.tokens):
            raise UserError("a piece has at least one token, and logits are wanted of at most all of them")
        if length > self._geometry.longest:
            raise UserError(f"{length} tokens are more than the {self._geometry.longest} that a text may have here")
        if length > len(piece.pages) * self.page_size:
            raise UserError(f"{len(piece.pages)} pages of {self.page_size} are too few for {length} tokens")
        if min(piece.tokens) < 0 or max(piece.tokens) >= self.vocab_size:
            raise UserError(f"a token is outside the vocabulary of {self.vocab_size}")
        if min(piece.pages) < 0 or max(piece.pages) >= self.pages:
            raise UserError(f"a page is not one of the {self.pages}")

    def close(self) -> None:
        """End the threads. The backend cannot be used afterwards."""
        self._end()


def _runs(pieces: Sequence[Piece], most: int) -> Iterator[list[_Row]]:
    """The pieces in their order, cut so that no run has more than `most` rows."""
    run: list[_Row] = []
    room = most
    for piece in pieces:
        count, begin = len(piece.tokens), 0
        while begin < count:
            end = min(count, begin + room)
            run.append(_Row(piece, begin, end, range(max(begin, count - piece.wanted), end)))
            room -= end - begin
            begin = end
            if not room:
                yield run
                run, room = [], most
    if run:
        yield run


class _Loops:
    """The compiled function with its arguments and its threads."""

    def __init__(self, program: Program, geometry: Geometry, special: bool) -> None:
        from parlance.inference.kernels import interpreter
        from parlance.inference.kernels.panel_products import product_address

        self._run = interpreter.run
        program.shape[plan.PRODUCTS] = product_address(special=special)
        self.program, self.threads = program, geometry.threads
        group = program.shape[plan.HEAD_COUNT] // program.shape[plan.KV_HEADS]
        parts = -(-group // 12)
        self.tile = max(1, int(12 // -(-group // parts)))
        self.call = np.zeros(plan.CALL_SIZE, np.int64)
        self.rows = np.zeros((geometry.rows, plan.ROW_COLUMNS), np.int64)
        self.wanted = np.zeros(geometry.rows, np.int64)
        self.tiles = np.zeros((geometry.rows, 2), np.int64)
        self.history = np.zeros(geometry.pages * geometry.page_size, np.int64)
        self.counters = aligned(8 * (24 + 8 * self.threads)).view(np.int64)
        arena, weights, cache = program.arena, program.weights, program.cache
        whole = arena[: arena.size // 4 * 4]
        bytes_ = weights[: weights.size // 4 * 4]
        kept = cache[: cache.size // 4 * 4]
        self.arguments = (
            program.lines,
            program.matrices,
            program.shape,
            program.numbers,
            self.call,
            self.rows,
            self.wanted,
            self.tiles,
            self.history,
            (whole.view(np.float32), whole.view(np.uint16), whole.view(np.int32), whole.view(np.int8)),
            (bytes_.view(np.float32), bytes_.view(np.uint16), bytes_),
            (kept.view(np.float32), kept.view(np.uint16), kept.view(np.int8)),
            self.counters,
            self.counters.ctypes.data,
        )
        self.pipes: list[tuple[int, int]] = []
        self.helpers: list[threading.Thread] = []
        for thread in range(1, self.threads):
            pipe = os.pipe()
            own = 24 + 8 * thread
            self.counters[own + interpreter.PIPE_OUT], self.counters[own + interpreter.PIPE_IN] = pipe
            self.pipes.append(pipe)
            helper = threading.Thread(
                target=self._run, args=(*self.arguments, thread), name=f"kernels-{thread}", daemon=True
            )
            helper.start()
            self.helpers.append(helper)
        self.run([], np.empty((0, 0), np.float32), 0)  # reads the compiled code from the disk, or compiles it

    def run(self, parts: list[_Row], logits: NDArray[np.float32], done: int) -> int:
        """Read the parts; the logits of what is wanted go to rows `done` and on. How many that were."""
        row = wanted = tile = 0
        pages: list[int] = []
        for part in parts:
            piece, count = part.piece, part.end - part.begin
            lines = self.rows[row : row + count]
            lines[:, plan.TOKEN] = piece.tokens[part.begin : part.end]
            if count == 1:
                lines[0, plan.POSITION] = piece.start + part.begin
            else:
                lines[:, plan.POSITION] = np.arange(piece.start + part.begin, piece.start + part.end)
            lines[:, plan.PAGES_AT] = len(pages)
            lines[:, plan.LAST] = 0
            lines[-1, plan.LAST] = 1
            pages.extend(piece.pages)
            for first in range(0, count, self.tile):
                self.tiles[tile] = (row + first, min(self.tile, count - first))
                tile += 1
            for index in part.wanted:
                self.wanted[wanted] = row + index - part.begin
                wanted += 1
            row += count
        table = np.array(pages, np.int64)
        call = self.call
        call[plan.ROWS], call[plan.WANTED], call[plan.TASKS] = row, wanted, tile
        call[plan.TABLES_ADDRESS] = table.ctypes.data
        call[plan.LOGITS_ADDRESS] = logits.ctypes.data + 4 * done * logits.shape[1]
        call[plan.ACTIVE] = 1 if self.program.bytes_a_token * row < SMALL else self.threads
        self._run(*self.arguments, 0)
        return wanted

    def end(self) -> None:
        """Tell the threads to end, and wait for them."""
        from parlance.inference.kernels import interpreter

        if not self.helpers:
            return
        self.counters[interpreter.STOPPED] = 1
        self.counters[interpreter.EPOCH] += 1
        for _, entrance in self.pipes:
            os.write(entrance, b"\0")
        for helper in self.helpers:
            helper.join()
        for pipe in self.pipes:
            for end in pipe:
                os.close(end)
        self.helpers, self.pipes = [], []
