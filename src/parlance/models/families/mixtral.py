"""Mixtral and Qwen3-MoE: decoders like Mistral and Qwen3 whose feed-forward is chosen among experts for every token.

Files hold each expert's matrices apart, Mixtral's under the names w1 (gate), w2 (down), w3 (up); files with all
experts in one tensor are read too.

Sources: Jiang et al. 2024; Yang et al. 2025; names and fields as `transformers` writes them.
"""

from collections.abc import Iterable

from parlance.models.families.family import ConfigReader, Entry, Family, Stacked, Values, same
from parlance.models.families.llama import (
    IGNORED,
    decoder_table,
    mistral_window,
    one_feed_forward,
    read_decoder,
    write_decoder,
)
from parlance.models.transformer_config import TransformerConfig


def _read_mixtral(reader: ConfigReader) -> TransformerConfig:
    reader.passed_over("router_jitter_noise", "output_router_logits")  # of training
    config = TransformerConfig(
        **read_decoder(reader, length=131_072, theta=1_000_000.0),
        qk_norm=False,
        experts=reader.integer("num_local_experts", "num_experts", default=8),
        experts_per_token=reader.integer("num_experts_per_tok", default=2),
        load_balancing=reader.number("router_aux_loss_coef", default=0.001),
        sliding_window=mistral_window(reader, missing=None),
    )
    reader.finish()
    return config


def _write_mixtral(config: TransformerConfig) -> Values:
    return write_decoder(config) | {
        "sliding_window": config.sliding_window,
        "num_local_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.load_balancing,
    }


def _read_qwen3_moe(reader: ConfigReader) -> TransformerConfig:
    reader.passed_over("output_router_logits", "max_window_layers", "intermediate_size", "sliding_window")
    reader.only("use_sliding_window", False)
    reader.only("mlp_only_layers", [])
    every = reader.integer("decoder_sparse_step", default=1)
    biased = reader.flag("attention_bias", default=False)
    mlp_width = reader.integer("moe_intermediate_size")
    if every > 1 and reader.integer("intermediate_size") != mlp_width:
        raise reader.error(f"decoder_sparse_step {every} needs intermediate_size and moe_intermediate_size to be equal")
    config = TransformerConfig(
        **read_decoder(reader, length=32_768) | {"mlp_width": mlp_width},
        attention_bias=biased,
        output_bias=biased,
        experts=reader.integer("num_experts", "num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        expert_every=every,
        normalise_routing=reader.flag("norm_topk_prob", default=False),
        load_balancing=reader.number("router_aux_loss_coef", default=0.001),
    )
    reader.finish()
    return config


def _write_qwen3_moe(config: TransformerConfig) -> Values:
    return write_decoder(config) | {
        "moe_intermediate_size": config.feed_forward_width,
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "decoder_sparse_step": config.expert_every,
        "norm_topk_prob": config.normalise_routing,
        "router_aux_loss_coef": config.load_balancing,
        "attention_bias": config.attention_bias,
        "use_sliding_window": False,
        "mlp_only_layers": [],
    }


_MIXTRAL_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
_PLAIN_NAMES = {part: part for part in _MIXTRAL_NAMES}


def _experts(theirs: str, names: dict[str, str], config: TransformerConfig, number: int) -> Iterable[Entry | Stacked]:
    """The feed-forward of block `number`, whose experts are in module `theirs`."""
    if not config.has_experts(number):
        yield from one_feed_forward(config, number)
        return
    ours, module = f"layers.{number}.mlp", f"model.layers.{number}.{theirs}"
    yield same(f"{module}.gate.weight", f"{ours}.router.weight")
    for part, name in names.items():
        each = tuple(f"{module}.experts.{expert}.{name}.weight" for expert in range(config.experts or 0))
        yield Stacked(each, f"{ours}.{part}")


def _mixtral_table(config: TransformerConfig) -> list[Entry | Stacked]:
    return decoder_table(config, lambda config, number: _experts("block_sparse_moe", _MIXTRAL_NAMES, config, number))


def _qwen3_moe_table(config: TransformerConfig) -> list[Entry | Stacked]:
    return decoder_table(config, lambda config, number: _experts("mlp", _PLAIN_NAMES, config, number))


def _fused_experts(config: TransformerConfig, number: int) -> Iterable[Entry]:
    """All experts of block `number` in two tensors: `transformers` holds them so, and writes them so where asked to."""
    if not config.has_experts(number):
        yield from one_feed_forward(config, number)
        return
    ours, module = f"layers.{number}.mlp", f"model.layers.{number}.mlp"
    yield same(f"{module}.gate.weight", f"{ours}.router.weight")
    yield Entry(
        f"{module}.experts.gate_up_proj",
        (f"{ours}.gate_proj", f"{ours}.up_proj"),
        lambda tensor: tensor.chunk(2, dim=1),
    )
    yield same(f"{module}.experts.down_proj", f"{ours}.down_proj")


def _fused_table(config: TransformerConfig) -> list[Entry | Stacked]:
    return decoder_table(config, _fused_experts)


MIXTRAL = Family(
    "mixtral",
    ("MixtralForCausalLM",),
    _read_mixtral,
    _write_mixtral,
    _mixtral_table,
    "model.",
    IGNORED,
    _fused_table,
)
QWEN3_MOE = Family(
    "qwen3_moe",
    ("Qwen3MoeForCausalLM",),
    _read_qwen3_moe,
    _write_qwen3_moe,
    _qwen3_moe_table,
    "model.",
    IGNORED,
    _fused_table,
)
