"""LLaMA 1 to 3, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, SwiGLU, few biases.

LLaMA's files serve Alpaca, Vicuna and GPT4All too. Mistral adds a sliding window, Qwen2 biases of queries, keys and
values, Qwen3 norms of queries and keys; `mixtral.py` has those with experts.

Sources: Touvron et al. 2023; Grattafiori et al. 2024; Jiang et al. 2023, 2024; Yang et al. 2025; names and fields as
`transformers` writes them.
"""

from collections.abc import Callable, Iterable
from typing import Any

from parlance.models.families.family import ConfigReader, Entry, Family, Stacked, Values, head, layered, same, weights
from parlance.models.families.rotary_fields import read_rotary, write_rotary
from parlance.models.transformer_config import TransformerConfig

IGNORED = (r".*rotary_emb\.inv_freq",)
"""Tensors of old files that hold nothing learned."""


def read_decoder(reader: ConfigReader, *, length: int, theta: float = 10_000.0) -> dict[str, Any]:
    """Our fields that all of these families' files have; `length` and `theta` where a file does not say."""
    heads, width = reader.integer("num_attention_heads"), reader.integer("hidden_size")
    length = reader.integer("max_position_embeddings", "max_sequence_length", default=length)
    reader.only("hidden_act", "silu", "swish")
    reader.only("use_mrope", False)
    reader.passed_over("head_dim")  # where it is null
    return {
        "vocab_size": reader.integer("vocab_size"),
        "context_length": length,
        "width": width,
        "layers": reader.integer("num_hidden_layers"),
        "heads": heads,
        "kv_heads": reader.integer("num_key_value_heads", default=heads),
        "head_width": reader.integer("head_dim") if reader.has("head_dim") else reader.head_width(width, heads),
        "mlp_width": reader.integer("intermediate_size"),
        "norm_epsilon": reader.number("rms_norm_eps"),
        "tie_embeddings": reader.flag("tie_word_embeddings", default=False),
        **read_rotary(reader, length, theta=theta),
    }


def write_decoder(config: TransformerConfig) -> Values:
    """The fields of `read_decoder`."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        **write_rotary(config),
    }


def mistral_window(reader: ConfigReader, *, missing: int | None) -> int | None:
    """`sliding_window`: the field, None where it is null, `missing` where it is not there."""
    if reader.has("sliding_window"):
        return reader.integer("sliding_window")
    reader.passed_over("sliding_window")
    return None if "sliding_window" in reader.values else missing


def _qwen_window(reader: ConfigReader, layers: int) -> dict[str, Any]:
    """`sliding_window` and `full_attention_layers`: a window counts with `use_sliding_window` alone.

    The first `max_window_layers` blocks, or those that `layer_types` names, have none all the same.
    """
    first = reader.integer("max_window_layers", default=28)
    window = mistral_window(reader, missing=4096)
    kinds = reader.value("layer_types")
    if kinds is None:
        layers = min(layers, 4096)  # more are refused, when all is read; a list of them might not fit into memory
        kinds = ["full_attention"] * min(first, layers) + ["sliding_attention"] * max(0, layers - first)
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise reader.error(f"layer_types is not a list of num_hidden_layers ({layers}) names")
    if unknown := [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]:
        raise reader.error(f"layer_types {unknown[0]!r} is not supported (only full_attention, sliding_attention)")
    full = tuple(number for number, kind in enumerate(kinds) if kind == "full_attention")
    if not reader.flag("use_sliding_window", default=False) or not window or len(full) == layers:
        return {"sliding_window": None}
    return {"sliding_window": window, "full_attention_layers": full}


def _layer_types(config: TransformerConfig) -> list[str]:
    return [
        "full_attention" if config.window(number) is None else "sliding_attention" for number in range(config.layers)
    ]


def _read_llama(reader: ConfigReader) -> TransformerConfig:
    biased = reader.flag("attention_bias", default=False)
    config = TransformerConfig(
        **read_decoder(reader, length=2048),
        qk_norm=False,
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=reader.flag("mlp_bias", default=False),
    )
    reader.finish()
    return config


def _write_llama(config: TransformerConfig) -> Values:
    return write_decoder(config) | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _read_mistral(reader: ConfigReader) -> TransformerConfig:
    config = TransformerConfig(
        **read_decoder(reader, length=131_072), qk_norm=False, sliding_window=mistral_window(reader, missing=4096)
    )
    reader.finish()
    return config


def _write_mistral(config: TransformerConfig) -> Values:
    return write_decoder(config) | {"sliding_window": config.sliding_window}


def _read_qwen2(reader: ConfigReader) -> TransformerConfig:
    common = read_decoder(reader, length=32_768)
    config = TransformerConfig(**common, qk_norm=False, attention_bias=True, **_qwen_window(reader, common["layers"]))
    reader.finish()
    return config


def _write_qwen2(config: TransformerConfig) -> Values:
    return write_decoder(config) | {
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "layer_types": _layer_types(config),
    }


def _read_qwen3(reader: ConfigReader) -> TransformerConfig:
    common = read_decoder(reader, length=32_768)
    biased = reader.flag("attention_bias", default=False)
    config = TransformerConfig(
        **common, qk_norm=True, attention_bias=biased, output_bias=biased, **_qwen_window(reader, common["layers"])
    )
    reader.finish()
    return config


def _write_qwen3(config: TransformerConfig) -> Values:
    return _write_qwen2(config) | {"attention_bias": config.attention_bias}


def decoder_table(
    config: TransformerConfig, feed_forward: Callable[[TransformerConfig, int], Iterable[Entry | Stacked]]
) -> list[Entry | Stacked]:
    """Every tensor, where `feed_forward` says those of a block's feed-forward."""

    def block(number: int) -> Iterable[Entry | Stacked]:
        ours, theirs = f"layers.{number}", f"model.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            bias = config.output_bias if part == "o_proj" else config.attention_bias
            yield from weights(f"{theirs}.self_attn.{part}", f"{ours}.self_attn.{part}", bias=bias)
        for part in ("q_norm", "k_norm") if config.qk_norm else ():
            yield same(f"{theirs}.self_attn.{part}.weight", f"{ours}.self_attn.{part}.weight")
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield same(f"{theirs}.{part}.weight", f"{ours}.{part}.weight")
        yield from feed_forward(config, number)

    return [
        same("model.embed_tokens.weight", "embed_tokens.weight"),
        *layered(config, block),
        same("model.norm.weight", "norm.weight"),
        head("lm_head.weight", config),
    ]


def one_feed_forward(config: TransformerConfig, number: int) -> Iterable[Entry]:
    """SwiGLU of block `number`."""
    for part in ("gate_proj", "up_proj", "down_proj"):
        yield from weights(f"model.layers.{number}.mlp.{part}", f"layers.{number}.mlp.{part}", bias=config.mlp_bias)


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    return decoder_table(config, one_feed_forward)


LLAMA = Family("llama", ("LlamaForCausalLM",), _read_llama, _write_llama, _table, "model.", IGNORED)
MISTRAL = Family("mistral", ("MistralForCausalLM",), _read_mistral, _write_mistral, _table, "model.", IGNORED)
QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), _read_qwen2, _write_qwen2, _table, "model.", IGNORED)
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), _read_qwen3, _write_qwen3, _table, "model.", IGNORED)
