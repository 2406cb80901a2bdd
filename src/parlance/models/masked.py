"""Masked language models: what an encoder knows of a token it does not see, and the `LanguageModel` it makes.

An encoder (a `Transformer` with `causal=False`) is trained to say which token a mask hides. Asked for the token behind
a beginning, it is shown the beginning and one mask: that is a distribution of the next token like any other model's,
so that sampling, scoring and chat work. It costs a whole pass over the text per token, and an encoder was trained on
masks in the middle of texts, not at their ends: worse than a decoder's, and stated, not hidden, by its figures.

    model = MaskedLanguageModel(encoder, vocab_size=30522, mask_token=103, before=(101,), after=(102,))
    logits, state = model.forward(tokens)                   # (B, T, V): p(next | beginning)

Shapes: B batch, T tokens, V vocabulary, P tokens of the beginning, N encoder passes. Sources: Devlin et al. 2019; Wang
and Cho 2019 (generation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parlance.core.errors import UserError
from parlance.models.neural import check_tokens
from parlance.models.padding import pad_right
from parlance.models.transformer import Transformer
from parlance.models.transformer_blocks import padding_layout

PASS_TOKENS = 8192
"""Padded tokens that the encoder reads at once."""


@dataclass
class Beginning:
    """What a masked language model remembers: the tokens themselves."""

    tokens: Tensor
    """(B, P) int64."""

    def select(self, rows: Tensor) -> "Beginning":
        """The beginnings of some rows (int64 indices)."""
        return Beginning(self.tokens[rows])


class MaskedLanguageModel:
    """A language model made of an encoder. Follows `contract.LanguageModel`."""

    def __init__(
        self,
        encoder: Transformer,
        *,
        vocab_size: int,
        mask_token: int,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        """`vocab_size` V is the tokenizer's; `mask_token` a row of the embedding, which may lie beyond V.

        `before` and `after` are put around every text (BERT: [CLS] and [SEP]); one that begins with `before` keeps it.
        Raises UserError where `encoder` is a decoder, or has no row for one of the tokens.
        """
        if encoder.config.causal:
            raise UserError("a masked language model is made of an encoder; this model is a decoder")
        rows = encoder.config.vocab_size
        for token in (vocab_size - 1, mask_token, *before, *after):
            if not 0 <= token < rows:
                raise UserError(f"token {token} is not one of the {rows} that this encoder has; is this its tokenizer?")
        self.encoder, self.vocab_size, self.mask_token = encoder, vocab_size, mask_token
        self.before, self.after = tuple(before), tuple(after)

    @property
    def context_length(self) -> int:
        """Most tokens a sequence may have: what the encoder reads less a mask and the tokens around a text."""
        return self.encoder.config.context_length - len(self.before) - len(self.after) - 1

    def forward(self, tokens: Tensor, state: Beginning | None = None) -> tuple[Tensor, Beginning]:
        """Logits (B, T, V) fp32 of the token behind each of tokens (B, T), and the state to continue from.

        T passes over the encoder a row. `state` is extended in place.
        """
        check_tokens(tokens, self.encoder.config.vocab_size)
        B, T = tokens.shape
        state = Beginning(tokens.new_zeros(B, 0)) if state is None else state
        P = state.tokens.shape[1]
        state.tokens = torch.cat((state.tokens, tokens), dim=1)
        rows = [[*row[: P + t + 1], self.mask_token] for row in state.tokens.tolist() for t in range(T)]
        logits = self._logits(rows)
        return logits.view(B, T, -1).to(tokens.device), state

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits (N, V) fp32 of the encoder at the last token of each of the rows."""
        device = self.encoder.device
        out: list[Tensor] = []
        for first, stop in _batches([len(row) + len(self.before) + len(self.after) for row in rows]):
            fronts = [() if tuple(row[: len(self.before)]) == self.before else self.before for row in rows[first:stop]]
            wrapped = [[*front, *row, *self.after] for front, row in zip(fronts, rows[first:stop], strict=True)]
            tokens = pad_right(wrapped, self.mask_token).to(device)
            lengths = torch.tensor([len(row) for row in wrapped], device=device)
            layout = padding_layout(torch.arange(tokens.shape[1], device=device) < lengths[:, None], causal=False)
            hidden = self.encoder.hidden(tokens, layout=layout)
            last = hidden[torch.arange(len(wrapped), device=device), lengths - len(self.after) - 1]
            out.append(self.encoder.logits(last)[:, : self.vocab_size].float())
        return torch.cat(out)


def _batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(first, stop) of consecutive rows whose padded tokens are at most PASS_TOKENS; one row where it is longer."""
    out, first, longest = [], 0, 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if number > first and (number + 1 - first) * longest > PASS_TOKENS:
            out.append((first, number))
            first, longest = number, length
    out.append((first, len(lengths)))
    return out
