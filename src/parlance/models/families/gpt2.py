"""GPT-2 and Cerebras-GPT: LayerNorm before each branch, learned positions, a head tied to the embedding, biases.

GPT-2 has the tanh form of GELU, Cerebras-GPT the exact one; the files are otherwise the same. Matrices are stored
(inputs, outputs), and queries, keys and values in one. The first published files lack the prefix `transformer.` and
hold the causal mask as `h.N.attn.bias`. Not read: attention scaled by the number of the block
(`scale_attn_by_inverse_layer_idx`), and blocks with cross-attention.

    GPT2.read(ConfigReader(json.loads(text), path))           # -> TransformerConfig

Sources: Radford et al. 2019; Dey et al. 2023; names and fields as `transformers` writes them.
"""

from collections.abc import Iterable
from typing import Any

from parlance.models.families.family import (
    ACTIVATION_WORDS,
    ACTIVATIONS,
    ConfigReader,
    Entry,
    Family,
    Stacked,
    Values,
    head,
    layered,
    same,
    thirds,
    turned,
    weights,
)
from parlance.models.transformer_config import TransformerConfig

_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)


def read_sizes(reader: ConfigReader) -> dict[str, Any]:
    """The fields that GPT-2's and GPT-J's files share."""
    width, heads = reader.integer("n_embd", "hidden_size"), reader.integer("n_head", "num_attention_heads")
    # Of a classifier that is no part of the model, and of the mask, which has the context's length.
    reader.passed_over("summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj", "n_ctx")
    return {
        "vocab_size": reader.integer("vocab_size"),
        "context_length": reader.integer("n_positions", "max_position_embeddings"),
        "width": width,
        "layers": reader.integer("n_layer", "num_hidden_layers"),
        "heads": heads,
        "head_width": reader.head_width(width, heads),
        "mlp_width": reader.integer("n_inner", default=4 * width),
        "norm": "layer",
        "norm_epsilon": reader.number("layer_norm_epsilon", default=1e-5),
        "activation": reader.choice("activation_function", choices=ACTIVATIONS, default="gelu_new"),
        "gated_mlp": False,
        "qk_norm": False,
        "mlp_bias": True,
    }


def write_sizes(config: TransformerConfig) -> Values:
    """The fields that `read_sizes` reads."""
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": None if config.feed_forward_width == 4 * config.width else config.feed_forward_width,
        "activation_function": ACTIVATION_WORDS[config.activation],
        "layer_norm_epsilon": config.norm_epsilon,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def _read(reader: ConfigReader) -> TransformerConfig:
    reader.only("scale_attn_by_inverse_layer_idx", False)
    reader.only("add_cross_attention", False)
    # The precision of the scores; fields of the first files that no version of the model looks at.
    reader.passed_over("reorder_and_upcast_attn", "n_special", "predict_special_tokens")
    config = TransformerConfig(
        **read_sizes(reader),
        positions="learned",
        attention_scale=None if reader.flag("scale_attn_weights", default=True) else 1.0,
        attention_bias=True,
        output_bias=True,
        tie_embeddings=reader.flag("tie_word_embeddings", default=True),
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    return write_sizes(config) | {
        "scale_attn_weights": config.attention_scale is None or config.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    def matrix(theirs: str, ours: str) -> Iterable[Entry]:
        yield turned(f"{theirs}.weight", f"{ours}.weight")
        yield same(f"{theirs}.bias", f"{ours}.bias")

    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"transformer.h.{number}"
        yield from weights(f"{theirs}.ln_1", f"{ours}.input_layernorm", bias=True)
        for part in ("weight", "bias"):
            q, k, v = (f"{ours}.self_attn.{name}_proj.{part}" for name in "qkv")
            yield thirds(f"{theirs}.attn.c_attn.{part}", (q, k, v), transposed=True)
        yield from matrix(f"{theirs}.attn.c_proj", f"{ours}.self_attn.o_proj")
        yield from weights(f"{theirs}.ln_2", f"{ours}.post_attention_layernorm", bias=True)
        yield from matrix(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up_proj")
        yield from matrix(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down_proj")

    return [
        same("transformer.wte.weight", "embed_tokens.weight"),
        same("transformer.wpe.weight", "embed_positions.weight"),
        *layered(config, block),
        *weights("transformer.ln_f", "norm", bias=True),
        head("lm_head.weight", config),
    ]


GPT2 = Family("gpt2", ("GPT2LMHeadModel",), _read, _write, _table, "transformer.", _IGNORED)
