"""Falcon in its four forms: LayerNorm, fused queries, keys and values, mostly beside the feed-forward.

| | `config.json` | attention | block | positions |
|---|---|---|---|---|
| 7B | `multi_query`, `parallel_attn` | one key head | parallel, one norm | rotary |
| 40B, 180B | `new_decoder_architecture` | grouped | parallel, two norms | rotary |
| 11B | that and `num_ln_in_parallel_attn` 1 | grouped | parallel, one norm | rotary |
| RW | `alibi`, `bias`, neither of the first two | one key head a query head | sequential | ALiBi |

Falcon's ALiBi is rounded to bfloat16 and added before the scores are scaled, so that its slopes are 1/sqrt(E) as steep
as BLOOM's. Old names of fields (`n_embed`, `n_layer`, `n_head`, `n_head_kv`) are read too.

Source: Almazrouei et al. 2023; names, fields and the order of operations as in `transformers`.
"""

from collections.abc import Iterable
from typing import Any

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
from parlance.models.families.rotary_fields import read_rotary, write_rotary
from parlance.models.transformer_config import TransformerConfig

_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu"}


def _read(reader: ConfigReader) -> TransformerConfig:
    width, heads = reader.integer("hidden_size", "n_embed"), reader.integer("num_attention_heads", "n_head")
    length = reader.integer("max_position_embeddings", default=2048)
    biased = reader.flag("bias", default=False)
    activation: Any = reader.choice("activation", choices=_ACTIVATIONS, default="gelu")
    reader.only("apply_residual_connection_post_layernorm", False)
    reader.passed_over("ff_factor")  # says what ffn_hidden_size says
    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=length,
        width=width,
        layers=reader.integer("num_hidden_layers", "n_layer"),
        heads=heads,
        head_width=reader.head_width(width, heads),
        mlp_width=reader.integer("ffn_hidden_size", default=4 * width),
        qk_norm=False,
        norm="layer",
        norm_epsilon=reader.number("layer_norm_epsilon", default=1e-5),
        activation=activation,
        gated_mlp=False,
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        tie_embeddings=reader.flag("tie_word_embeddings", default=True),
        **_read_block(reader, heads),
        **_read_positions(reader, length),
    )
    reader.finish()
    return config


def _read_block(reader: ConfigReader, heads: int) -> dict[str, Any]:
    """Key heads, order of the branches, norms."""
    parallel, one_key = reader.flag("parallel_attn", default=True), reader.flag("multi_query", default=True)
    if reader.flag("new_decoder_architecture", default=False):
        if not parallel:
            raise reader.error("parallel_attn false with new_decoder_architecture is not a model that was published")
        norms = reader.integer("num_ln_in_parallel_attn", default=2)
        if norms not in (1, 2):
            raise reader.error(f"num_ln_in_parallel_attn {norms} is not supported (only 1 or 2)")
        kv_heads = reader.integer("num_kv_heads", "n_head_kv", default=heads)
        return {"kv_heads": kv_heads, "block": "parallel", "parallel_norms": norms}
    if parallel:
        reader.only("num_ln_in_parallel_attn", 1)
    reader.passed_over("num_ln_in_parallel_attn", "num_kv_heads", "n_head_kv")
    if not one_key:
        reader.only("num_kv_heads", heads)
        reader.only("n_head_kv", heads)
    return {
        "kv_heads": 1 if one_key else heads,
        "block": "parallel" if parallel else "sequential",
        "parallel_norms": 1 if parallel else 2,
    }


def _read_positions(reader: ConfigReader, length: int) -> dict[str, Any]:
    if reader.flag("alibi", default=False):
        reader.passed_over("rope_theta", "rope_scaling", "rope_parameters")
        return {"positions": "alibi", "alibi_before_scaling": True}
    return {"positions": "rotary", **read_rotary(reader, length)}


def _write(config: TransformerConfig) -> Values:
    parallel, H, K = config.block == "parallel", config.heads, config.key_value_heads
    # What the old form cannot say needs the new one: grouped queries, or two norms of parallel branches.
    new = parallel and (config.parallel_norms == 2 or K not in (1, H))
    alibi = config.positions == "alibi"
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": H,
        "num_kv_heads": K,
        "ffn_hidden_size": config.feed_forward_width,
        "max_position_embeddings": config.context_length,
        "new_decoder_architecture": new,
        "multi_query": not new and K == 1,
        "parallel_attn": parallel,
        "num_ln_in_parallel_attn": config.parallel_norms if new else None,
        "bias": config.mlp_bias,
        "alibi": alibi,
        "activation": names.get(config.activation),
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        **MEGATRON_TRAINING,
        **({} if alibi else write_rotary(config)),
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    two_norms = config.block == "parallel" and config.parallel_norms == 2

    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"transformer.h.{number}"
        yield from megatron_maps(theirs, ours, config, attention="self_attention", groups=config.key_value_heads)
        first, second = ("ln_attn", "ln_mlp") if two_norms else ("input_layernorm", "post_attention_layernorm")
        yield from weights(f"{theirs}.{first}", f"{ours}.input_layernorm", bias=True)
        if two_norms or config.block == "sequential":
            yield from weights(f"{theirs}.{second}", f"{ours}.post_attention_layernorm", bias=True)

    return [
        same("transformer.word_embeddings.weight", "embed_tokens.weight"),
        *layered(config, block),
        *weights("transformer.ln_f", "norm", bias=True),
        head("lm_head.weight", config),
    ]


FALCON = Family(
    "falcon", ("FalconForCausalLM",), _read, _write, _table, "transformer.", (r".*rotary(_emb)?\.inv_freq",)
)
