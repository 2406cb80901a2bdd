"""Where tokens stand: rotary angles and their extensions, ALiBi slopes, sinusoids, T5's distance buckets.

Pure functions of integer positions; the tables that are learned are modules of `transformer.py`.

    cos, sin = rotary_tables(torch.arange(8), frequencies, dtype=torch.float32)      # (8, E) each
    rotate(queries, cos, sin)

Sources: Su et al. 2021 (RoPE, half-split form); Chen et al. 2023 (linear interpolation); Peng et al. 2023 (YaRN);
Press et al. 2022 (ALiBi); Vaswani et al. 2017, section 3.5 (sinusoids); Raffel et al. 2020, section 2.1 (buckets).
"""

import math

import torch
from torch import Tensor

from parlance.models.transformer_config import RotaryScaling, TransformerConfig


def rotary_frequencies(config: TransformerConfig, length: int, device: torch.device) -> tuple[Tensor, float]:
    """Angles per position (R/2,) fp32 of the R components that turn, and the factor of cos and sin.

    `length` is the longest sequence of the call; only the dynamic extension looks at it.
    """
    width = config.rotary_width or config.head_width
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    scaling, base = config.rope_scaling, config.rope_theta
    if scaling is None:
        return base**-exponents, 1.0
    if scaling.kind == "dynamic":
        stretch = scaling.factor * length / scaling.original_context_length - (scaling.factor - 1)
        if length > scaling.original_context_length:
            base *= stretch ** (width / (width - 2))
        return base**-exponents, 1.0
    frequencies = base**-exponents
    if scaling.kind == "linear":
        return frequencies / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling), 1.0
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0
    return _yarn(frequencies, scaling, width, base), factor


def _llama3(frequencies: Tensor, scaling: RotaryScaling) -> Tensor:
    """Long wavelengths are divided by the factor, short ones kept, and those between blended."""
    turns = scaling.original_context_length * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _yarn(frequencies: Tensor, scaling: RotaryScaling, width: int, base: float) -> Tensor:
    """A ramp over the components, from those that turn `beta_fast` times (kept) to `beta_slow` times (divided)."""

    def component(turns: float) -> float:
        ratio = scaling.original_context_length / (turns * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(base))

    low = max(math.floor(component(scaling.beta_fast)), 0)
    high = min(math.ceil(component(scaling.beta_slow)), width - 1)
    index = torch.arange(frequencies.numel(), dtype=torch.float32, device=frequencies.device)
    divided = ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
    return divided * frequencies / scaling.factor + (1 - divided) * frequencies


def rotary_tables(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles at integer `positions` (...,): each (..., R), for the half-split form."""
    angles = positions.float().unsqueeze(-1) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R components of x (..., E) by tables (..., R): component i with component i + R/2."""
    R = cos.shape[-1]
    turned, rest = (x, None) if x.shape[-1] == R else (x[..., :R], x[..., R:])
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if rest is None else torch.cat((turned, rest), dim=-1)


def alibi_slopes(heads: int, bias_max: float = 8.0) -> Tensor:
    """(H,) fp32: 2^(-bias_max i / n) for i = 1..n, where H is a power of two n.

    Else the slopes of the power of two below H, then every second one of the power above, as published.
    """
    n = 2 ** math.ceil(math.log2(heads))
    slopes = torch.exp2(-bias_max / n * torch.arange(1, n + 1, dtype=torch.float64))
    if n != heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:heads]
    return slopes.float()


def head_offsets(heads: int, device: torch.device) -> Tensor:
    """(H,) fp32: how far back the key is that each head prefers, 1 to H."""
    return torch.arange(1, heads + 1, dtype=torch.float32, device=device)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """(..., D) fp32: sin and cos in turn, of wavelengths from 2 pi to 10 000 * 2 pi."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width)
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :width]


def relative_buckets(distances: Tensor, buckets: int, max_distance: int, *, causal: bool) -> Tensor:
    """T5's bucket of each key position minus query position (int64), in 0..buckets-1.

    An encoder uses half the buckets for keys ahead. Half of the (remaining) buckets are exact distances; the others
    grow with the logarithm up to `max_distance`.
    """
    offset = torch.zeros_like(distances)
    if causal:
        away = (-distances).clamp(min=0)
    else:
        buckets //= 2
        offset = (distances > 0).long() * buckets
        away = distances.abs()
    exact = buckets // 2
    growth = torch.log(away.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    far = (exact + growth.long()).clamp(max=buckets - 1)
    return offset + torch.where(away < exact, away, far)
