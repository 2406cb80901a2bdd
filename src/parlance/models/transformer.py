"""One Transformer for every family: an embedding, a stack of blocks, a head, all as `TransformerConfig` says.

As a decoder (the default) it is a language model; with `causal=False` an encoder, whose logits are those of a masked
token (`masked.py`); two of them make an encoder-decoder (`encoder_decoder.py`). `checkpoints.py` and `families/` read
and write it in the form of the published families.

Shapes: B batch, T new tokens, S cached plus new tokens, V vocabulary, D width, H query heads, K key/value heads,
E head width.

    model = Transformer(TransformerConfig(vocab_size=256, context_length=128, width=64, layers=2, heads=2))
    logits, state = model.forward(torch.tensor([[1, 2, 3]]))        # (1, 3, 256)
    logits, state = model.forward(torch.tensor([[4]]), state)       # continues in constant work per token

Sources: Vaswani et al. 2017; the parts name theirs in `transformer_blocks.py` and `positions.py`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.hashed_embeddings import NGramEmbeddings, preceding
from parlance.models.key_value_cache import CacheSlots, KeyValueCache, Memory
from parlance.models.mixture_of_experts import MixtureOfExperts, load_balancing_loss, router_z_loss
from parlance.models.neural import Embedding, NeuralLanguageModel
from parlance.models.padding import MULTIPLE
from parlance.models.positions import (
    alibi_slopes,
    head_offsets,
    relative_buckets,
    rotary_frequencies,
    rotary_tables,
    sinusoids,
)
from parlance.models.transformer_blocks import (
    Block,
    LayerNorm,
    Layout,
    Linear,
    RMSNorm,
    activation,
    fan_in_spread,
    linear,
    make_norm,
)
from parlance.models.transformer_config import TransformerConfig


class Transformer(NeuralLanguageModel):
    """A stack of blocks with its embedding and head. Module names are those of LLaMA's checkpoints."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config: TransformerConfig = config
        self.vocab_size = config.vocab_size
        self.context_length: int | None = config.context_length
        self.compute_dtype = torch.float32
        # Where processes divide the vocabulary: the summed cross-entropy (nats) of hidden (N, D) and targets (N,).
        self.vocabulary_loss: Callable[[Transformer, Tensor, Tensor], Tensor] | None = None
        D, inner = config.width, config.embedding_width or config.width
        projected = config.embedding_width is not None
        self.embed_tokens = Embedding(config.vocab_size, inner)
        self.embed_positions = (
            Embedding(config.context_length + config.position_offset, D) if config.positions == "learned" else None
        )
        self.embed_types = Embedding(config.token_types, D) if config.token_types else None
        self.embed_ngrams = (
            NGramEmbeddings(config.ngram_tables, config.vocab_size + 1, inner) if config.ngram_tables else None
        )
        self.embed_norm = make_norm(config) if config.embedding_norm else None
        self.project_in = Linear(inner, D) if projected else None
        self.relative_bias = (
            Embedding(config.relative_buckets, config.heads) if config.positions == "relative" else None
        )
        self.layers = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.project_out = Linear(D, inner) if projected else None
        self.head_dense = Linear(D, D, bias=True) if config.head_transform else None
        self.head_norm = make_norm(config) if config.head_transform else None
        self.lm_head: Linear | None = None if config.tie_embeddings else Linear(inner, config.vocab_size)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.pooler = Linear(D, D, bias=True) if config.pooler else None
        self.next_sentence = Linear(D, 2, bias=True) if config.next_sentence else None

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/inputs) for matrices, zero for the outputs of each residual branch.

        Zero residual outputs start every block as the identity (in pre-norm form); the embedding is N(0, 1) when the
        head is its own (small) matrix and N(0, 1/D) when it is shared.
        """
        with torch.no_grad():
            spread = self.embed_tokens.weight.shape[1] ** -0.5 if self.lm_head is None else 1.0
            self.embed_tokens.weight.normal_(0.0, spread, generator=generator)
            if self.lm_head is not None:
                self.lm_head.weight.normal_(0.0, 0.001, generator=generator)
            for name, module in self.named_modules():
                if module is self.embed_tokens or module is self.lm_head:
                    continue
                if isinstance(module, Linear):
                    if name.endswith(("o_proj", "down_proj")) and self.config.norm_placement == "pre":
                        module.weight.zero_()
                    else:
                        # Where scores are scaled otherwise (T5: not at all), queries make up for it.
                        size = self.config.head_width**-0.5 / self.config.scale if name.endswith("q_proj") else 1.0
                        module.weight.normal_(0.0, size * fan_in_spread(module), generator=generator)
                elif isinstance(module, MixtureOfExperts):
                    module.initialise(generator)
                elif isinstance(module, NGramEmbeddings):
                    module.initialise()
                elif isinstance(module, nn.Embedding):
                    module.weight.normal_(0.0, 0.0 if module is self.relative_bias else 0.02, generator=generator)
                elif isinstance(module, RMSNorm | LayerNorm) and module.weight is not None:
                    module.weight.fill_(1.0)
            for name, parameter in self.named_parameters():
                if name.endswith("bias") and parameter.ndim == 1:
                    parameter.zero_()

    def new_state(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        shape = (batch, self.config.key_value_heads, capacity, self.config.head_width)

        def empty() -> list[Tensor]:
            return [torch.zeros(shape, dtype=self.compute_dtype, device=self.device) for _ in self.layers]

        lengths = torch.zeros(batch, dtype=torch.int64, device=self.device)
        state = KeyValueCache(empty(), empty(), lengths)
        if self.config.looks_back:
            state.tokens = torch.zeros(batch, capacity, dtype=torch.int64, device=self.device)
        return state

    def read_memory(self, encoded: Tensor, mask: Tensor | None = None) -> Memory:
        """Keys and values of every block's cross-attention to an encoder's output (B, S, D); mask (B, S) bool."""
        pairs = [layer.cross_attn.keys_values(encoded) for layer in self.layers]  # type: ignore[union-attr, operator]
        return Memory([key for key, _ in pairs], [value for _, value in pairs], mask)

    def hidden(
        self,
        tokens: Tensor,
        state: KeyValueCache | None = None,
        layout: Layout | None = None,
        memory: Memory | None = None,
        token_types: Tensor | None = None,
        noise: int | None = None,
    ) -> Tensor:
        """Final normalised activations (B, T, D) of tokens (B, T); extends `state` in place when one is given.

        Tokens may be anywhere; the activations are where the weights are.

        Without a state, rows of unequal length may be padded on the right: attention is causal, so padding never
        reaches a real token. A `layout` (without a state) says otherwise where tokens stand and what they see; an
        encoder needs one (`padding_layout`) as soon as there is padding. `memory` is what a decoder's
        cross-attention reads, where the state does not hold it. `token_types` (B, T): segments; none given: all 0.
        `noise` seeds what dropout leaves out of the first row, noise + 1 of the second, so that rows divided
        anyhow lose the same; None: nothing is left out.
        """
        tokens = tokens.to(self.device)
        B, T = tokens.shape
        device = tokens.device
        slots, documents = None, None
        seen = None  # (B|1, T, S) bool
        if state is not None:
            positions = state.lengths.unsqueeze(1) + torch.arange(T, device=device)
            used = int(positions[:, -1].max()) + 1
            if used > state.capacity:
                state.grow(max(used, 2 * state.capacity))
            # Few different lengths, few different kernels: see `padding.MULTIPLE`. The mask hides the rest.
            longest = min(state.capacity, -(-used // MULTIPLE) * MULTIPLE)
            continued = used > T or T == 1  # else every row begins here: attention among the new tokens
            slots = CacheSlots(torch.arange(B, device=device).unsqueeze(1), positions, longest, continued)
            if continued:
                seen = torch.arange(longest, device=device) <= positions.unsqueeze(-1)
            memory = memory or state.memory
            length = used
        elif layout is not None:
            if self.config.dilated_segments:
                raise UserError("dilated attention reads whole sequences in plain order: no packed or padded rows")
            positions, length = layout.positions, T if layout.keys_at is None else layout.keys_at.shape[1]
            if layout.documents is not None and self.config.masks_nothing_else:
                documents = layout.documents
            elif layout.documents is not None or layout.mask is not None:
                seen = layout.dense_mask()
        else:
            positions, length = torch.arange(T, device=device).unsqueeze(0), T
        if self.embed_positions is not None and state is not None and length > self.config.context_length:
            raise UserError(
                f"{length} tokens are more than the {self.config.context_length} positions that this model has learned"
            )
        keys_at = positions if slots is None or seen is None else torch.arange(slots.longest, device=device)[None]
        if layout is not None and layout.keys_at is not None:
            keys_at = layout.keys_at
        rotary = self._rotary(positions, length)
        full, windowed = self._masks(positions, keys_at, seen)
        attended = None
        if memory is not None and memory.mask is not None:
            attended = memory.mask[:, None, None, :]
        window = self._window(tokens, positions, state, layout) if self.config.looks_back else None
        draws = None if noise is None else [torch.Generator().manual_seed(noise + row) for row in range(B)]
        x = self._embed(tokens, positions, token_types, window, draws)
        kept = self._kept((len(self.layers), 2, 1, self.config.width), self.config.dropout, draws, 2)
        for number, layer in enumerate(self.layers):
            mask = full if self.config.window(number) is None else windowed
            cache = None if state is None else (state.keys[number], state.values[number])
            source = None if memory is None else (memory.keys[number], memory.values[number], attended)
            x = layer(x, rotary, mask, cache, slots, source, documents, None if kept is None else kept[number])
        if state is not None:
            state.lengths = state.lengths + T
        return x if self.norm is None else self.norm(x)

    def _window(self, tokens: Tensor, positions: Tensor, state: KeyValueCache | None, layout: Layout | None) -> Tensor:
        """Each token and as many before it as its embedding depends on: (B, T, back + 1), the newest first."""
        back, none = self.config.looks_back, self.config.vocab_size
        if layout is not None and layout.keys_at is not None:
            raise UserError("embeddings that depend on the tokens before need whole sequences: leave out ngram_tables")
        if state is None or state.tokens is None:
            return preceding(tokens, back, none, None if layout is None else layout.previous())
        state.tokens.scatter_(1, positions, tokens)
        at = positions.unsqueeze(-1) - torch.arange(back + 1, device=tokens.device)
        found = state.tokens.gather(1, at.clamp(min=0).flatten(1)).view(at.shape)
        return found.masked_fill(at < 0, none)

    def _kept(
        self, shape: tuple[int, ...], share: float, draws: list[torch.Generator] | None, dim: int
    ) -> Tensor | None:
        """Factors that are 0 with probability `share` and have a mean of 1, of `shape` for each row, stacked at `dim`.

        `draws`: a generator for each row; None: nothing is left out.
        """
        if draws is None or not share:
            return None
        rows = [torch.empty(shape).bernoulli_(1 - share, generator=draw) for draw in draws]
        return (torch.stack(rows, dim) / (1 - share)).to(self.device, self.compute_dtype)

    def _embed(
        self,
        tokens: Tensor,
        positions: Tensor,
        token_types: Tensor | None,
        window: Tensor | None,
        draws: list[torch.Generator] | None,
    ) -> Tensor:
        """The stream (B, T, D) that the first block reads."""
        dtype = self.compute_dtype
        x: Tensor = self.embed_tokens(tokens)
        if self.embed_ngrams is not None and window is not None:
            found = self.embed_ngrams(window)
            kept = self._kept((tokens.shape[1], 1), self.config.ngram_dropout, draws, 0)
            x = x + (found if kept is None else found * kept)
        x = x.to(dtype)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.embed_positions is not None:
            rows = (positions + self.config.position_offset).clamp(0, self.embed_positions.num_embeddings - 1)
            x = x + F.embedding(rows, self.embed_positions.weight).to(dtype)
        elif self.config.positions == "sinusoidal":
            x = x + sinusoids(positions, self.config.width).to(dtype)
        if self.embed_types is not None:
            types = torch.zeros_like(tokens) if token_types is None else token_types.to(tokens.device)
            x = x + F.embedding(types, self.embed_types.weight.to(dtype))
        return x if self.embed_norm is None else self.embed_norm(x)

    def _rotary(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
        """cos and sin (B|1, 1, T, R) at the positions (B|1, T) of the new tokens."""
        if self.config.positions != "rotary":
            return None
        frequencies, factor = rotary_frequencies(self.config, length, positions.device)
        cos, sin = rotary_tables(positions, frequencies, self.compute_dtype, factor)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def _masks(self, queries_at: Tensor, keys_at: Tensor, seen: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Masks of blocks without and with a sliding window: (B|1, H|1, T, S), bool or added to scores; None: plain.

        queries_at (B|1, T) and keys_at (B|1, S): positions. `seen` (B|1, T, S) bool; None: the plain order.
        """
        config = self.config
        if seen is None and not config.needs_mask:
            return None, None
        distances = keys_at.unsqueeze(1) - queries_at.unsqueeze(2)  # (B|1, T, S), negative for the past
        biased = config.positions in ("alibi", "relative") or config.head_offsets > 0
        window = config.sliding_window
        if seen is None:
            seen = distances <= 0 if config.causal else torch.ones_like(distances, dtype=torch.bool)
        bias = self._bias(distances, keys_at) if biased else None

        def joined(visible: Tensor) -> Tensor:
            visible = visible.unsqueeze(1)
            return visible if bias is None else bias.masked_fill(~visible, float("-inf"))

        near = seen if window is None else seen & (distances > -window) & (distances < window)
        return joined(seen), joined(near)

    def _bias(self, distances: Tensor, keys_at: Tensor) -> Tensor:
        """What is added to the scores for where keys stand: (B|1, H, T, S) in the compute dtype."""
        config = self.config
        if self.relative_bias is not None:
            buckets = relative_buckets(
                distances, config.relative_buckets, config.relative_max_distance, causal=config.causal
            )
            return F.embedding(buckets, self.relative_bias.weight).permute(0, 3, 1, 2).to(self.compute_dtype)
        if config.head_offsets:
            offsets = head_offsets(config.heads, distances.device)
            far = (distances.unsqueeze(1) + offsets[:, None, None]).abs()
            return (-config.head_offsets * far).to(self.compute_dtype)
        slopes = alibi_slopes(config.heads, config.alibi_bias_max).to(distances.device)
        if config.alibi_before_scaling:
            biases = (slopes.bfloat16()[:, None] * keys_at.clamp(min=0).unsqueeze(1)).float() * config.scale
            return biases.unsqueeze(2).expand(-1, -1, distances.shape[1], -1).to(self.compute_dtype)
        return (slopes[:, None, None] * distances.unsqueeze(1)).to(self.compute_dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of final activations (..., D), in the compute dtype."""
        return linear(self.before_head(hidden), *self.head())

    def before_head(self, hidden: Tensor) -> Tensor:
        """What the output matrix is applied to: (..., D), or (..., embedding_width), of final activations (..., D)."""
        if self.head_dense is not None and self.head_norm is not None:
            hidden = self.head_norm(activation(self.config.activation)(self.head_dense(hidden)))
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return hidden if self.config.logit_scale == 1.0 else hidden * self.config.logit_scale

    def head(self) -> tuple[Tensor, Tensor | None]:
        """The output matrix (V, D) and its bias (V,) or None, in fp32."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight, self.head_bias

    def pooled(self, hidden: Tensor) -> Tensor:
        """tanh of a dense layer over the first position's activations: (B, D)."""
        if self.pooler is None:
            raise UserError("this model has no pooler")
        return torch.tanh(self.pooler(hidden[:, 0]))

    def auxiliary_loss(self) -> Tensor | None:
        """What keeps the experts of the last training call in balance; None without experts, or such a call."""
        mixtures = [module for module in self.modules() if isinstance(module, MixtureOfExperts)]
        scores = [logits for module in mixtures if (logits := module.pop_router_logits()) is not None]
        if not scores:
            return None
        config = self.config
        balance = torch.stack([load_balancing_loss(logits, config.experts_per_token) for logits in scores]).mean()
        size = torch.stack([router_z_loss(logits) for logits in scores]).mean()
        return config.load_balancing * balance + config.router_z_loss * size

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding matrix."""
        return self.lm_head is None

    def matrix_parameters(self) -> int:
        """See `TransformerConfig.matrix_parameters`: of the experts, those that a token passes through."""
        return self.config.matrix_parameters()

    def forward_flops_per_token(self, length: int) -> float:
        """See `TransformerConfig.forward_flops_per_token`."""
        return self.config.forward_flops_per_token(length)

    def forward(self, tokens: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Logits (B, T, V) fp32 of tokens (B, T) int64, and the state to continue from (extended in place).

        Positions beyond `context_length` are computed as asked, where the model has any (a learned table has not); what
        it does there it was not trained for.
        """
        return super().forward(tokens, state)
