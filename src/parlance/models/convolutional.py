"""Convolutional language model: causal, gated and dilated convolutions in residual blocks.

A block looks `kernel` tokens back in steps of its dilation, which doubles from block to block and begins again after
`dilation_cycle` blocks: x + out(glu(conv(norm(x)))), glu(a, b) = a sigmoid(b). Positions before the sequence are zeros.
What a block needs of the past is its last (kernel - 1) dilation inputs, so generation costs the same for every token.

    model = Convolutional(ConvolutionalConfig(vocab_size=256, layers=6, width=256))
    model.initialise(torch.Generator().manual_seed(0))
    logits, state = model.forward(torch.tensor([[1, 2, 3]]))        # (1, 3, 256)
    logits, state = model.forward(torch.tensor([[4]]), state)       # continues in constant work and memory

A convolution is one matrix product over the taps of all positions laid side by side, which CPUs do faster than their
convolution kernels. Shapes: B batch, T new tokens, V vocabulary, D width, P positions of the past.

Sources: van den Oord et al. 2016 (WaveNet: causal dilated convolutions, dilations that double and begin again);
Dauphin et al. 2017 (gated linear units, residual blocks).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.models.neural import Embedding, NeuralLanguageModel
from parlance.models.transformer_blocks import Linear, RMSNorm
from parlance.models.transformer_config import MOST


class ConvolutionalConfig(Config):
    """Sizes of a convolutional language model."""

    model_type: Literal["parlance-convolutional"] = "parlance-convolutional"
    """What `config.json` says this is."""
    vocab_size: int = Field(ge=1, le=MOST)
    """Rows of the embedding (V)."""
    context_length: int | None = Field(default=None, ge=1, le=MOST)
    """Longest sequence the model may see; None: no bound."""
    layers: int = Field(ge=1, le=1024)
    """Number of blocks."""
    width: int = Field(ge=1, le=2**20)
    """Size of the residual stream (D)."""
    kernel: int = Field(default=3, ge=2, le=1024)
    """Taps of a convolution: the token itself and kernel - 1 before it."""
    dilation_cycle: int = Field(default=6, ge=1, le=16)
    """Blocks until the dilation is 1 again: 1, 2, 4, ..., 2^(dilation_cycle - 1), 1, 2, ..."""
    norm_epsilon: float = Field(default=1e-6, gt=0, le=1)
    """Added to the mean square in RMSNorm."""

    def dilation(self, layer: int) -> int:
        """Distance between the taps of block `layer`."""
        return 1 << (layer % self.dilation_cycle)


@dataclass
class InputHistory:
    """The last inputs of each causal window over time, zeros before the sequence, in the compute dtype."""

    inputs: list[Tensor]
    """Per layer (B, P, D)."""

    def select(self, rows: Tensor) -> "InputHistory":
        """The history of some rows (int64 indices)."""
        return InputHistory([past[rows] for past in self.inputs])


def causal_taps(x: Tensor, past: Tensor, taps: int, dilation: int = 1) -> tuple[Tensor, Tensor]:
    """Each position's inputs side by side, oldest first: (B, T, taps D); and the past that the next piece needs.

    x (B, T, D); past (B, (taps - 1) dilation, D), the inputs before x.
    """
    T = x.shape[1]
    whole = torch.cat((past, x), dim=1)
    windows = torch.cat([whole[:, tap * dilation : tap * dilation + T] for tap in range(taps)], dim=-1)
    return windows, whole[:, T:].clone()  # a copy, so that the past does not keep a long prompt in memory


class ConvolutionalBlock(nn.Module):
    """x + out(glu(conv(norm(x))))."""

    def __init__(self, config: ConvolutionalConfig, dilation: int) -> None:
        super().__init__()
        self.taps, self.dilation = config.kernel, dilation
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.conv_proj = Linear(config.kernel * config.width, 2 * config.width)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """The block's output and the new past, of x (B, T, D) and past (B, P, D)."""
        windows, past = causal_taps(self.input_layernorm(x), past, self.taps, self.dilation)
        return x + self.out_proj(F.glu(self.conv_proj(windows), dim=-1)), past


class Convolutional(NeuralLanguageModel):
    """Embedding, convolutional blocks, head."""

    def __init__(self, config: ConvolutionalConfig) -> None:
        super().__init__()
        self.config: ConvolutionalConfig = config
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self.compute_dtype = torch.float32
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            ConvolutionalBlock(config, config.dilation(layer)) for layer in range(config.layers)
        )
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.lm_head = Linear(config.width, config.vocab_size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/inputs) for convolutions, N(0, 1) for the embedding, a small head.

        Outputs of the residual branches are zero, so that every block begins as the identity.
        """
        with torch.no_grad():
            self.embed_tokens.weight.normal_(0.0, 1.0, generator=generator)
            for layer in self.layers:
                assert isinstance(layer, ConvolutionalBlock)
                inputs = layer.conv_proj.weight.shape[1]
                layer.conv_proj.weight.normal_(0.0, inputs**-0.5, generator=generator)
                layer.out_proj.weight.zero_()
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
            self.lm_head.weight.normal_(0.0, 0.001, generator=generator)

    def new_state(self, batch: int, capacity: int) -> InputHistory:  # noqa: ARG002
        """A past of zeros; it never grows."""
        config = self.config
        lengths = [(config.kernel - 1) * config.dilation(layer) for layer in range(config.layers)]
        return InputHistory(
            [
                torch.zeros(batch, length, config.width, dtype=self.compute_dtype, device=self.device)
                for length in lengths
            ]
        )

    def hidden(self, tokens: Tensor, state: InputHistory | None = None) -> Tensor:
        """See `NeuralLanguageModel.hidden`: normalised outputs of the last block."""
        x = F.embedding(tokens.to(self.device), self.embed_tokens.weight.to(self.compute_dtype))
        state = self.new_state(tokens.shape[0], 0) if state is None else state
        for number, layer in enumerate(self.layers):
            x, state.inputs[number] = layer(x, state.inputs[number])
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of activations (..., D), in the compute dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward_flops_per_token(self, length: int) -> float:  # noqa: ARG002
        """Two per weight of the blocks' matrices and the head; the same at every length (zeros are multiplied too)."""
        D = self.config.width
        block = self.config.kernel * D * 2 * D + D * D
        return 2.0 * (self.config.layers * block + self.vocab_size * D)
