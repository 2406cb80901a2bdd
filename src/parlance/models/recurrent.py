"""Recurrent language models: Elman, GRU, LSTM and multiplicative LSTM, with a state of fixed size.

A stack of recurrent layers reads one token after the other. By default each layer is a residual branch behind a norm,
x + gain * cell(norm(x)), with a learned gain for each unit that starts above 1, since what a cell puts out is small
(docs/lab-notebook.md); `residual=False` is the plain stack of the literature. Training windows begin with a zero
state, so gradients reach back as far as a window (truncated back-propagation through time).
Dropout, bidirectional layers and weight normalisation are left out.

    model = Recurrent(RecurrentConfig(vocab_size=256, layers=2, width=256, cell="lstm"))
    model.initialise(torch.Generator().manual_seed(0))
    logits, state = model.forward(torch.tensor([[1, 2, 3]]))        # (1, 3, 256)
    logits, state = model.forward(torch.tensor([[4]]), state)       # continues in constant work and memory

Shapes: B batch, T new tokens, V vocabulary, D width, G gates of a cell. Sources: Elman 1990; Cho et al. 2014 (GRU);
Hochreiter and Schmidhuber 1997 (LSTM); Gers et al. 2000, Jozefowicz et al. 2015 (forget gate and its bias of 1);
Krause et al. 2016 (multiplicative LSTM); Mikolov et al. 2010 (recurrent language models).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.models.neural import Embedding, NeuralLanguageModel
from parlance.models.recurrent_cells import ElmanRecurrence, GRURecurrence, LSTMRecurrence
from parlance.models.transformer_blocks import Linear, RMSNorm
from parlance.models.transformer_config import MOST

Cell = Literal["elman", "gru", "lstm", "mlstm"]

GATES: dict[Cell, int] = {"elman": 1, "gru": 3, "lstm": 4, "mlstm": 4}
"""Blocks of D rows in a cell's matrices. Order: GRU r, z, n; LSTM and multiplicative LSTM i, f, o, u."""

GAINS: dict[Cell, float] = {"elman": 3.0, "gru": 8.0, "lstm": 8.0, "mlstm": 8.0}
"""What the output of a residual layer is multiplied with at the start of training."""

LIBRARY_WORTH_STEPS = 16
"""Torch's LSTM on CPUs rearranges its weights at every call: shorter pieces run in our own loop."""
LIBRARY_BFLOAT16_WIDTH = 448
"""From this width on, its backward pass in bfloat16 is slower than ours (docs/lab-notebook.md)."""


class RecurrentConfig(Config):
    """Sizes and kind of a recurrent language model."""

    model_type: Literal["parlance-recurrent"] = "parlance-recurrent"
    """What `config.json` says this is."""
    vocab_size: int = Field(ge=1, le=MOST)
    """Rows of the embedding (V)."""
    context_length: int | None = Field(default=None, ge=1, le=MOST)
    """Longest sequence the model may see; None: no bound."""
    layers: int = Field(ge=1, le=1024)
    """Number of recurrent layers."""
    width: int = Field(ge=1, le=2**20)
    """Units of a layer, and size of the embedding (D)."""
    cell: Cell = "lstm"
    """Kind of every layer."""
    residual: bool = True
    """Each layer a residual branch with norm and gain, and a norm before the head; False: a plain stack of cells."""
    head_bias: bool = False
    """Whether the output head adds a bias."""
    norm_epsilon: float = Field(default=1e-6, gt=0, le=1)
    """Added to the mean square in RMSNorm."""


@dataclass
class RecurrentState:
    """What a recurrent model remembers of each sequence of a batch, in the compute dtype."""

    hidden: list[Tensor]
    """Per layer (B, D): the last output."""
    cells: list[Tensor]
    """Per layer (B, D): the cell; not used by Elman layers and GRUs."""

    def select(self, rows: Tensor) -> "RecurrentState":
        """The state of some rows (int64 indices)."""
        return RecurrentState([h[rows] for h in self.hidden], [c[rows] for c in self.cells])


class RecurrentLayer(nn.Module):
    """One layer: the input's products for all steps at once, then the recurrence.

    `weight_ih` and `weight_hh` are (G D, D), `bias` (G D,); a GRU adds `bias_hn` (D,) inside its reset gate; a
    multiplicative LSTM has `weight_mx` and `weight_mh` (D, D), m = (W_mx x) (W_mh h), and `weight_hh` acts on m.
    Residual layers have `gain` (D,).
    """

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        D, G = config.width, GATES[config.cell]
        self.cell: Cell = config.cell
        self.input_layernorm = RMSNorm(D, config.norm_epsilon) if config.residual else None
        self.gain = nn.Parameter(torch.full((D,), GAINS[config.cell])) if config.residual else None
        self.weight_ih = nn.Parameter(torch.empty(G * D, D))
        self.weight_hh = nn.Parameter(torch.empty(G * D, D))
        self.bias = nn.Parameter(torch.zeros(G * D))
        self.bias_hn = nn.Parameter(torch.zeros(D)) if config.cell == "gru" else None
        self.weight_mx = nn.Parameter(torch.empty(D, D)) if config.cell == "mlstm" else None
        self.weight_mh = nn.Parameter(torch.empty(D, D)) if config.cell == "mlstm" else None

    def forward(self, x: Tensor, first: Tensor, first_cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (B, T, D), the last h and the last c (B, D) of x (B, T, D); c is passed on where a cell has none."""
        inputs = x if self.input_layernorm is None else self.input_layernorm(x)
        if self._library_is_faster(x):
            outputs, last, cell = self._library(inputs, first, first_cell)
        else:
            steps, cell = self._loop(inputs.transpose(0, 1).contiguous(), first, first_cell)
            outputs, last = steps.transpose(0, 1), steps[-1].clone()  # not a view that keeps every step in memory
        return (outputs if self.gain is None else x + outputs * self.gain.to(x.dtype)), last, cell

    def _library_is_faster(self, x: Tensor) -> bool:
        if self.cell == "mlstm":
            return False
        if x.device.type != "cpu":
            return True
        small = x.dtype == torch.float32 or x.shape[2] < LIBRARY_BFLOAT16_WIDTH
        return self.cell == "lstm" and small and x.shape[1] >= LIBRARY_WORTH_STEPS

    def _loop(self, x: Tensor, first: Tensor, first_cell: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence of this package, over x (T, B, D): outputs (T, B, D) and the last c (B, D)."""
        projected = F.linear(x, self.weight_ih.to(x.dtype), self.bias.to(x.dtype))
        weight = self.weight_hh.to(x.dtype)
        if self.cell == "elman":
            return ElmanRecurrence.apply(projected, weight, first), first_cell  # type: ignore[no-untyped-call]
        if self.bias_hn is not None:
            bias = self.bias_hn.to(x.dtype)
            return GRURecurrence.apply(projected, weight, bias, first), first_cell  # type: ignore[no-untyped-call]
        factors = factor_weight = None
        if self.weight_mx is not None and self.weight_mh is not None:
            factors, factor_weight = F.linear(x, self.weight_mx.to(x.dtype)), self.weight_mh.to(x.dtype)
        return LSTMRecurrence.apply(  # type: ignore[no-any-return, no-untyped-call]
            projected, weight, first, first_cell, factors, factor_weight
        )

    def _library(self, x: Tensor, first: Tensor, first_cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Torch's own kernels, over x (B, T, D)."""
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias]
        inner = torch.zeros_like(self.bias)
        if self.cell == "lstm":
            # Torch's order is i, f, u, o.
            weights = [torch.cat((w[: len(w) // 2], *w[len(w) // 2 :].chunk(2)[::-1])) for w in weights]
        elif self.bias_hn is not None:
            inner = torch.cat((inner[: -len(self.bias_hn)], self.bias_hn))
        flat = [weight.to(x.dtype) for weight in (*weights, inner)]
        h, c = first.unsqueeze(0), first_cell.unsqueeze(0)
        rest = (flat, True, 1, 0.0, torch.is_grad_enabled(), False, True)
        if self.cell == "lstm":
            outputs, last, cell = torch.lstm(x, (h, c), *rest)
            return outputs, last[0], cell[0]
        outputs, last = torch.gru(x, h, *rest) if self.cell == "gru" else torch.rnn_tanh(x, h, *rest)
        return outputs, last[0], first_cell


class Recurrent(NeuralLanguageModel):
    """Embedding, recurrent layers, head."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.config: RecurrentConfig = config
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self.compute_dtype = torch.float32
        self.embed_tokens = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(RecurrentLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon) if config.residual else None
        self.lm_head = Linear(config.width, config.vocab_size, bias=config.head_bias)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/D) for matrices, N(0, 1) for the embedding, a small head.

        Biases are zero but for a 1 at the gates that keep the past: f of the LSTMs, z of the GRU. Gains are `GAINS`.
        """
        D, gain = self.config.width, GAINS[self.config.cell]
        with torch.no_grad():
            self.embed_tokens.weight.normal_(0.0, 1.0, generator=generator)
            for name, parameter in self.named_parameters():
                if name.startswith("embed_tokens"):
                    continue
                if parameter.ndim == 2:
                    parameter.normal_(0.0, 0.001 if name.startswith("lm_head") else D**-0.5, generator=generator)
                else:
                    parameter.fill_(1.0 if "norm" in name else gain if name.endswith("gain") else 0.0)
            if self.config.cell != "elman":
                for layer in self.layers:
                    layer.get_parameter("bias")[D : 2 * D] = 1.0

    def new_state(self, batch: int, capacity: int) -> RecurrentState:  # noqa: ARG002
        """The zero state; it never grows."""

        def zeros() -> list[Tensor]:
            shape = (batch, self.config.width)
            return [torch.zeros(shape, dtype=self.compute_dtype, device=self.device) for _ in self.layers]

        return RecurrentState(zeros(), zeros())

    def hidden(self, tokens: Tensor, state: RecurrentState | None = None) -> Tensor:
        """See `NeuralLanguageModel.hidden`: outputs of the last layer (normalised where `residual`)."""
        tokens = tokens.to(self.device)
        x = F.embedding(tokens, self.embed_tokens.weight.to(self.compute_dtype))
        state = self.new_state(tokens.shape[0], 0) if state is None else state
        for number, layer in enumerate(self.layers):
            x, state.hidden[number], state.cells[number] = layer(x, state.hidden[number], state.cells[number])
        return x if self.norm is None else self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of activations (..., D), in the compute dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward_flops_per_token(self, length: int) -> float:  # noqa: ARG002
        """Two per weight of the cells' matrices and the head; the same at every length."""
        D, G = self.config.width, GATES[self.config.cell]
        cell = 2 * G * D * D + (2 * D * D if self.config.cell == "mlstm" else 0)
        return 2.0 * (self.config.layers * cell + self.vocab_size * D)
