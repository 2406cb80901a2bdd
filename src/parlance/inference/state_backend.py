"""Any language model behind `Backend`: the state of each text is kept as the model made it, and never divided.

For what is no Transformer: n-grams and the exact model, feed-forward, convolutional and recurrent networks, encoders
that predict a masked end, and encoder-decoders, whose prompt is a source. Texts that read equally many tokens go
through a network together where their states can be joined; the others one by one.

    backend = StateBackend(NGramModel.load(folder), texts=16)
    backend.step([Piece([4, 5], start=0, pages=[0], wanted=1)])            # (1, V)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parlance.inference.backend import UNDIVIDED, Piece
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.convolutional import InputHistory
from parlance.models.exact import ConditionalFrequencies
from parlance.models.masked import Beginning, MaskedLanguageModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.recurrent import RecurrentState

ROWS = 64
"""Tokens that a model without hidden activations reads at once: it gives the logits of them all."""


@dataclass
class _Memory:
    """What is known of one text."""

    state: Any = None
    source: list[int] = field(default_factory=list)
    """What was read of a source that has not ended."""


class StateBackend:
    """Follows `backend.Backend`."""

    page_size = UNDIVIDED

    def __init__(self, model: LanguageModel, *, texts: int) -> None:
        """`texts`: how many there are at once. Of an encoder-decoder, the first piece with logits wanted ends the
        source, and `context_length` is that of what is written."""
        self.model, self.pages = model, texts
        self.vocab_size, self.context_length = model.vocab_size, model.context_length
        self._memories: dict[int, _Memory] = {}

    @torch.inference_mode()
    def step(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """See `Backend.step`."""
        out: list[NDArray[np.float32]] = [np.empty((0, self.vocab_size), np.float32)] * len(pieces)
        for group in self._groups(pieces):
            for place, logits in zip(group, self._read([pieces[place] for place in group]), strict=True):
                out[place] = logits
        return np.concatenate(out)

    def _groups(self, pieces: Sequence[Piece]) -> Iterable[list[int]]:
        """Which pieces are read together: those of one length whose states can be joined."""
        alike: dict[tuple[int, int, Any], list[int]] = {}
        for place, piece in enumerate(pieces):
            if piece.start == 0:
                self._memories[piece.pages[0]] = _Memory()
            shape = _shape(self._memories[piece.pages[0]].state)
            alike.setdefault((len(piece.tokens), piece.wanted, place if shape is None else shape), []).append(place)
        return alike.values()

    def _read(self, pieces: list[Piece]) -> Sequence[NDArray[np.float32]]:
        """Logits of the wanted tokens of each of these pieces, alike in length and state."""
        memories = [self._memories[piece.pages[0]] for piece in pieces]
        model, wanted = self.model, pieces[0].wanted
        tokens = torch.tensor([list(piece.tokens) for piece in pieces], dtype=torch.int64)
        state = memories[0].state if len(pieces) == 1 else _joined([memory.state for memory in memories])
        if isinstance(model, ConditionalLanguageModel) and state is None:
            memory = memories[0]
            memory.source += pieces[0].tokens
            if not wanted:
                return [np.empty((0, self.vocab_size), np.float32)]
            state = model.begin(torch.tensor([memory.source]), ROWS)
            tokens, memory.source = torch.tensor([[model.start_token]]), []
        if isinstance(model, NeuralLanguageModel):
            state = model.new_state(len(pieces), tokens.shape[1]) if state is None else state
            hidden = model.hidden(tokens, state)
            logits = model.logits(hidden[:, tokens.shape[1] - wanted :])[..., : self.vocab_size]
        else:
            skipped = tokens.shape[1] - wanted
            passed = _passed(model, state, tokens[:, :skipped])
            state, tokens = (state, tokens) if passed is None else (passed, tokens[:, skipped:])
            parts = [torch.empty(len(pieces), 0, self.vocab_size)]
            for part in torch.split(tokens, ROWS, dim=1) if tokens.shape[1] else ():
                read, state = model.forward(part, state)
                parts.append(read[:, read.shape[1] - min(wanted, read.shape[1]) :])
            logits = torch.cat(parts, dim=1)
            logits = logits[:, logits.shape[1] - wanted :]
        for row, memory in enumerate(memories):
            memory.state = state if len(memories) == 1 else _row(state, row)
        return list(logits.float().cpu().numpy())


def _passed(model: LanguageModel, state: Any, tokens: torch.Tensor) -> Any:
    """The state behind tokens (B, T) of which no logits are wanted, where it is but tokens; None: compute it."""
    if not tokens.shape[1]:
        return None
    if isinstance(model, MaskedLanguageModel):
        return Beginning(tokens if state is None else torch.cat((state.tokens, tokens), dim=1))
    if isinstance(model, ConditionalFrequencies):
        return tokens if state is None else torch.cat((state, tokens), dim=1)
    if isinstance(model, NGramModel) and tokens.shape[1] >= model.order - 1:
        return tokens[:, tokens.shape[1] - (model.order - 1) :].clone()
    return None


def _shape(state: Any) -> tuple[Any, ...] | None:
    """What states that can be joined have in common; None: this one cannot be."""
    if isinstance(state, torch.Tensor):
        return ("tensor", *state.shape)
    if isinstance(state, RecurrentState):
        return ("recurrent",)
    return ("inputs",) if isinstance(state, InputHistory) else None


def _joined(states: list[Any]) -> Any:
    """One state of all rows."""
    if isinstance(states[0], torch.Tensor):
        return torch.cat(states)
    if isinstance(states[0], RecurrentState):
        layers = range(len(states[0].hidden))
        return RecurrentState(
            [torch.cat([state.hidden[layer] for state in states]) for layer in layers],
            [torch.cat([state.cells[layer] for state in states]) for layer in layers],
        )
    return InputHistory([torch.cat([state.inputs[n] for state in states]) for n in range(len(states[0].inputs))])


def _row(state: Any, row: int) -> Any:
    """The state of one row, as a copy of its own."""
    return state[row : row + 1].clone() if isinstance(state, torch.Tensor) else state.select(torch.tensor([row]))
