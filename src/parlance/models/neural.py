"""What every trained network of the ladder has in common: a `LanguageModel` whose scores come from hidden activations.

Training, scoring and sampling need the activations apart from the logits (the head is the dearest matrix of a small
model, and only some positions need it), so a network says how to get the one and the other; the rest is here.

    model = SomeModel(config); model.initialise(torch.Generator().manual_seed(0))
    logits, state = model.forward(tokens)                    # (B, T, V) fp32
    model.logits(model.hidden(tokens))                       # the same without a state, in the compute dtype

Parameters are stored in fp32; activations and matrix products run in `compute_dtype` (bfloat16 where the machine is
fast at it), and gradients come back in fp32. Shapes: B batch, T new tokens, V vocabulary, D width.
"""

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.core.errors import UserError


def check_tokens(tokens: Tensor, rows: int) -> None:
    """Raises UserError where tokens are not (B, T) integers in 0..rows-1, at least one."""
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise UserError(f"tokens are integers (B, T), not {tokens.dtype} {tuple(tokens.shape)}")
    if not tokens.numel():
        raise UserError("there is nothing to read: the input has no tokens")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= rows:
        raise UserError(
            f"token {low if low < 0 else high} is outside the vocabulary of {rows}: use the tokenizer that the model "
            "was made for"
        )


class Embedding(nn.Embedding):
    """A table that is drawn by `initialise` or read from a file, and so not drawn when it is made.

    (Drawing one on the meta device, where checkpoints are opened, imports torch's compiler: more than a second.)
    """

    def reset_parameters(self) -> None:
        """Leave it."""


class NeuralLanguageModel(nn.Module, ABC):
    """A network that follows the contract of `contract.LanguageModel`."""

    config: Config
    """What it is made of."""
    vocab_size: int
    """V."""
    context_length: int | None
    """Most tokens a sequence may have; None where there is no such bound."""
    compute_dtype: torch.dtype
    """Of activations and matrix products; float32 until set."""
    embed_tokens: nn.Embedding
    """The token embedding: where it lies, the model lies."""

    @abstractmethod
    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights. The same generator state gives the same weights."""

    @abstractmethod
    def new_state(self, batch: int, capacity: int) -> Any:
        """The state before the first token of `batch` sequences; `capacity` tokens fit before it has to grow.

        A state has `select(rows)`: the state of some rows (int64 indices).
        """

    @abstractmethod
    def hidden(self, tokens: Tensor, state: Any = None) -> Tensor:
        """Activations (B, T, D) before the head, of tokens (B, T) int64; moves `state` on in place where one is given.

        Tokens may be anywhere; the activations are where the weights are. Without a state the sequences begin here,
        and rows may be padded on the right: what follows a token never reaches it.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of activations (..., D), in the compute dtype."""

    @abstractmethod
    def forward_flops_per_token(self, length: int) -> float:
        """Floating-point operations (a multiply-add is two) of a forward pass per token of a sequence of `length`.

        Those of matrix products and convolutions, the head included; of causal attention only the half that counts.
        """

    def training_flops_per_token(self, length: int) -> float:
        """Three times the forward pass: the backward pass makes two products for each one forward."""
        return 3.0 * self.forward_flops_per_token(length)

    def forward(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, T, V) fp32 of tokens (B, T) int64, and the state to continue from (extended in place)."""
        check_tokens(tokens, self.embed_tokens.num_embeddings)
        if state is None:
            state = self.new_state(tokens.shape[0], tokens.shape[1])
        return self.logits(self.hidden(tokens, state)).float().to(tokens.device), state

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return False

    def matrix_parameters(self) -> int:
        """Weights of the hidden matrices that work on a token."""
        named = self.named_parameters()
        return sum(parameter.numel() for name, parameter in named if "layers." in name and parameter.ndim > 1)

    def parameter_count(self) -> int:
        """Number of weights, shared ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def weight_bytes(self) -> int:
        """Bytes of the parameters as they are, shared ones once."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())

    def inference_copy(self) -> Self:
        """A frozen copy with its weights already in the compute dtype, so that no step casts them again."""
        twin = copy.deepcopy(self).to(self.compute_dtype)
        return twin.requires_grad_(False)
