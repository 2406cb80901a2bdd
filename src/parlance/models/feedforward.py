"""Feed-forward language model: the embeddings of the last `context` tokens, side by side, through a network.

Bengio's model with depth: a tanh layer over the window, then residual layers, then the head. The direct connections
from window to output are left out: they cost `context` times the head and gained nothing in the paper's larger test.
A token of the window counts the less the further back it stands, by a fixed factor of 1 / distance: the network need
not learn first that near tokens matter most (docs/lab-notebook.md). Positions before the sequence have a zero
embedding. Nothing is remembered but the window, so generation costs the same for every token.

Embeddings of the last n tokens (`ngram_tables`, see `hashed_embeddings.py`) may be added to what the first layer makes
of the window: they learn in seconds what frequent n-grams are followed by, and the layers learn the rest.

    model = FeedForwardModel(FeedForwardConfig(vocab_size=256, layers=2, width=256))
    model.initialise(torch.Generator().manual_seed(0))
    logits, state = model.forward(torch.tensor([[1, 2, 3]]))        # (1, 3, 256)
    logits, state = model.forward(torch.tensor([[4]]), state)       # continues in constant work and memory

Shapes: B batch, T new tokens, V vocabulary, D width, E embedding width, N context. Source: Bengio et al. 2003.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.models.convolutional import InputHistory, causal_taps
from parlance.models.hashed_embeddings import NGramEmbeddings
from parlance.models.neural import Embedding, NeuralLanguageModel
from parlance.models.transformer_blocks import Linear, RMSNorm
from parlance.models.transformer_config import MOST, NGramTable


class FeedForwardConfig(Config):
    """Sizes of a feed-forward language model."""

    model_type: Literal["parlance-feedforward"] = "parlance-feedforward"
    """What `config.json` says this is."""
    vocab_size: int = Field(ge=1, le=MOST)
    """Rows of the embedding (V)."""
    context_length: int | None = Field(default=None, ge=1, le=MOST)
    """Longest sequence the model may see; None: no bound."""
    layers: int = Field(ge=1, le=1024)
    """Hidden layers: the first over the window, each further one a residual branch."""
    width: int = Field(ge=1, le=2**20)
    """Units of a hidden layer (D)."""
    context: int = Field(default=16, ge=1, le=2**20)
    """Tokens that a prediction depends on (N): the model is an (N + 1)-gram model."""
    embedding_width: int | None = Field(default=None, ge=1, le=2**20)
    """Size of a token's embedding (E); None: a quarter of `width`, but at least 16."""
    norm_epsilon: float = Field(default=1e-6, gt=0, le=1)
    """Added to the mean square in RMSNorm."""
    ngram_tables: tuple[NGramTable, ...] = ()
    """(n, rows) of embeddings of the last n tokens."""

    @property
    def looks_back(self) -> int:
        """How many tokens before it the n-grams that end at a token have."""
        return max((n for n, _ in self.ngram_tables), default=1) - 1

    @property
    def token_width(self) -> int:
        """E, with the default filled in."""
        return max(16, self.width // 4) if self.embedding_width is None else self.embedding_width


def nearness(context: int) -> Tensor:
    """What each token of a window counts for, oldest first: 1 / distance, with a mean square of 1."""
    weights = 1 / torch.arange(context, 0, -1, dtype=torch.float32)
    return weights / weights.square().mean().sqrt()


class WindowLayer(nn.Module):
    """tanh(W (window, each token times its nearness) + b)."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.in_proj = Linear(config.context * config.token_width, config.width, bias=True)
        self.context, self.token_width = config.context, config.token_width

    def forward(self, x: Tensor) -> Tensor:
        scale = nearness(self.context).repeat_interleave(self.token_width).to(x)
        return self.in_proj(x * scale).tanh()  # type: ignore[no-any-return]


class ResidualLayer(nn.Module):
    """x + out(tanh(W norm(x) + b))."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.in_proj = Linear(config.width, config.width, bias=True)
        self.out_proj = Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out_proj(self.in_proj(self.input_layernorm(x)).tanh())  # type: ignore[no-any-return]


class FeedForwardModel(NeuralLanguageModel):
    """Embedding, hidden layers over a window, head."""

    def __init__(self, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config: FeedForwardConfig = config
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        self.compute_dtype = torch.float32
        self.embed_tokens = Embedding(config.vocab_size, config.token_width)
        self.embed_ngrams = (
            NGramEmbeddings(config.ngram_tables, config.vocab_size + 1, config.width) if config.ngram_tables else None
        )
        rest = [ResidualLayer(config) for _ in range(config.layers - 1)]
        self.layers = nn.ModuleList([WindowLayer(config), *rest])
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.lm_head = Linear(config.width, config.vocab_size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/inputs) for matrices, N(0, 1) for the embedding, a small head, zero biases.

        Outputs of the residual branches are zero, so that every such layer begins as the identity. Beside n-grams the
        window begins at a tenth: what it says of them at first is noise.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("norm.weight"):
                    parameter.fill_(1.0)
                elif parameter.ndim < 2 or name.endswith("out_proj.weight") or name.startswith("embed_ngrams"):
                    parameter.zero_()
                elif name.startswith("layers."):
                    share = 0.1 if self.embed_ngrams is not None and name.startswith("layers.0.") else 1.0
                    parameter.normal_(0.0, share * parameter.shape[1] ** -0.5, generator=generator)
                else:
                    deviation = 1.0 if name.startswith("embed_tokens") else 0.001
                    parameter.normal_(0.0, deviation, generator=generator)

    def new_state(self, batch: int, capacity: int) -> InputHistory:  # noqa: ARG002
        """The embeddings of the window without its newest token: zeros; and the last tokens. It never grows."""
        shape = (batch, self.config.context - 1, self.config.token_width)
        history = InputHistory([torch.zeros(shape, dtype=self.compute_dtype, device=self.device)])
        if self.embed_ngrams is not None:
            before = (batch, self.config.looks_back, 1)
            history.inputs.append(torch.full(before, self.vocab_size, dtype=torch.int64, device=self.device))
        return history

    def hidden(self, tokens: Tensor, state: InputHistory | None = None) -> Tensor:
        """See `NeuralLanguageModel.hidden`: normalised outputs of the last hidden layer."""
        tokens = tokens.to(self.device)
        x = F.embedding(tokens, self.embed_tokens.weight.to(self.compute_dtype))
        state = self.new_state(tokens.shape[0], 0) if state is None else state
        x, state.inputs[0] = causal_taps(x, state.inputs[0], self.config.context)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == 0 and self.embed_ngrams is not None:
                last, state.inputs[1] = causal_taps(tokens.unsqueeze(-1), state.inputs[1], self.config.looks_back + 1)
                x = x + self.embed_ngrams(last.flip(-1)).to(x.dtype)
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of activations (..., D), in the compute dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward_flops_per_token(self, length: int) -> float:  # noqa: ARG002
        """Two per weight of the layers' matrices and the head; the same at every length."""
        config = self.config
        window = config.context * config.token_width * config.width
        rest = (config.layers - 1) * 2 * config.width * config.width
        return 2.0 * (window + rest + config.vocab_size * config.width)
