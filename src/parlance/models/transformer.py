"""A decoder-only Transformer: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU.

With `qk_norm` it is the architecture that Hugging Face calls Qwen3, without it LLaMA; `checkpoints.py` writes either.
Parameters are stored in fp32; activations and matrix products run in `compute_dtype` (bfloat16 where the machine is
fast at it), and gradients come back in fp32.

Shapes: B batch, T new tokens, S cached plus new tokens, V vocabulary, D width, H query heads, K key/value heads,
E head width, F feed-forward width.

    model = Transformer(TransformerConfig(vocab_size=256, context_length=128, width=64, layers=2, heads=2))
    logits, state = model.forward(torch.tensor([[1, 2, 3]]))        # (1, 3, 256)
    logits, state = model.forward(torch.tensor([[4]]), state)       # continues in constant work per token

Sources: Touvron et al. 2023 (LLaMA); Yang et al. 2025 (Qwen3: per-head RMSNorm of queries and keys); Su et al. 2021
(RoPE, half-split form); Ainslie et al. 2023 (grouped-query attention); Shazeer 2020 (SwiGLU).
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.config import Config
from parlance.core.errors import UserError
from parlance.models.padding import MULTIPLE


class TransformerConfig(Config):
    """Sizes of a decoder-only Transformer."""

    vocab_size: int
    """Rows of the embedding (V)."""
    context_length: int
    """Longest sequence the model may see (tokens)."""
    width: int
    """Size of the residual stream (D)."""
    layers: int
    """Number of blocks."""
    heads: int
    """Query heads (H)."""
    kv_heads: int | None = None
    """Key/value heads (K), a divisor of `heads`; None: as many as `heads`."""
    head_width: int = 64
    """Size of one head (E); even."""
    mlp_width: int | None = None
    """Feed-forward width (F); None: 8/3 of `width`, rounded up to a multiple of 64."""
    qk_norm: bool = True
    """RMSNorm of queries and keys per head (Qwen3); False: none (LLaMA)."""
    tie_embeddings: bool = False
    """Whether the output head is the embedding matrix."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_epsilon: float = 1e-6
    """Added to the mean square in RMSNorm."""

    @property
    def key_value_heads(self) -> int:
        """K, with the default filled in."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def feed_forward_width(self) -> int:
        """F, with the default filled in."""
        return -(-8 * self.width // (3 * 64)) * 64 if self.mlp_width is None else self.mlp_width

    def matrix_parameters(self) -> int:
        """Weights of the blocks' matrices: what the work per token is proportional to, besides the head."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_value_heads)
        return self.layers * (attention + 3 * self.width * self.feed_forward_width)

    def training_flops_per_token(self, length: int) -> float:
        """Floating-point operations to train on one token at sequence length `length`: 6 N + causal attention.

        N counts the blocks' matrices and the head. Attention: scores and weighted sum, 2 * 2 * H E * T/2 forward,
        three times that with the backward pass.
        """
        head = self.vocab_size * self.width
        return 6.0 * (self.matrix_parameters() + head) + 6.0 * self.layers * self.heads * self.head_width * length


@dataclass
class KeyValueCache:
    """What a Transformer remembers of each sequence of a batch. Rows may differ in length."""

    keys: list[Tensor]
    """Per layer (B, K, capacity, E)."""
    values: list[Tensor]
    """Per layer (B, K, capacity, E)."""
    lengths: Tensor
    """(B,) int64: how many positions of each row are filled."""

    @property
    def capacity(self) -> int:
        """Positions that fit before the tensors must grow."""
        return self.keys[0].shape[2]

    def grow(self, capacity: int) -> None:
        """Make room for at least `capacity` positions."""
        extra = capacity - self.capacity
        if extra > 0:
            self.keys = [F.pad(key, (0, 0, 0, extra)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, extra)) for value in self.values]

    def select(self, rows: Tensor) -> "KeyValueCache":
        """The cache of some rows (int64 indices), e.g. of the sequences that still run."""
        return KeyValueCache(
            [key[rows] for key in self.keys], [value[rows] for value in self.values], self.lengths[rows]
        )


class Linear(nn.Module):
    """y = x W^T, without bias. W is (outputs, inputs) in fp32 and is used in the dtype of x."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


def rotary_tables(positions: Tensor, head_width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles at integer `positions` (...,): each (..., E), frequencies theta^(-2i/E)."""
    frequencies = theta ** (-torch.arange(0, head_width, 2, dtype=torch.float32, device=positions.device) / head_width)
    angles = positions.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (half-split form) to x (..., E)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E) + causal mask) v for q (B, H, T, E), k and v (B, H, T, E)."""
    B, H, T, E = q.shape
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= 1024:
        # In bfloat16 on CPUs, batched products are 1.1 to 2 times as fast as the fused kernel (docs/lab-notebook.md).
        mask = torch.full((T, T), float("-inf"), dtype=q.dtype).triu(1)
        scores = torch.baddbmm(
            mask.expand(B * H, T, T),
            q.reshape(B * H, T, E),
            k.reshape(B * H, T, E).transpose(1, 2),
            alpha=1 / math.sqrt(E),
        )
        return torch.bmm(scores.softmax(-1), v.reshape(B * H, T, E)).view(B, H, T, E)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.key_value_heads, config.head_width
        self.q_proj = Linear(config.width, self.heads * self.head_width)
        self.k_proj = Linear(config.width, self.kv_heads * self.head_width)
        self.v_proj = Linear(config.width, self.kv_heads * self.head_width)
        self.o_proj = Linear(self.heads * self.head_width, config.width)
        self.q_norm = RMSNorm(self.head_width, config.norm_epsilon) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_width, config.norm_epsilon) if config.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: tuple[Tensor, Tensor] | None,
        slots: "CacheSlots | None",
    ) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_width)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_width)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_width).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), *rotary), rotate(k.transpose(1, 2), *rotary)  # (B, H|K, T, E)
        if cache is not None and slots is not None:
            keys, values = cache
            keys[slots.rows, :, slots.positions] = k.transpose(1, 2)
            values[slots.rows, :, slots.positions] = v.transpose(1, 2)
            if mask is not None:
                k, v = keys[:, :, : slots.longest], values[:, :, : slots.longest]
        if mask is None:
            group = self.heads // self.kv_heads
            if group > 1:
                k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            y = causal_attention(q, k, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


@dataclass
class CacheSlots:
    """Where one forward call reads and writes the cache; the same for every layer."""

    rows: Tensor  # (B, 1)
    positions: Tensor  # (B, T)
    longest: int  # S


@dataclass
class Layout:
    """Where tokens stand and what each may attend to, where that is not plain causal order."""

    positions: Tensor  # (B, T) int64, for the rotary angles
    mask: Tensor  # (B, T, T) bool: may position t attend to s?


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.width, config.feed_forward_width)
        self.up_proj = Linear(config.width, config.feed_forward_width)
        self.down_proj = Linear(config.feed_forward_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        slots: CacheSlots | None = None,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache, slots)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The language model. Module names are those of the Hugging Face checkpoint, so state dicts map one to one."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.heads % config.key_value_heads:
            raise UserError(f"kv_heads ({config.key_value_heads}) must divide heads ({config.heads})")
        self.config = config
        self.vocab_size = config.vocab_size
        self.context_length: int | None = config.context_length
        self.compute_dtype = torch.float32
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_epsilon)
        self.lm_head = None if config.tie_embeddings else Linear(config.width, config.vocab_size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw fresh weights: N(0, 1/inputs) for matrices, zero for the outputs of each residual branch.

        Zero residual outputs start every block as the identity; the embedding is N(0, 1) when the head is its own
        (small) matrix and N(0, 1/D) when it is shared.
        """
        D = self.config.width
        with torch.no_grad():
            tied = self.lm_head is None
            self.embed_tokens.weight.normal_(0.0, D**-0.5 if tied else 1.0, generator=generator)
            if self.lm_head is not None:
                self.lm_head.weight.normal_(0.0, 0.001, generator=generator)
            for name, module in self.layers.named_modules():
                if isinstance(module, Linear):
                    if name.endswith(("o_proj", "down_proj")):
                        module.weight.zero_()
                    else:
                        module.weight.normal_(0.0, module.weight.shape[1] ** -0.5, generator=generator)
                elif isinstance(module, RMSNorm):
                    module.weight.fill_(1.0)
            self.norm.weight.fill_(1.0)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed_tokens.weight.device

    def parameter_count(self) -> int:
        """Number of weights, shared ones once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def inference_copy(self) -> "Transformer":
        """A frozen copy with its weights already in the compute dtype, so that no step casts them again."""
        twin = copy.deepcopy(self).to(self.compute_dtype)
        return twin.requires_grad_(False)

    def new_state(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        shape = (batch, self.config.key_value_heads, capacity, self.config.head_width)

        def empty() -> list[Tensor]:
            return [torch.zeros(shape, dtype=self.compute_dtype, device=self.device) for _ in self.layers]

        return KeyValueCache(empty(), empty(), torch.zeros(batch, dtype=torch.int64, device=self.device))

    def hidden(self, tokens: Tensor, state: KeyValueCache | None = None, layout: "Layout | None" = None) -> Tensor:
        """Final normalised activations (B, T, D) of tokens (B, T); extends `state` in place when one is given.

        Tokens may be anywhere; the activations are where the weights are.

        Without a state, rows of unequal length may be padded on the right: attention is causal, so padding never
        reaches a real token. A `layout` (without a state) says otherwise where tokens stand and what they see.
        """
        tokens = tokens.to(self.device)
        B, T = tokens.shape
        x = F.embedding(tokens, self.embed_tokens.weight.to(self.compute_dtype))
        slots, mask = None, None
        if state is not None:
            positions = state.lengths.unsqueeze(1) + torch.arange(T, device=tokens.device)
            used = int(positions[:, -1].max()) + 1
            if used > state.capacity:
                state.grow(max(used, 2 * state.capacity))
            # Few different lengths, few different kernels: see `padding.MULTIPLE`. The mask hides the rest.
            longest = min(state.capacity, -(-used // MULTIPLE) * MULTIPLE)
            slots = CacheSlots(torch.arange(B, device=tokens.device).unsqueeze(1), positions, longest)
            if used > T or T == 1:  # else every row begins here: plain causal attention
                mask = torch.arange(longest, device=tokens.device) <= positions.unsqueeze(-1)  # (B, T, S)
        elif layout is not None:
            positions, mask = layout.positions, layout.mask
        else:
            positions = torch.arange(T, device=tokens.device).unsqueeze(0)
        cos, sin = rotary_tables(positions, self.config.head_width, self.config.rope_theta, x.dtype)
        rotary = (cos.unsqueeze(1), sin.unsqueeze(1))  # (B|1, 1, T, E)
        if mask is not None:
            mask = mask.unsqueeze(1)  # one for all heads
        for number, layer in enumerate(self.layers):
            if state is None:
                x = layer(x, rotary, mask)
            else:
                x = layer(x, rotary, mask, (state.keys[number], state.values[number]), slots)
        if state is not None:
            state.lengths = state.lengths + T
        return self.norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) of final activations (..., D), in the compute dtype."""
        weight = self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(hidden, weight.to(hidden.dtype))

    def forward(self, tokens: Tensor, state: KeyValueCache | None = None) -> tuple[Tensor, KeyValueCache]:
        """Logits (B, T, V) fp32 of tokens (B, T) int64, and the state to continue from (extended in place).

        Positions beyond `context_length` are computed as asked; what a model does there is not defined.
        """
        if state is None:
            state = self.new_state(tokens.shape[0], tokens.shape[1])
        return self.logits(self.hidden(tokens, state)).float().to(tokens.device), state
