"""The recurrent encoder-decoder with attention: translation's model before the Transformer.

A bidirectional recurrent encoder reads the source. The decoder is recurrent over the target, and each of its layers
looks at the source after its recurrence: scores of the layer's output with every source activation, their softmax, and
the weighted sum. Attention behind the recurrence (Luong) and not within it (Bahdanau) lets training compute all T steps
at once: recurrences run in the kernels of `recurrent.py`, attention is a few large products. What a step attended to
reaches later steps through the next layer's recurrence (Wu et al. 2016) or, with `input_feeding`, through the next
step's input, at the price of a loop over T.

Each part is a residual branch behind a norm, as in `recurrent.py`. Attention has one head. Local attention, coverage
and dropout are left out. A step of generation costs the same at every length of the target.

    config = RecurrentAttentionConfig(vocab_size=256, width=128, layers=1, start_token=0, empty_source=(1,))
    model = RecurrentAttention(config)
    model.initialise(torch.Generator().manual_seed(0))
    state = model.begin(torch.tensor([[5, 3, 8]]), capacity=20)                        # reads the source
    logits, state = model.forward(torch.tensor([[model.start_token]]), state)          # (1, 1, 256)

Shapes: B batch, S source tokens, T target tokens, V vocabulary, D width. Sources: Cho et al. 2014; Bahdanau, Cho and
Bengio 2015 (additive attention, bidirectional encoder, first decoder state); Luong, Pham and Manning 2015
(multiplicative attention, input feeding); Wu et al. 2016 (attention within a stack, residual layers).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.neural import Embedding
from parlance.models.recurrent import GAINS, GATES, Cell, RecurrentConfig, RecurrentLayer
from parlance.models.transformer_blocks import Linear, RMSNorm
from parlance.models.transformer_config import MOST

ADDITIVE_ELEMENTS = 2**22
"""Numbers of (B, T, S, D) that additive attention holds at a time."""


class RecurrentAttentionConfig(Config):
    """Sizes and parts of a recurrent encoder-decoder."""

    model_type: Literal["parlance-recurrent-attention"] = "parlance-recurrent-attention"
    """What `config.json` says this is."""
    vocab_size: int = Field(ge=1, le=MOST)
    """Token ids of the tokenizer (V)."""
    sentinels: int = Field(default=0, ge=0, le=MOST)
    """Rows of the embedding beyond V, for the gaps of span corruption: V is the first."""
    start_token: int = Field(ge=0, le=MOST)
    """What the decoder reads first."""
    empty_source: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, max_length=1024)
    """What the encoder reads where there is no source."""
    layers: int = Field(ge=1, le=1024)
    """Layers of the encoder, each of two directions, and as many of the decoder."""
    width: int = Field(ge=1, le=2**20)
    """Units of a layer and of a direction, and size of the embedding (D)."""
    cell: Cell = "gru"
    """Kind of every recurrence."""
    attention: Literal["multiplicative", "additive"] = "multiplicative"
    """Score of a query q and a source activation k: q W k / sqrt(D) (Luong), or v tanh(U q + W k) (Bahdanau)."""
    input_feeding: bool = False
    """Whether a step also reads what the step before it gave; slower to train."""
    norm_epsilon: float = Field(default=1e-6, gt=0, le=1)
    """Added to the mean square in RMSNorm."""

    @model_validator(mode="after")
    def _tokens_are_rows(self) -> Self:
        if not all(0 <= token < self.vocab_size + self.sentinels for token in (self.start_token, *self.empty_source)):
            raise ValueError("start_token and empty_source are rows of the embedding")
        return self

    @property
    def first_sentinel(self) -> int:
        """The first of the sentinels' ids."""
        return self.vocab_size


@dataclass
class Source:
    """An encoder's output as the decoder reads it."""

    encoded: Tensor
    """(B, S, D)."""
    keys: list[Tensor]
    """Per decoder layer (B, S, D): what additive attention adds to a query; empty where there is none."""
    mask: Tensor | None
    """(B, S) bool: which places are tokens; None: all."""

    def select(self, rows: Tensor) -> "Source":
        """The sources of some rows (int64 indices)."""
        mask = None if self.mask is None else self.mask[rows]
        return Source(self.encoded[rows], [keys[rows] for keys in self.keys], mask)


@dataclass
class DecoderState:
    """What the decoder remembers of each target of a batch; it never grows."""

    hidden: list[Tensor]
    """Per layer (B, D): the last output of the recurrence."""
    cells: list[Tensor]
    """Per layer (B, D): the cell of an LSTM."""
    fed: Tensor
    """(B, D): what the last step gave, for `input_feeding`."""
    source: Source

    def select(self, rows: Tensor) -> "DecoderState":
        """The state of some rows (int64 indices)."""
        hidden, cells = ([part[rows] for part in parts] for parts in (self.hidden, self.cells))
        return DecoderState(hidden, cells, self.fed[rows], self.source.select(rows))


class EncoderLayer(nn.Module):
    """x + the outputs of a recurrence from the left and of one from the right, each with its norm and gain."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__()
        self.rightwards, self.leftwards = RecurrentLayer(config), RecurrentLayer(config)

    def forward(self, x: Tensor, mirrored: Tensor) -> Tensor:
        """x (B, S, D), padded on the right; `mirrored` (B, S, 1): for each place, the one as far from the row's end."""
        zero = torch.zeros_like(x[:, 0])
        places = mirrored.expand_as(x)
        ahead, _, _ = self.rightwards(x, zero, zero)
        back, _, _ = self.leftwards(x.gather(1, places), zero, zero)
        out: Tensor = ahead + back.gather(1, places) - x  # both have added x
        return out


class SourceAttention(nn.Module):
    """What a layer of the decoder takes from the source."""

    def __init__(self, config: RecurrentAttentionConfig) -> None:
        super().__init__()
        D = config.width
        self.additive = config.attention == "additive"
        self.layernorm = RMSNorm(D, config.norm_epsilon)
        self.q_proj = Linear(D, D)
        self.k_proj = Linear(D, D) if self.additive else None
        self.score = nn.Parameter(torch.empty(D)) if self.additive else None
        self.o_proj = Linear(D, D)

    def forward(self, x: Tensor, source: Source, layer: int) -> Tensor:
        """x (B, T, D) plus what it attends to."""
        queries = self.q_proj(self.layernorm(x))
        if self.score is not None:
            return x + self.o_proj(self._additive(queries, source, layer))  # type: ignore[no-any-return]
        # One head; the kernel divides the scores by sqrt(D).
        places = source.encoded.unsqueeze(1)
        mask = None if source.mask is None else source.mask[:, None, None]
        found = F.scaled_dot_product_attention(queries.unsqueeze(1), places, places, attn_mask=mask)
        return x + self.o_proj(found.squeeze(1))  # type: ignore[no-any-return]

    def _additive(self, queries: Tensor, source: Source, layer: int) -> Tensor:
        """Contexts (B, T, D), a few steps at a time: (B, T, S, D) numbers are computed again for the gradient."""
        assert self.score is not None
        rows = max(1, ADDITIVE_ELEMENTS // source.encoded.numel())
        arguments = (source.keys[layer], source.encoded, source.mask, self.score)
        if queries.shape[1] <= rows:
            return _additive_contexts(queries, *arguments)
        parts = [
            checkpoint(_additive_contexts, part, *arguments, use_reentrant=False)
            for part in torch.split(queries, rows, dim=1)
        ]
        return torch.cat(parts, dim=1)


def _additive_scores(queries: Tensor, keys: Tensor, score: Tensor) -> Tensor:
    """(B, T, S) of queries (B, T, D) and keys (B, S, D)."""
    return F.linear(torch.tanh(queries.unsqueeze(2) + keys.unsqueeze(1)), score.to(queries.dtype)[None]).squeeze(-1)


def _additive_contexts(queries: Tensor, keys: Tensor, encoded: Tensor, mask: Tensor | None, score: Tensor) -> Tensor:
    return _softmax(_additive_scores(queries, keys, score), mask) @ encoded


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Over the tokens of the source; scores (B, T, S), mask (B, S)."""
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    return scores.float().softmax(-1).to(scores.dtype)


class DecoderLayer(nn.Module):
    """A recurrence over the target, then attention to the source."""

    def __init__(self, config: RecurrentAttentionConfig, recurrent: RecurrentConfig) -> None:
        super().__init__()
        self.start_proj = Linear(config.width, config.width)
        self.recurrence = RecurrentLayer(recurrent)
        self.attention = SourceAttention(config)


class RecurrentAttention(ConditionalLanguageModel):
    """Embedding, encoder, decoder, head."""

    def __init__(self, config: RecurrentAttentionConfig) -> None:
        super().__init__()
        D, rows = config.width, config.vocab_size + config.sentinels
        self.config: RecurrentAttentionConfig = config
        self.vocab_size = config.vocab_size
        self.context_length: int | None = None
        self.source_length: int | None = None
        self.start_token, self.empty_source = config.start_token, config.empty_source
        self.compute_dtype = torch.float32
        recurrent = RecurrentConfig(
            vocab_size=rows, layers=config.layers, width=D, cell=config.cell, norm_epsilon=config.norm_epsilon
        )
        self.embed_tokens = Embedding(rows, D)
        self.encoder_layers = nn.ModuleList(EncoderLayer(recurrent) for _ in range(config.layers))
        self.encoder_norm = RMSNorm(D, config.norm_epsilon)
        self.feed_proj = Linear(D, D) if config.input_feeding else None
        self.decoder_layers = nn.ModuleList(DecoderLayer(config, recurrent) for _ in range(config.layers))
        self.norm = RMSNorm(D, config.norm_epsilon)
        self.lm_head = Linear(D, rows)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/D) for matrices, N(0, 1) for the embedding, a small head.

        Biases are zero but for a 1 at the gates that keep the past, gains are `GAINS`: as in `Recurrent.initialise`.
        """
        D = self.config.width
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("embed_tokens"):
                    parameter.normal_(0.0, 1.0, generator=generator)
                elif name.startswith("lm_head"):
                    parameter.normal_(0.0, 0.001, generator=generator)
                elif parameter.ndim == 2 or name.endswith(".score"):
                    parameter.normal_(0.0, D**-0.5, generator=generator)
                elif name.endswith(".gain"):
                    parameter.fill_(GAINS[self.config.cell])
                else:
                    parameter.fill_(1.0 if "norm" in name else 0.0)
            for module in self.modules():
                if isinstance(module, RecurrentLayer) and module.cell != "elman":
                    module.bias[D : 2 * D] = 1.0

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Source:
        """Activations of source tokens (B, S); `mask` (B, S) bool says which are tokens, anywhere in a row. None: all.

        Tokens move to the left of their rows, so that nothing stands before or between them. Raises UserError where a
        row has none.
        """
        source = source.to(self.device)
        B, S = source.shape
        places = torch.arange(S, device=self.device).expand(B, S)
        if mask is None:
            mirrored = places.flip(1)
        else:
            mask = mask.to(self.device)
            lengths = mask.sum(1, keepdim=True)
            if not bool(lengths.all()):
                raise UserError("a source has no token: give it the model's empty_source")
            source = source.gather(1, mask.long().argsort(dim=1, descending=True, stable=True))
            mask = places < lengths
            mirrored = torch.where(mask, lengths - 1 - places, places)
        x = self._embed(source)
        for layer in self.encoder_layers:
            x = layer(x, mirrored.unsqueeze(-1))
        encoded = self.encoder_norm(x)
        projections = [module.k_proj for module in self.modules() if isinstance(module, SourceAttention)]
        keys = [project(encoded) for project in projections if project is not None]
        return Source(encoded, keys, mask)

    def new_state(self, batch: int, capacity: int, memory: Source | None = None) -> DecoderState:  # noqa: ARG002
        """The first state of the decoder: tanh of a projection of the first source token's activation.

        There the encoder has read the whole source from the right (Bahdanau et al. 2015).
        """
        source = self.empty_memory(batch) if memory is None else memory
        summary = source.encoded[:, 0]
        zero = torch.zeros_like(summary)
        hidden = [torch.tanh(layer.start_proj(summary)) for layer in self.decoder_layers]  # type: ignore[operator]
        return DecoderState(hidden, [zero for _ in hidden], zero, source)

    def hidden(self, tokens: Tensor, state: DecoderState | None = None, memory: Source | None = None) -> Tensor:
        """Decoder activations (B, T, D) of target tokens (B, T); rows may be padded on the right."""
        tokens = tokens.to(self.device)
        state = self.new_state(tokens.shape[0], 0, memory) if state is None else state
        x = self._embed(tokens)
        if self.feed_proj is None:
            return self.norm(self._stack(x, state))  # type: ignore[no-any-return]
        outputs = []
        for step in torch.split(x, 1, dim=1):
            output = self.norm(self._stack(step + self.feed_proj(state.fed).unsqueeze(1), state))
            state.fed = output[:, 0]
            outputs.append(output)
        return torch.cat(outputs, dim=1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embed_tokens.weight.to(self.compute_dtype))

    def _stack(self, x: Tensor, state: DecoderState) -> Tensor:
        """The decoder's layers over x (B, T, D); moves `state` on."""
        for number, layer in enumerate(self.decoder_layers):
            recurrence, attention = layer.recurrence, layer.attention
            x, state.hidden[number], state.cells[number] = recurrence(  # type: ignore[operator]
                x, state.hidden[number], state.cells[number]
            )
            x = attention(x, state.source, number)  # type: ignore[operator]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V + sentinels) of decoder activations (..., D), in the compute dtype."""
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def forward_flops_per_token(self, length: int) -> float:
        """Operations per token, of `length` tokens: half of them source, half target. The head reads the target alone.

        Additive attention's tanh is not counted, and of its sums only the products with v.
        """
        config, half = self.config, length / 2
        D = config.width
        cell = (2 * GATES[config.cell] + (2 if config.cell == "mlstm" else 0)) * D * D
        additive = D * D if config.attention == "additive" else 0
        source = config.layers * (2 * cell + additive)
        target = config.layers * (cell + 2 * D * D + 2 * D * half) + (config.vocab_size + config.sentinels) * D
        target += D * D if config.input_feeding else 0
        start = config.layers * D * D / half
        return float(source + target + start)
