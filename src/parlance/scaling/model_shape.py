"""The sizes of a decoder-only Transformer, and what follows from them: parameters, floating-point operations, KV cache.

    shape = derive_shape(65e9, context=2048)
    shape.parameters(), shape.training_flops_per_token(), shape.key_value_bytes_per_token()

Shapes: V vocabulary, D width, H query heads, K key/value heads, E head width, F feed-forward width, T context, L
layers. Biases are not counted (less than a thousandth). `parlance.models` counts its own networks exactly; the tests
compare.

Sources: 6 N per token and 2 (forward), Kaplan et al. 2020; attention 12 L H E T per token in training (scores and
weighted sum over all T keys, backward twice the forward), Chowdhery et al. 2022 (PaLM), appendix B. A causal kernel
does half of that attention; model FLOPs utilisation (MFU) is defined without the halving, so it is not the default here
either.
"""

import math
from typing import Self

from pydantic import Field, model_validator

from parlance.core.config import Config, parse_config
from parlance.core.errors import UserError

ASPECTS = (64, 128)
"""Width for each layer of derived shapes below and from a billion parameters: GPT-2 and GPT-3 small have 64, GPT-3
175B, LLaMA 7B and 13B have 128 (LLaMA 65B 102)."""
MULTIPLE = 64
"""Feed-forward widths are rounded to this, as matrix units like it."""


class ModelShape(Config):
    """Sizes of a decoder-only Transformer."""

    vocab_size: int = Field(ge=1, le=2**31)
    """Rows of the embedding (V)."""
    context: int = Field(ge=1, le=2**31)
    """Tokens of a training sequence (T)."""
    width: int = Field(ge=1, le=2**24)
    """Size of the residual stream (D)."""
    layers: int = Field(ge=1, le=2**14)
    """Number of blocks (L)."""
    heads: int = Field(ge=1, le=2**16)
    """Query heads (H)."""
    kv_heads: int = Field(ge=1, le=2**16)
    """Key/value heads (K), a divisor of `heads`."""
    head_width: int = Field(ge=1, le=2**20)
    """Size of one head (E)."""
    mlp_width: int = Field(ge=1, le=2**26)
    """Feed-forward width (F), of one expert."""
    gated_mlp: bool = True
    """Three feed-forward matrices (SwiGLU) instead of two."""
    tie_embeddings: bool = False
    """Whether the output layer is the embedding."""
    learned_positions: bool = False
    """Whether a table of T x D positions is learned (GPT-2, GPT-3)."""
    experts: int = Field(default=1, ge=1, le=2**16)
    """Feed-forwards to choose from; 1: one, always used."""
    experts_per_token: int = Field(default=1, ge=1)
    """How many of them a token passes through."""
    expert_every: int = Field(default=1, ge=1)
    """Every so many blocks have experts."""
    window: int | None = Field(default=None, ge=1)
    """Tokens that a token sees of those before it, itself included; None: all."""
    full_layers: int = Field(default=0, ge=0)
    """Blocks that see all of them in spite of `window`."""
    ngram_rows: int = Field(default=0, ge=0, le=2**40)
    """Rows of embeddings of several tokens, of width D: they are looked up, and take no products."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")
        if self.full_layers > self.layers:
            raise ValueError(f"full_layers {self.full_layers} is more than the {self.layers} layers")
        return self

    @property
    def expert_layers(self) -> int:
        """How many blocks have experts."""
        return self.layers // self.expert_every if self.experts > 1 else 0

    @property
    def window_blocks(self) -> int:
        """How many blocks see a window."""
        return 0 if self.window is None else self.layers - self.full_layers

    @property
    def full_blocks(self) -> int:
        """How many blocks see all."""
        return self.layers - self.window_blocks

    @property
    def reach(self) -> int:
        """Tokens that a block with a window sees at most (W)."""
        return self.context if self.window is None else min(self.window, self.context)

    def attention_parameters(self) -> int:
        """Matrices of one block's attention."""
        return self.width * self.head_width * (2 * self.heads + 2 * self.kv_heads)

    def mlp_parameters(self) -> int:
        """Matrices of one feed-forward."""
        return (3 if self.gated_mlp else 2) * self.width * self.mlp_width

    def shared_parameters(self) -> int:
        """Weights of all blocks but the experts': attention, feed-forwards without experts, routers, norms."""
        plain = self.layers - self.expert_layers
        routers = self.expert_layers * self.width * self.experts
        norms = 2 * self.layers * self.width
        return self.layers * self.attention_parameters() + plain * self.mlp_parameters() + routers + norms

    def expert_parameters(self) -> int:
        """Weights of all experts of all blocks."""
        return self.expert_layers * self.experts * self.mlp_parameters()

    def embedding_parameters(self) -> int:
        """Rows for tokens and positions."""
        return self.vocab_size * self.width + (self.context * self.width if self.learned_positions else 0)

    def ngram_parameters(self) -> int:
        """Rows for several tokens."""
        return self.ngram_rows * self.width

    def head_parameters(self) -> int:
        """The output layer's matrix, whether or not it is the embedding."""
        return self.vocab_size * self.width

    def parameters(self) -> int:
        """All weights (N)."""
        head = 0 if self.tie_embeddings else self.head_parameters()
        tables = self.embedding_parameters() + self.ngram_parameters()
        return self.shared_parameters() + self.expert_parameters() + tables + head + self.width

    def active_parameters(self) -> int:
        """The weights that one token meets: all, less the experts that it is not routed to, and tables of n-grams.

        Of those a token meets a few rows.
        """
        idle = self.expert_layers * (self.experts - self.experts_per_token) * self.mlp_parameters()
        return self.parameters() - idle - self.ngram_parameters()

    def matrix_parameters(self) -> int:
        """Weights of the matrix products that a token takes part in, the output layer included, look-ups not."""
        mlp = (self.layers - self.expert_layers + self.expert_layers * self.experts_per_token) * self.mlp_parameters()
        routers = self.expert_layers * self.width * self.experts
        return self.layers * self.attention_parameters() + mlp + routers + self.head_parameters()

    def forward_flops_per_token(self, *, causal: bool = False) -> float:
        """2 a matrix weight, and 4 H E for every key of every block, T or those of its window; `causal`: those alone
        that a token sees on average, half of T, or W - W^2 / 2T of a window of W."""
        keys = self.full_blocks * self._keys(self.context, causal) + self.window_blocks * self._keys(self.reach, causal)
        return 2.0 * self.matrix_parameters() + 4.0 * self.heads * self.head_width * keys

    def _keys(self, window: int, causal: bool) -> float:
        """How many keys a token meets in a block that sees `window` of them."""
        return window - window * window / (2.0 * self.context) if causal else float(window)

    def training_flops_per_token(self, *, causal: bool = False) -> float:
        """Three times the forward pass: what MFU counts. Recomputation is not the model's work and is not in it."""
        return 3.0 * self.forward_flops_per_token(causal=causal)

    def key_value_bytes_per_token(self, bytes_each: int = 2) -> int:
        """Keys *and* values of all layers, of one token of one sequence."""
        return 2 * self.layers * self.kv_heads * self.head_width * bytes_each

    def key_value_bytes_per_sequence(self, bytes_each: int = 2) -> int:
        """Those of a sequence of T tokens: a block with a window needs no more than its tokens."""
        tokens = self.full_blocks * self.context + self.window_blocks * self.reach
        return 2 * tokens * self.kv_heads * self.head_width * bytes_each


def derive_shape(
    parameters: float,
    *,
    context: int = 2048,
    vocab_size: int | None = None,
    layers: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    gated_mlp: bool = True,
    tie_embeddings: bool | None = None,
    learned_positions: bool = False,
    experts: int = 1,
    experts_per_token: int = 1,
    expert_every: int = 1,
) -> ModelShape:
    """A usual shape of about `parameters` weights; what is given is kept.

    Width is 128 times the layers (64 below a billion weights), heads are 128 wide (64 below a width of 1024) and a
    multiple of 8 in wide models, deep models have layers that are a multiple of 2, 4 or 8 (so that a pipeline divides
    them), the vocabulary is 32 000 (less where that would be over a third of the model), models below a billion tie
    their embeddings, and the feed-forward takes up what is left. Raises UserError where the given sizes cannot make
    that many.
    """
    vocab = vocab_size or _vocabulary(parameters)
    tied = tie_embeddings if tie_embeddings is not None else parameters < 1e9
    fraction = experts if experts > 1 else 1
    per_square = 4.0 + 8.0 * (1.0 if experts == 1 else (1.0 + (fraction - 1.0) / expert_every))
    tables = vocab * (1 if tied else 2) + (context if learned_positions else 0)
    if width is None:
        wanted = _width(parameters, per_square, tables, layers)
        multiple = heads or _multiple(wanted)
        width = max(multiple, round(wanted / multiple) * multiple)
    if layers is None:
        layers = _depth((parameters - tables * width) / (per_square * width * width))
    if heads is None:
        heads = _heads(width, kv_heads)
    if width % heads:
        raise UserError(f"--heads {heads} does not divide the width {width}: give --width a multiple of it")

    sizes = {
        "vocab_size": vocab,
        "context": context,
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads or heads,
        "head_width": width // heads,
        "gated_mlp": gated_mlp,
        "tie_embeddings": tied,
        "learned_positions": learned_positions,
        "experts": experts,
        "experts_per_token": experts_per_token,
        "expert_every": expert_every,
    }

    def shape(mlp_width: int) -> ModelShape:
        return parse_config(ModelShape, sizes | {"mlp_width": mlp_width}, where="this model")

    least, each = shape(1).parameters(), shape(2).parameters() - shape(1).parameters()
    step = MULTIPLE if width >= 512 else 1
    found = shape(max(step, round((parameters - least) / each / step) * step))
    if abs(found.parameters() / parameters - 1.0) > 0.05 or not 0.25 * width <= found.mlp_width <= 16 * width:
        raise UserError(
            f"{parameters:.4g} parameters do not fit a vocabulary of {vocab}, {layers} layers of width {width} and a "
            "usual feed-forward: give other --vocab, --layers or --width, or leave one out"
        )
    return found


def _vocabulary(parameters: float) -> int:
    """32 000, or the power of two whose table is about a third of a small model."""
    for size in (32_000, 16_384, 8_192, 4_096, 2_048, 1_024, 512):
        width = _width(parameters, 12.0, size, None)
        if size * width <= parameters / 3.0:
            return size
    return 256


def _width(parameters: float, per_square: float, tables: int, layers: int | None) -> float:
    """The d with per_square L d^2 + tables d = N, L given or by `ASPECTS`; by bisection, for it grows with d."""
    low, high = 1.0, 2.0**24
    aspect = ASPECTS[parameters >= 1e9]
    while high / low > 1.0 + 1e-9:
        middle = math.sqrt(low * high)
        depth = layers if layers is not None else middle / aspect
        low, high = (middle, high) if per_square * depth * middle**2 + tables * middle < parameters else (low, middle)
    return low


def _depth(layers: float) -> int:
    """Layers as people choose them: a multiple of 8 from 28 on, of 4 from 14, of 2 from 3."""
    multiple = next((multiple for least, multiple in ((28.0, 8), (14.0, 4), (3.0, 2)) if layers >= least), 1)
    return max(1, round(layers / multiple) * multiple)


def _multiple(width: float) -> int:
    """What a width is a multiple of: heads of 128 (64 below 1024), an even number of them from a
    width of 512 on, four from 2048, eight from 4096, so that they can be divided."""
    return next(
        multiple
        for least, multiple in ((4096, 1024), (2048, 512), (1024, 256), (512, 128), (128, 64), (0, 8))
        if width >= least
    )


def _heads(width: int, kv_heads: int | None) -> int:
    """As many heads as make them 128 wide (64 in narrow models), a multiple of the key/value heads."""
    wanted = 128 if width >= 1024 else 64
    divisors = [n for n in range(1, min(width, 2**16) + 1) if width % n == 0 and n % (kv_heads or 1) == 0]
    if not divisors:
        raise UserError(f"--kv-heads {kv_heads} does not divide any number of heads of width {width}")
    return min(divisors, key=lambda n: abs(math.log(width / n / wanted)))
