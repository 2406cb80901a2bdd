"""The parts of a Transformer block: linear maps, norms, attention, feed-forward, and the block that joins them.

Each part takes its choices from `TransformerConfig` once, when it is made. Weights are fp32 parameters, used in the
dtype of the activations. Module names are those of LLaMA's checkpoints.

Shapes: B batch, T new tokens, S keys, D width, H query heads, K key/value heads, E head width, F feed-forward width.

Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped-query attention); Shazeer 2020 (gated feed-forward);
Wang and Komatsuzaki 2021 (parallel blocks); Xiong et al. 2020 (pre-norm); Henry et al. 2020 (query/key norm).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parlance.core.errors import UserError
from parlance.models.attention import (
    alibi_attention,
    causal_attention,
    document_attention,
    offset_attention,
    sliding_window_attention,
)
from parlance.models.dilated_attention import dilated_attention, dilated_step
from parlance.models.elementwise import relu_squared, unit_rms
from parlance.models.key_value_cache import CacheSlots
from parlance.models.mixture_of_experts import MixtureOfExperts
from parlance.models.positions import alibi_slopes, head_offsets, rotate
from parlance.models.transformer_config import TransformerConfig


@dataclass
class Layout:
    """Where tokens stand and what each may attend to, where that is not plain order from the left."""

    positions: Tensor
    """(B, T) int64."""
    mask: Tensor | None
    """(B, T, T) bool: may position t attend to s? None: `documents` says it, or else the plain order does."""
    documents: Tensor | None = None
    """(B, T) int64: the document of each position, of rows packed with several; each sees its own past alone."""
    keys_at: Tensor | None = None
    """(B|1, S) int64: positions of the keys, where they are more than those of these tokens; `mask` is (B, T, S)."""

    def dense_mask(self) -> Tensor:
        """`mask`, made of `documents` where it is not there."""
        if self.mask is not None:
            return self.mask
        assert self.documents is not None
        T = self.documents.shape[1]
        same = self.documents[:, :, None] == self.documents[:, None, :]
        return same & torch.ones(T, T, dtype=torch.bool, device=same.device).tril()

    def previous(self) -> Tensor:
        """(B, T) int64: the index in its row of the token before each one, -1 where there is none."""
        if self.mask is None:
            left = torch.arange(self.positions.shape[1], device=self.positions.device) - 1
            return torch.where(self.positions > 0, left, -1)
        before = self.mask & (self.positions[:, None, :] == self.positions[:, :, None] - 1)
        return torch.where(before.any(-1), before.int().argmax(-1), -1)


def padding_layout(mask: Tensor, *, causal: bool = True) -> Layout:
    """The layout of rows padded anywhere: `mask` (B, T) bool says what is a token.

    Padding sees itself alone, so that its activations are numbers; positions count tokens (-1 before the first).
    """
    T = mask.shape[1]
    visible = mask.unsqueeze(1).expand(-1, T, -1)
    if causal:
        visible = visible & torch.ones(T, T, dtype=torch.bool, device=mask.device).tril()
    visible = visible | torch.eye(T, dtype=torch.bool, device=mask.device)
    return Layout(mask.long().cumsum(1) * mask - 1, visible)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., inputs) W^T + b in the dtype of x; W (outputs, inputs).

    The product is one of matrices: of a batch of single rows, torch would copy the whole weight first.
    """
    bias = None if bias is None else bias.to(x.dtype)
    y = F.linear(x.reshape(-1, x.shape[-1]), weight.to(x.dtype), bias)
    return y.view(*x.shape[:-1], weight.shape[0])


class Linear(nn.Module):
    """y = x W^T + b. W is (outputs, inputs) and b (outputs,), in fp32, used in the dtype of x."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (Zhang and Sennrich 2019); or without weight."""

    def __init__(self, width: int, epsilon: float, *, weight: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if weight else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return unit_rms(x, self.epsilon)
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.epsilon)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, width: int, epsilon: float, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if x.dtype == torch.float32 or not torch.is_grad_enabled():
            return F.layer_norm(x, (x.shape[-1],), weight, bias, self.epsilon)
        # On CPUs torch adds the gradients of weight and bias up in the type of x: in bfloat16 off by 5 % for 2 000
        # tokens and by 25 to 50 % for 4 000 (the sum stops growing). A product's sums are added up in float32.
        unit = F.layer_norm(x, (x.shape[-1],), None, None, self.epsilon)
        return unit * weight if bias is None else torch.addcmul(bias, unit, weight)


def make_norm(config: TransformerConfig) -> RMSNorm | LayerNorm:
    """The norm of the residual stream that `config` asks for."""
    if config.norm == "rms":
        return RMSNorm(config.width, config.norm_epsilon, weight=config.norm_weight)
    return LayerNorm(config.width, config.norm_epsilon, bias=config.norm_bias)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of `TransformerConfig.activation`."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "relu2": relu_squared,
    }
    return functions[name]


class Attention(nn.Module):
    """Grouped-query attention of a sequence to itself or, in `cross` form, to an encoder's output."""

    def __init__(self, config: TransformerConfig, layer: int = 0, *, cross: bool = False) -> None:
        super().__init__()
        D, E = config.width, config.head_width
        self.heads, self.kv_heads, self.head_width = config.heads, config.key_value_heads, E
        self.causal = config.causal and not cross
        self.scale, self.clip, self.window = config.scale, config.clip_qkv, config.window(layer)
        self.segments = config.dilated_segments
        self.alibi_bias_max = config.alibi_bias_max if config.positions == "alibi" else None
        self.offset_slope = 0.0 if cross else config.head_offsets
        # Where heads or positions are divided over processes: which of the model's heads are here, and what attends.
        self.first_head, self.all_heads = 0, config.heads
        self.across: Callable[[Attention, Tensor, Tensor, Tensor, Tensor | None], Tensor] | None = None
        self.q_proj = Linear(D, self.heads * E, bias=config.attention_bias)
        self.k_proj = Linear(D, self.kv_heads * E, bias=config.attention_bias)
        self.v_proj = Linear(D, self.kv_heads * E, bias=config.attention_bias)
        self.o_proj = Linear(self.heads * E, D, bias=config.output_bias)
        self.q_norm = RMSNorm(E, config.norm_epsilon, weight=config.norm_weight) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.norm_epsilon, weight=config.norm_weight) if config.qk_norm else None

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, E) of x (B, T, D), without positions."""
        q = self._clipped(self.q_proj(x)).view(*x.shape[:2], self.heads, self.head_width)
        return (q if self.q_norm is None else self.q_norm(q)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, S, E) each of x (B, S, D), without positions."""
        shape = (*x.shape[:2], self.kv_heads, self.head_width)
        k, v = self._clipped(self.k_proj(x)).view(shape), self._clipped(self.v_proj(x)).view(shape)
        return (k if self.k_norm is None else self.k_norm(k)).transpose(1, 2), v.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: tuple[Tensor, Tensor] | None = None,
        slots: CacheSlots | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Self-attention. `mask` (B|1, H|1, T, S), bool or added to the scores; None: plain order."""
        q = self.queries(x)
        k, v = self.keys_values(x)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None and slots is not None:
            keys, values = cache
            if slots.continued:
                keys[slots.rows, :, slots.positions] = k.transpose(1, 2)
                values[slots.rows, :, slots.positions] = v.transpose(1, 2)
            else:  # every row begins here
                keys[:, :, : k.shape[2]] = k
                values[:, :, : v.shape[2]] = v
            if slots.continued:
                k, v = keys[:, :, : slots.longest], values[:, :, : slots.longest]
        if self.across is not None:
            if self.offset_slope:
                raise UserError("head_offsets need whole sequences: leave context parallelism out")
            y = self.across(self, q, k, v, mask)
        elif documents is not None:
            y = document_attention(q, k, v, documents, self.scale)
        elif mask is None and self.causal:
            y = self._plain(q, k, v)
        elif self.segments and slots is not None:
            y = dilated_step(q, k, v, slots.positions, self.segments, self.scale)
        else:
            y = self._masked(q, k, v, mask)
        return self._out(y)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Every row a sequence from its beginning: no mask is needed."""
        if self.segments:
            return dilated_attention(q, k, v, self.segments, self.scale)
        if self.offset_slope:
            offsets = head_offsets(self.all_heads, q.device)[self.first_head : self.first_head + self.heads]
            slopes = torch.full_like(offsets, self.offset_slope)
            return offset_attention(q, k, v, slopes, offsets, self.scale, self.window)
        if self.window is not None and self.window < q.shape[2]:
            return sliding_window_attention(q, k, v, self.window, self.scale)
        if self.alibi_bias_max is not None:
            return alibi_attention(q, k, v, self.slopes(q.device), self.scale)
        return causal_attention(q, k, v, self.scale)

    def slopes(self, device: torch.device) -> Tensor:
        """ALiBi's (H,) of the heads that are here."""
        assert self.alibi_bias_max is not None
        slopes = alibi_slopes(self.all_heads, self.alibi_bias_max)
        return slopes[self.first_head : self.first_head + self.heads].to(device)

    def cross(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of x (B, T, D) to an encoder's keys and values (B, K, S, E); `mask` (B, 1, 1, S) bool."""
        return self._out(self._masked(self.queries(x), keys, values, mask))

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        grouped = self.heads != self.kv_heads
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=grouped)

    def _out(self, y: Tensor) -> Tensor:
        B, _, T, _ = y.shape
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x)))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        D, F_, bias = config.width, config.feed_forward_width, config.mlp_bias
        self.activation = activation(config.activation)
        self.gate_proj = Linear(D, F_, bias=bias) if config.gated_mlp else None
        self.up_proj = Linear(D, F_, bias=bias)
        self.down_proj = Linear(F_, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))  # type: ignore[no-any-return]
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


def _mixture(config: TransformerConfig) -> MixtureOfExperts:
    assert config.experts is not None
    if config.mlp_bias:
        raise UserError("experts have no biases: leave mlp_bias out")
    return MixtureOfExperts(
        config.width,
        config.feed_forward_width,
        config.experts,
        config.experts_per_token,
        gated=config.gated_mlp,
        activation=activation(config.activation),
        normalise=config.normalise_routing,
    )


class Block(nn.Module):
    """Attention and feed-forward around the residual stream, with norms before (or after) each.

    `input_layernorm` belongs to attention, `post_attention_layernorm` to the feed-forward, `cross_layernorm` to
    cross-attention, in either placement.
    """

    def __init__(self, config: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.post = config.norm_placement == "post"
        self.parallel = config.block == "parallel"
        one_norm = self.parallel and config.parallel_norms == 1
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.cross_layernorm = make_norm(config) if config.cross_attention else None
        self.cross_attn = Attention(config, layer, cross=True) if config.cross_attention else None
        self.post_attention_layernorm = None if one_norm else make_norm(config)
        self.mlp = _mixture(config) if config.has_experts(layer) else FeedForward(config)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        slots: CacheSlots | None = None,
        memory: tuple[Tensor, Tensor, Tensor | None] | None = None,
        documents: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, D) to (B, T, D). `memory`: keys, values and mask of cross-attention.

        `kept` (2, B, 1, D): factors of what attention and feed-forward add, in training with dropout.
        """
        first, second = self.input_layernorm, self.post_attention_layernorm
        if self.parallel:
            a = first(x)
            m = a if second is None else second(x)
            x = x + _drop(self.self_attn(a, rotary, mask, cache, slots, documents), kept, 0)
            return x + _drop(self.mlp(m), kept, 1)
        assert second is not None
        if self.post:
            x = first(x + _drop(self.self_attn(x, rotary, mask, cache, slots, documents), kept, 0))
        else:
            x = x + _drop(self.self_attn(first(x), rotary, mask, cache, slots, documents), kept, 0)
        if self.cross_attn is not None and self.cross_layernorm is not None and memory is not None:
            if self.post:
                x = self.cross_layernorm(x + self.cross_attn.cross(x, *memory))
            else:
                x = x + self.cross_attn.cross(self.cross_layernorm(x), *memory)
        if self.post:
            return second(x + _drop(self.mlp(x), kept, 1))  # type: ignore[no-any-return]
        return x + _drop(self.mlp(second(x)), kept, 1)


def _drop(y: Tensor, kept: Tensor | None, branch: int) -> Tensor:
    """What branch 0 or 1 adds, without the components that are left out."""
    return y if kept is None else y * kept[branch]


def fan_in_spread(module: Linear) -> float:
    """Standard deviation that keeps the size of activations: 1 / sqrt(inputs)."""
    return 1 / math.sqrt(module.weight.shape[1])
