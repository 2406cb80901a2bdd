"""MPT: ALiBi, LayerNorm without bias, exact GELU, no biases, queries, keys and values as thirds of one matrix.

The configuration is read as the makers' own program means it: learned positions where `alibi` is false, `no_bias`,
`logit_scale`, `alibi_bias_max` and `expansion_ratio` are honoured. `transformers` (5) ignores these five without a word
and computes as if they had the values of MPT-7B; only models with those values are therefore written in this form.

Source: MosaicML 2023; names and fields as in llm-foundry and `transformers`.
"""

from collections.abc import Iterable

from parlance.models.families.family import (
    ConfigReader,
    Entry,
    Family,
    Stacked,
    Values,
    head,
    layered,
    same,
    thirds,
    weights,
)
from parlance.models.transformer_config import TransformerConfig


def _read(reader: ConfigReader) -> TransformerConfig:
    width, heads = reader.integer("d_model", "hidden_size"), reader.integer("n_heads", "num_attention_heads")
    biased = not reader.flag("no_bias", default=True)
    reader.only("norm_type", "low_precision_layernorm", "layernorm")  # differ in half precision alone
    reader.passed_over("embedding_fraction", "init_config", "fc_type")  # of gradients, initialisation and kernels
    learned = reader.flag("learned_pos_emb", default=True)

    attention = reader.nested("attn_config")
    attention.only("attn_type", "multihead_attention")
    for name in ("prefix_lm", "qk_ln", "attn_uses_sequence_id"):
        attention.only(name, False)
    attention.passed_over("attn_impl", "attn_pdrop", "model_type")
    alibi = attention.flag("alibi", default=True)
    if not alibi and not learned:
        raise reader.error("learned_pos_emb false and attn_config.alibi false leave no positions")
    steepest = attention.number("alibi_bias_max", default=8.0)
    clip, scale = attention.number("clip_qkv", default=0.0), attention.number("softmax_scale", default=0.0)
    attention.finish()

    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=reader.integer("max_seq_len", default=2048),
        width=width,
        layers=reader.integer("n_layers", "num_hidden_layers"),
        heads=heads,
        head_width=reader.head_width(width, heads),
        mlp_width=reader.integer("expansion_ratio", default=4) * width,
        positions="alibi" if alibi else "learned",
        alibi_bias_max=steepest,
        attention_scale=scale or None,
        clip_qkv=clip or None,
        qk_norm=False,
        norm="layer",
        norm_bias=biased,
        norm_epsilon=reader.number("layer_norm_epsilon", default=1e-5),
        activation="gelu",
        gated_mlp=False,
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        tie_embeddings=reader.flag("tie_word_embeddings", default=True),
        logit_scale=_logit_scale(reader, width),
    )
    reader.finish()
    return config


def _logit_scale(reader: ConfigReader, width: int) -> float:
    if reader.value("logit_scale") == "inv_sqrt_d_model":
        return float(width**-0.5)
    return reader.number("logit_scale", default=1.0)


def _write(config: TransformerConfig) -> Values:
    return {
        "vocab_size": config.vocab_size,
        "d_model": config.width,
        "n_layers": config.layers,
        "n_heads": config.heads,
        "max_seq_len": config.context_length,
        "expansion_ratio": 4,
        "learned_pos_emb": False,
        "no_bias": True,
        "layer_norm_epsilon": config.norm_epsilon,
        "norm_type": "low_precision_layernorm",
        "logit_scale": None,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_config": {
            "attn_type": "multihead_attention",
            "alibi": True,
            "alibi_bias_max": 8,
            "clip_qkv": config.clip_qkv,
            "softmax_scale": config.attention_scale,
            "attn_pdrop": 0,
        },
        "emb_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    biased = config.mlp_bias

    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"transformer.blocks.{number}"
        for part in ("weight", "bias") if biased else ("weight",):
            yield thirds(
                f"{theirs}.attn.Wqkv.{part}",
                (
                    f"{ours}.self_attn.q_proj.{part}",
                    f"{ours}.self_attn.k_proj.{part}",
                    f"{ours}.self_attn.v_proj.{part}",
                ),
            )
        yield from weights(f"{theirs}.attn.out_proj", f"{ours}.self_attn.o_proj", bias=biased)
        yield from weights(f"{theirs}.ffn.up_proj", f"{ours}.mlp.up_proj", bias=biased)
        yield from weights(f"{theirs}.ffn.down_proj", f"{ours}.mlp.down_proj", bias=biased)
        yield from weights(f"{theirs}.norm_1", f"{ours}.input_layernorm", bias=biased)
        yield from weights(f"{theirs}.norm_2", f"{ours}.post_attention_layernorm", bias=biased)

    positions = [same("transformer.wpe.weight", "embed_positions.weight")] if config.positions == "learned" else []
    return [
        same("transformer.wte.weight", "embed_tokens.weight"),
        *positions,
        *layered(config, block),
        *weights("transformer.norm_f", "norm", bias=biased),
        head("lm_head.weight", config),
    ]


MPT = Family("mpt", ("MptForCausalLM",), _read, _write, _table, "transformer.", (r"transformer\.attn_bias",))
