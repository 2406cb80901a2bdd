"""What a Transformer is made of: the one configuration behind every family that `transformer.py` can be.

The defaults are a decoder like Qwen3: pre-norm RMSNorm, rotary positions, RMSNorm of queries and keys, SwiGLU, no
biases. Every other choice is a field; `families/` says which choices make which published architecture.

    TransformerConfig(vocab_size=256, context_length=128, width=64, layers=2, heads=2, head_width=32)

Shapes: V vocabulary, D width, H query heads, K key/value heads, E head width, F feed-forward width.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from parlance.core.config import Config

MOST = 2**31 - 1
"""Largest size that is believed: what is beyond is no model."""

NGramTable = tuple[Annotated[int, Field(ge=2, le=16)], Annotated[int, Field(ge=1, le=2**26)]]
"""(n, rows) of a table of embeddings of the last n tokens."""


class RotaryScaling(Config):
    """How rotary positions reach beyond the length a model was trained on."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    """`linear`: positions divided by `factor` (Chen et al. 2023). `dynamic`: a base that grows with the text (NTK; keys
    in a cache keep the base they were computed with, so that pieces beyond the original length differ from the whole).
    `yarn`: slow frequencies interpolated, fast ones kept (Peng et al. 2023). `llama3`: LLaMA 3.1's smooth division."""
    factor: float = Field(ge=1)
    """How many times longer the context gets."""
    original_context_length: int = Field(ge=1)
    """Tokens that the model was trained on at first."""
    low_frequency_factor: float = 1.0
    """llama3: wavelengths above original / this are divided by `factor`."""
    high_frequency_factor: float = 4.0
    """llama3: wavelengths below original / this are kept."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn: frequencies that turn more often than this within the original context are kept."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn: those that turn less often than this are divided by `factor`."""
    attention_factor: float | None = None
    """yarn: scale of cos and sin; None: 0.1 ln(factor) + 1."""

    def canonical(self, context_length: int) -> "RotaryScaling":
        """The same extension, with what its kind does not read at its default (or `context_length`)."""
        read = {
            "linear": [],
            "dynamic": ["original_context_length"],
            "llama3": ["original_context_length", "low_frequency_factor", "high_frequency_factor"],
            "yarn": ["original_context_length", "beta_fast", "beta_slow", "attention_factor"],
        }[self.kind]
        values = {"original_context_length": context_length} | {name: getattr(self, name) for name in read}
        return RotaryScaling(kind=self.kind, factor=self.factor, **values)


class TransformerConfig(Config):
    """Sizes and parts of one stack of Transformer blocks with its embedding and head."""

    vocab_size: int = Field(ge=1, le=MOST)
    """Rows of the embedding (V)."""
    context_length: int = Field(ge=1, le=MOST)
    """Longest sequence the model may see (tokens)."""
    width: int = Field(ge=1, le=MOST)
    """Size of the residual stream (D)."""
    layers: int = Field(ge=0, le=1024)
    """Number of blocks."""
    heads: int = Field(ge=1, le=MOST)
    """Query heads (H)."""
    kv_heads: int | None = Field(default=None, ge=1, le=MOST)
    """Key/value heads (K), a divisor of `heads`: 1 is multi-query attention; None: as many as `heads`."""
    head_width: int = Field(default=64, ge=1, le=2**20)
    """Size of one head (E)."""
    mlp_width: int | None = Field(default=None, ge=1, le=MOST)
    """Feed-forward width (F); None: 8/3 of `width` with a gate, 4 times without, rounded up to a multiple of 64."""
    causal: bool = True
    """Whether a token sees only what is before it; False: an encoder."""
    cross_attention: bool = False
    """Whether each block also attends to an encoder's output: the decoder of an encoder-decoder."""

    positions: Literal["rotary", "learned", "sinusoidal", "alibi", "relative", "none"] = "rotary"
    """Su et al. 2021; a table; Vaswani et al. 2017; Press et al. 2022; T5's buckets (Raffel et al. 2020); nothing."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base of the rotary frequencies."""
    rotary_width: int | None = Field(default=None, ge=2, multiple_of=2)
    """How many of a head's E components turn; None: all."""
    rope_scaling: RotaryScaling | None = None
    """Extension of rotary positions; None: none."""
    position_offset: int = Field(default=0, ge=0)
    """Rows of the learned table in front of that of position 0 (OPT: 2)."""
    alibi_bias_max: float = Field(default=8.0, gt=0)
    """ALiBi: the last head's slope is 2^-this, for a number of heads that is a power of two."""
    alibi_before_scaling: bool = False
    """ALiBi: add the bias before scores are scaled, with slopes rounded to bfloat16 (Falcon)."""
    relative_buckets: int = Field(default=32, ge=4, multiple_of=2)
    """T5: number of learned biases a head."""
    relative_max_distance: int = Field(default=128, ge=2)
    """T5: distances from here on share a bucket."""

    head_offsets: float = Field(default=0.0, ge=0)
    """Head h (from 0) has its scores lowered by this much for each position that a key is away from h + 1 back: a fixed
    preference of each head for one of the last tokens, beside what `positions` does; 0: none."""

    sliding_window: int | None = Field(default=None, ge=1)
    """Most keys a token sees, itself included; None: all before it."""
    full_attention_layers: tuple[int, ...] = ()
    """Blocks (from 0) that `sliding_window` leaves out."""
    dilated_segments: tuple[tuple[int, int], ...] = ()
    """LongNet's (segment length, dilation) pairs; none: attention is not dilated."""
    attention_scale: float | None = None
    """Factor of the scores; None: 1 / sqrt(E)."""
    qk_norm: bool = True
    """RMSNorm of queries and keys per head (Qwen3)."""
    clip_qkv: float | None = Field(default=None, gt=0)
    """Largest size of a component of queries, keys and values; None: unbounded."""

    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_bias: bool = True
    """Whether LayerNorm has a bias."""
    norm_weight: bool = True
    """Whether RMSNorm, also that of queries and keys, has weights."""
    norm_epsilon: float = Field(default=1e-6, ge=0)
    """Added to the mean square, or the variance."""
    norm_placement: Literal["pre", "post"] = "pre"
    """Norm of each branch's input, or of the sum after each branch."""
    final_norm: bool = True
    """Norm after the last block."""
    embedding_norm: bool = False
    """Norm after the embedding (BLOOM, BERT)."""
    block: Literal["sequential", "parallel"] = "sequential"
    """Feed-forward after attention, or beside it."""
    parallel_norms: Literal[1, 2] = 2
    """Parallel blocks: one norm for both branches, or one for each."""

    activation: Literal["silu", "gelu", "gelu-tanh", "relu", "relu2"] = "silu"
    """Of the feed-forward; `relu2` is its square (So et al. 2021)."""
    gated_mlp: bool = True
    """down(act(gate x) * up x): SwiGLU, GEGLU (Shazeer 2020); False: down(act(up x))."""
    attention_bias: bool = False
    """Biases of queries, keys and values."""
    output_bias: bool = False
    """Bias of attention's output."""
    mlp_bias: bool = False
    """Biases of the feed-forward."""

    experts: int | None = Field(default=None, ge=1, le=2**14)
    """Feed-forwards to choose from; None: one, always used."""
    experts_per_token: int = Field(default=2, ge=1)
    """How many of them a token passes through."""
    expert_every: int = Field(default=1, ge=1)
    """Every so many blocks have experts, counted so that the last of each group has."""
    normalise_routing: bool = True
    """Whether the chosen experts' weights are made to sum to one."""
    load_balancing: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss in training (Fedus et al. 2022)."""

    router_z_loss: float = Field(default=0.001, ge=0)
    """Weight of the squared size of the router's scores in training (Zoph et al. 2022)."""

    embedding_width: int | None = Field(default=None, ge=1, le=MOST)
    """Size of a token's embedding where it is not D (OPT-350m: projected in and out); None: D."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the components of each branch's output, the same ones at all positions of a row, that training leaves
    out (Gal and Ghahramani 2016)."""
    ngram_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the positions where training leaves out what `ngram_tables` say."""
    token_types: int = Field(default=0, ge=0, le=MOST)
    """Rows of the table of segment embeddings (BERT: 2)."""
    ngram_tables: tuple[NGramTable, ...] = ()
    """(n, rows) of further embeddings, of the last n tokens: see `hashed_embeddings.py`."""
    tie_embeddings: bool = False
    """Whether the output head is the embedding matrix."""
    head_transform: bool = False
    """A dense layer, activation and norm before the head (BERT)."""
    head_bias: bool = False
    """Bias of the output head."""
    logit_scale: float = Field(default=1.0, gt=0)
    """Factor of the activations before the head (T5 with a tied head: 1 / sqrt(D))."""
    pooler: bool = False
    """BERT's tanh layer over the first position."""
    next_sentence: bool = False
    """BERT's two scores of whether two segments follow each other; needs `pooler`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.heads % self.key_value_heads:
            raise ValueError(f"kv_heads ({self.key_value_heads}) must divide heads ({self.heads})")
        if self.positions == "rotary" and (self.rotary_width or self.head_width) % 2:
            raise ValueError(f"head_width {self.head_width} is odd, and rotary positions turn components in pairs")
        if self.rotary_width is not None and self.rotary_width > self.head_width:
            raise ValueError(f"rotary_width {self.rotary_width} is more than head_width {self.head_width}")
        exact = self.relative_buckets // (2 if self.causal else 4)
        if self.positions == "relative" and self.relative_max_distance <= exact:
            raise ValueError(
                f"relative_max_distance {self.relative_max_distance} must be above {exact}, half the buckets"
            )
        if self.experts is not None and self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is more than the {self.experts} experts")
        if self.norm_placement == "post" and self.block == "parallel":
            raise ValueError("a parallel block has its norms before its branches: choose norm_placement pre")
        if self.dilated_segments and (not self.causal or self.positions in ("alibi", "relative")):
            raise ValueError("dilated attention is causal, and without alibi or relative positions")
        if self.dilated_segments and self.sliding_window is not None:
            raise ValueError("choose sliding_window or dilated_segments, not both")
        if any(segment < 1 or dilation < 1 for segment, dilation in self.dilated_segments):
            raise ValueError("segment lengths and dilations of dilated_segments are at least 1")
        if self.next_sentence and not self.pooler:
            raise ValueError("next_sentence needs pooler")
        if self.head_offsets and (not self.causal or self.dilated_segments or self.positions in ("alibi", "relative")):
            raise ValueError("head_offsets go with causal attention that has no dilation, alibi or relative positions")
        if any(not 0 <= layer < self.layers for layer in self.full_attention_layers):
            raise ValueError(f"full_attention_layers names blocks from 0 to {self.layers - 1}")
        if self.ngram_tables and not self.causal:
            raise ValueError("ngram_tables look back, which only a causal model does")
        if not self.norm_weight and self.norm != "rms":
            raise ValueError("only RMSNorm comes without weights: choose norm rms")
        return self

    @property
    def key_value_heads(self) -> int:
        """K, with the default filled in."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def feed_forward_width(self) -> int:
        """F, with the default filled in."""
        if self.mlp_width is not None:
            return self.mlp_width
        numerator, denominator = (8, 3) if self.gated_mlp else (4, 1)
        return -(-numerator * self.width // (denominator * 64)) * 64

    @property
    def scale(self) -> float:
        """Factor of the scores, with the default filled in."""
        return self.head_width**-0.5 if self.attention_scale is None else self.attention_scale

    def canonical(self) -> "TransformerConfig":
        """The same model, said in one way: sizes filled in, and what has no effect at its default."""
        idle: list[str] = []
        if self.positions != "rotary":
            idle += ["rope_theta", "rotary_width", "rope_scaling"]
        if self.positions != "learned":
            idle += ["position_offset"]
        if self.positions != "alibi":
            idle += ["alibi_bias_max", "alibi_before_scaling"]
        if self.positions != "relative":
            idle += ["relative_buckets", "relative_max_distance"]
        if self.sliding_window is None:
            idle += ["full_attention_layers"]
        if self.norm == "rms":
            idle += ["norm_bias"]
        if self.block != "parallel":
            idle += ["parallel_norms"]
        if self.experts is None:
            idle += ["experts_per_token", "expert_every", "normalise_routing"]
        idle += ["load_balancing", "router_z_loss", "dropout", "ngram_dropout"]  # change training alone
        values = dict(self) | {
            "kv_heads": self.key_value_heads,
            "mlp_width": self.feed_forward_width,
            "attention_scale": None if self.scale == self.head_width**-0.5 else self.scale,
            "rotary_width": None if self.rotary_width in (None, self.head_width) else self.rotary_width,
            "rope_scaling": self.rope_scaling and self.rope_scaling.canonical(self.context_length),
        }
        return TransformerConfig(**{name: value for name, value in values.items() if name not in idle})

    @property
    def needs_mask(self) -> bool:
        """Whether even sequences in plain order need a mask, because no kernel computes this attention without one."""
        if not self.causal:
            return self.sliding_window is not None or self.positions in ("alibi", "relative")
        alibi = self.positions == "alibi" and (self.alibi_before_scaling or self.sliding_window is not None)
        return alibi or self.positions == "relative"

    @property
    def masks_nothing_else(self) -> bool:
        """Whether what a token sees is all that is before it in its document."""
        plain = self.causal and self.sliding_window is None and not self.dilated_segments
        return plain and self.positions not in ("alibi", "relative") and not self.head_offsets

    @property
    def looks_back(self) -> int:
        """How many tokens before it the embedding of a token depends on."""
        return max((n for n, _ in self.ngram_tables), default=1) - 1

    def has_experts(self, layer: int) -> bool:
        """Whether block `layer` (from 0) has experts."""
        return self.experts is not None and (layer + 1) % self.expert_every == 0

    def window(self, layer: int) -> int | None:
        """The sliding window of block `layer` (from 0)."""
        return None if layer in self.full_attention_layers else self.sliding_window

    # --- counting ---

    def matrix_parameters(self) -> int:
        """Weights of the blocks' matrices that work on a token: what its cost is proportional to, besides the head.

        Of the experts, those that are not routed to do not count.
        """
        inner = self.head_width * (2 * self.heads + 2 * self.key_value_heads)
        attention = self.width * inner * (2 if self.cross_attention else 1)
        mlp = (3 if self.gated_mlp else 2) * self.width * self.feed_forward_width
        total = 0
        for layer in range(self.layers):
            total += attention
            if self.has_experts(layer):
                assert self.experts is not None
                total += self.experts_per_token * mlp + self.width * self.experts
            else:
                total += mlp
        return total

    def head_parameters(self) -> int:
        """Weights of the matrices between the last block and the logits, and between the embedding and the first."""
        inner = self.embedding_width or self.width
        projections = 2 * self.width * inner if self.embedding_width is not None else 0
        return self.vocab_size * inner + projections + (self.width**2 if self.head_transform else 0)

    def attended(self, layer: int, length: int, *, masked: bool = False) -> float:
        """How many keys a token of a sequence of `length` sees in block `layer`, on average: T/2 where all before it.

        (The exact mean is (T + 1)/2; the half is what kernels that skip the masked half come to.) `masked`: all T keys,
        which kernels that compute the whole and mask it come to.
        """
        if not self.causal or masked:
            return float(length)
        if self.dilated_segments:
            return float(sum(min(w, length) / (2 * r) / r for w, r in self.dilated_segments))
        window = min(self.window(layer) or length, length)
        return window - window * window / (2 * length)

    def forward_flops_per_token(self, length: int, *, masked: bool = False) -> float:
        """Floating-point operations of a forward pass, per token of a sequence of `length`: 2 N + attention.

        N counts the blocks' matrices and the head. Attention: scores and weighted sum, 4 H E a key that is seen.
        `masked`: count masked scores too, as `torch.utils.flop_counter` does for kernels that compute them.
        Cross-attention is not counted: it depends on another length.
        """
        seen = sum(self.attended(layer, length, masked=masked) for layer in range(self.layers))
        attention = 4.0 * self.heads * self.head_width * seen
        return 2.0 * (self.matrix_parameters() + self.head_parameters()) + attention

    def training_flops_per_token(self, length: int) -> float:
        """Three times the forward pass: 6 N + attention (Kaplan et al. 2020)."""
        return 3.0 * self.forward_flops_per_token(length)
