"""The one contract of every language model: tokens in, scores of the next token out, and a state to go on from.

Sampling, scoring, evaluation, serving and audits are written against this contract and nothing else, so an n-gram,
an LSTM and a Transformer are used alike. It is structural: a class follows it by having these members, without
inheriting from it. It says nothing of text (that is the tokenizer's job) nor of training.

    logits, state = model.forward(tokens)                   # read a prompt, tokens (B, T)
    logits, state = model.forward(next_tokens, state)       # go on, next_tokens (B, 1)
"""

from typing import Any, Protocol

import torch


class LanguageModel(Protocol):
    """p(w_1..w_T) = prod_t p(w_t | w_<t) over one vocabulary of token ids 0..vocab_size-1."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids V; the last dimension of the logits."""
        ...

    @property
    def context_length(self) -> int | None:
        """Most tokens a sequence may have, state included; None where there is no such bound (n-gram, recurrent)."""
        ...

    def forward(self, tokens: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """Score the next token after each position.

        tokens: (B, T) int64, the tokens that follow those `state` has seen; `state` None begins new sequences.
        Returns logits (B, T, V), floating point, on the device of `tokens`, where softmax(logits[b, t]) is
        p(. | everything up to and including tokens[b, t]); and the state after the last position, which only the
        model that made it reads (KV cache, hidden state, last n-1 tokens): one call with a sequence and several
        calls with its pieces give the same logits.
        """
        ...
