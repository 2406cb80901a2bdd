"""Encoder-decoders: p(target | source), and the `LanguageModel` that each of them is as well.

An encoder reads a source at once; a decoder writes the target token by token. Without a source (`forward` from no
state) the decoder is a language model like any other, conditioned on an empty source. A prompt is a source: generation
begins with `state = model.begin(prompt)` and the start token.

    state = model.begin(torch.tensor([[5, 3, 8]]), capacity=20)           # read the source
    logits, state = model.forward(torch.tensor([[model.start_token]]), state)       # p(first target token | source)

Shapes: B batch, S source tokens, T target tokens, V vocabulary, D width.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from parlance.models.neural import NeuralLanguageModel


class ConditionalLanguageModel(NeuralLanguageModel):
    """An encoder and a decoder that attends to it.

    `vocab_size` V is that of the tokenizer. The embedding may have more rows (sentinels of span corruption): `logits`
    covers them all, for training; `forward` gives the first V, so that no sentinel is ever drawn.
    """

    start_token: int
    """What the decoder reads first."""
    source_length: int | None
    """Most tokens of a source; None where there is no such bound."""
    empty_source: tuple[int, ...]
    """What the encoder reads where there is no source; at least one token."""

    @abstractmethod
    def encode(self, source: Tensor, mask: Tensor | None = None) -> Any:
        """What the decoder needs of source tokens (B, S); `mask` (B, S) bool says which are tokens. None: all.

        Has `select(rows)`, like a state.
        """

    @abstractmethod
    def hidden(self, tokens: Tensor, state: Any = None, memory: Any = None) -> Tensor:
        """Decoder activations (B, T, D) of target tokens (B, T), `start_token` first.

        Extends `state` in place where one is given; a state from `begin` holds its source. Without a state, `memory`
        is what `encode` gave. With neither, the source is empty.
        """

    @abstractmethod
    def new_state(self, batch: int, capacity: int, memory: Any = None) -> Any:
        """The decoder's state before its first token; `memory` is what `encode` gave, None: of an empty source."""

    def begin(self, source: Tensor, capacity: int, mask: Tensor | None = None) -> Any:
        """The state that continues from source tokens (B, S): feed `start_token` next."""
        return self.new_state(source.shape[0], capacity, self.encode(source, mask))

    def empty_memory(self, batch: int) -> Any:
        """What `encode` gives of an empty source, for `batch` rows."""
        return self.encode(torch.tensor([list(self.empty_source)], device=self.device).expand(batch, -1))

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, T, V) fp32 of target tokens (B, T), and the state to continue from (extended in place)."""
        logits, state = super().forward(tokens, state)
        return logits[..., : self.vocab_size], state
