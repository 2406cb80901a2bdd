"""BLOOM and BLOOMZ: ALiBi, LayerNorm (after the embedding too), tanh GELU, biases everywhere.

The query, key and value of each head lie side by side in one matrix. Files may name the width `n_embed` or
`hidden_size`, and lack the prefix `transformer.`. ALiBi knows no longest text: the context is `seq_length` where that
is given, else 2048 as in training.

Source: BigScience 2022; names and fields as in `transformers`.
"""

from collections.abc import Iterable

from parlance.models.families.family import (
    MEGATRON_TRAINING,
    ConfigReader,
    Entry,
    Family,
    Stacked,
    Values,
    head,
    layered,
    megatron_maps,
    same,
    weights,
)
from parlance.models.transformer_config import TransformerConfig

_MEGATRON = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "offset_alibi",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "slow_but_exact",
)
"""Settings of the program that trained it; they change the order of operations at most."""


def _read(reader: ConfigReader) -> TransformerConfig:
    width, heads = reader.integer("hidden_size", "n_embed"), reader.integer("n_head", "num_attention_heads")
    reader.only("apply_residual_connection_post_layernorm", False)
    reader.only("n_inner", 4 * width)
    reader.passed_over(*_MEGATRON)
    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=reader.integer("seq_length", default=2048),
        width=width,
        layers=reader.integer("n_layer", "num_hidden_layers"),
        heads=heads,
        head_width=reader.head_width(width, heads),
        mlp_width=4 * width,
        positions="alibi",
        qk_norm=False,
        norm="layer",
        norm_epsilon=reader.number("layer_norm_epsilon", default=1e-5),
        embedding_norm=True,
        activation="gelu-tanh",
        gated_mlp=False,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=reader.flag("tie_word_embeddings", default=True),
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "seq_length": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": config.tie_embeddings,
        **MEGATRON_TRAINING,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"transformer.h.{number}"
        yield from megatron_maps(theirs, ours, config, attention="self_attention", groups=config.heads)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield from weights(f"{theirs}.{part}", f"{ours}.{part}", bias=True)

    return [
        same("transformer.word_embeddings.weight", "embed_tokens.weight"),
        *weights("transformer.word_embeddings_layernorm", "embed_norm", bias=True),
        *layered(config, block),
        *weights("transformer.ln_f", "norm", bias=True),
        head("lm_head.weight", config),
    ]


BLOOM = Family(
    "bloom",
    ("BloomForCausalLM",),
    _read,
    _write,
    _table,
    "transformer.",
    (r".*\.scale_mask_softmax\.causal_mask", r".*\.self_attention\.(masked_)?bias"),
)
