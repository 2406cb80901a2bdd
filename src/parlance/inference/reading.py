"""One text in front of one model: its prompt fitted to the context, read in pieces, continued, and taken back.

    reader = Reader(model, prompt, SamplingConfig())
    logits = reader.read(reader.beginning)              # (1, V): what may follow the prompt
    logits = reader.read([token])                       # (1, V)
    logits = reader.read([token, *guess], wanted=3)     # (3, V): after each of the last three
    reader.take_back(2)                                 # as if the last two had not been read

Memory for a prompt is bounded by `PIECE` tokens at a time, and logits are computed of the wanted positions alone; work
per token is constant but for attention and for the models that say otherwise (`masked.py`, `exact.py`).
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.inference.sampling import SamplingConfig
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.contract import LanguageModel
from parlance.models.exact import ConditionalFrequencies
from parlance.models.key_value_cache import KeyValueCache
from parlance.models.masked import Beginning, MaskedLanguageModel
from parlance.models.neural import NeuralLanguageModel
from parlance.models.ngram import NGramModel

PIECE = 512
"""Tokens of a prompt that are read at once."""


class Reader:
    """A model that reads one text."""

    def __init__(self, model: LanguageModel, prompt: Sequence[int], config: SamplingConfig) -> None:
        """Fit `prompt` to the context as `config.overflow` says. An encoder-decoder reads it as its source, here.

        Raises UserError when the prompt is empty, holds an id outside the vocabulary, or leaves no room.
        """
        checked_prompt(model, prompt)
        self._model = model
        self._context = model.context_length
        self._slides = config.overflow == "slide" and self._context is not None
        self._half = max(1, (self._context or 0) // 2)
        self.state: Any = None
        """What the model remembers of what it has read."""
        self._text: list[int] = []
        self._used = 0
        self.beginning = list(prompt)
        """What is to be read first."""
        if isinstance(model, ConditionalLanguageModel):
            if config.overflow != "error" and model.source_length is not None:
                self.beginning = self.beginning[-model.source_length :]
            if model.source_length is not None and len(self.beginning) > model.source_length:
                raise UserError(_too_long(len(self.beginning), model.source_length))
            self._slides = False  # what is written ends where the decoder's context does
            self.state = model.begin(torch.tensor([self.beginning]), min(room_behind(model, 1), config.max_tokens))
            self.beginning = [model.start_token]
        elif config.overflow != "error" and self._context is not None and len(prompt) >= self._context:
            kept = self._half if self._slides else self._context - min(config.max_tokens, self._context // 2)
            self.beginning = self.beginning[-kept:]
        self.room = sys.maxsize if self._slides else room_behind(model, len(self.beginning))
        """How many tokens may follow the beginning."""

    @property
    def free(self) -> int:
        """How many tokens fit before the context is full, or slides."""
        return sys.maxsize if self._context is None else self._context - self._used

    @property
    def can_take_back(self) -> bool:
        """Whether the model can forget the last tokens it has read: a Transformer's cache can."""
        return isinstance(self.state, KeyValueCache)

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], wanted: int = 1) -> Tensor:
        """Read on, and return the logits (wanted, V) float32 on the CPU of what follows each of the last tokens.

        Where the context slides, one is wanted.
        """
        left = list(tokens)
        self._text += left
        while True:
            if self.free == 0:
                end = len(self._text) - len(left) + 1
                piece, left = self._text[max(0, end - self._half) : end], left[1:]
                self.state, self._used = None, 0
            else:
                piece, left = left[: self.free], left[self.free :]
            logits = self._forward(piece, 1 if left else wanted)
            if not left:
                return logits

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens, which were read since the context last slid. See `can_take_back`."""
        if count:
            self.state.lengths = self.state.lengths - count
            self._used -= count
            del self._text[-count:]

    def _forward(self, tokens: list[int], wanted: int) -> Tensor:
        model = self._model
        self._used += len(tokens)
        if isinstance(model, NeuralLanguageModel):
            pieces = [tokens[start : start + PIECE] for start in range(0, len(tokens), PIECE)]
            if self.state is None:
                self.state = model.new_state(1, len(pieces[0]))
            for piece in pieces:
                hidden = model.hidden(torch.tensor([piece]), self.state)
            logits = model.logits(hidden[:, -wanted:])
        else:
            if self.state is None:
                self.state, tokens = _prepared(model, tokens)
            logits, self.state = model.forward(torch.tensor([tokens], dtype=torch.int64), self.state)
        return logits[0, -wanted:, : model.vocab_size].float().cpu()


def _prepared(model: LanguageModel, tokens: list[int]) -> tuple[Any, list[int]]:
    """A state and what is still to be read: of models that remember but tokens, no more is read than must be."""
    if isinstance(model, NGramModel):
        return None, tokens[-max(1, model.order - 1) :]
    before = torch.tensor([tokens[:-1]], dtype=torch.int64)
    if isinstance(model, MaskedLanguageModel):
        return Beginning(before), tokens[-1:]
    if isinstance(model, ConditionalFrequencies):
        return before, tokens[-1:]
    return None, tokens


def checked_prompt(model: LanguageModel, prompt: Sequence[int]) -> None:
    """Raises UserError where a prompt is empty or holds an id that the model does not have."""
    if not prompt:
        raise UserError("the prompt is empty; give at least one character")
    check_ids(prompt, model.vocab_size)


def check_ids(tokens: Sequence[int], vocab_size: int) -> None:
    """Raises UserError for an id outside a vocabulary."""
    outside = next((token for token in tokens if not 0 <= token < vocab_size), None)
    if outside is not None:
        raise UserError(
            f"token {outside} is outside the model's vocabulary of {vocab_size} (ids 0 to {vocab_size - 1}): use the "
            "tokenizer that the model was made for"
        )


def room_behind(model: LanguageModel, length: int) -> int:
    """Tokens that fit behind a prompt of `length`: at least one, or UserError."""
    if model.context_length is None:
        return sys.maxsize
    if length >= model.context_length:
        raise UserError(_too_long(length, model.context_length))
    return model.context_length - length


def _too_long(tokens: int, most: int) -> str:
    return (
        f"the prompt has {tokens} tokens and the model reads {most}; shorten it, or let the context slide "
        "(--overflow slide)"
    )
