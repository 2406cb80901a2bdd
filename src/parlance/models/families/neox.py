"""GPT-NeoX and Pythia: LayerNorm, rotary positions on a part of each head, attention and feed-forward side by side.

Each branch has a norm of its own. With `use_parallel_residual` false the branches follow each other. Queries, keys
and values lie in one matrix, head by head. The head is `embed_out` and rarely tied.

    NEOX.read(ConfigReader(json.loads(text), path))           # -> TransformerConfig

Sources: Black et al. 2022; Biderman et al. 2023; names and fields as `transformers` writes them.
"""

import math
from collections.abc import Iterable
from typing import Any

from parlance.models.families.family import (
    ACTIVATION_WORDS,
    ACTIVATIONS,
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

_IGNORED = (r".*\.attention\.(bias|masked_bias)", r".*rotary_emb\.inv_freq")


def _read_positions(reader: ConfigReader, width: int, context_length: int) -> dict[str, Any]:
    """Rotary fields, for heads of `width`: base and share have names of their own in files before version 5."""
    fields = reader.nested("rope_parameters")
    base = reader.number("rotary_emb_base", default=fields.number("rope_theta", default=10_000.0))
    share = fields.number("partial_rotary_factor", default=reader.number("rotary_pct", default=0.25))
    # The last files before version 5 have both by their general names besides.
    reader.only("rope_theta", base)
    reader.only("partial_rotary_factor", share)
    turning = int(width * share) if 0 < share <= 1 else 0
    if turning % 2 or not turning:
        raise reader.error(f"rotary_pct {share} of a head of width {width} is not an even number of components in it")
    values = {
        "rope_theta": base,
        "rope_scaling": reader.value("rope_scaling"),
        "rope_parameters": {name: fields.values[name] for name in fields.values if name != "partial_rotary_factor"},
    }
    return {"rotary_width": turning, **read_rotary(ConfigReader(values, reader.where), context_length)}


def _write_positions(config: TransformerConfig) -> Values:
    width = config.head_width
    turning = config.rotary_width or width
    share = turning / width
    while int(width * share) < turning:  # it is multiplied and cut off by who reads it
        share = math.nextafter(share, 2.0)
    values = write_rotary(config)
    del values["rope_theta"]
    values["rope_parameters"] = values["rope_parameters"] | {"partial_rotary_factor": share}
    return {"rotary_pct": share, "rotary_emb_base": config.rope_theta, **values}


def _read(reader: ConfigReader) -> TransformerConfig:
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    length, inner = reader.integer("max_position_embeddings"), reader.head_width(width, heads)
    parallel, biased = reader.flag("use_parallel_residual", default=True), reader.flag("attention_bias", default=True)
    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=length,
        width=width,
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        head_width=inner,
        mlp_width=reader.integer("intermediate_size"),
        positions="rotary",
        **_read_positions(reader, inner, length),
        qk_norm=False,
        norm="layer",
        norm_epsilon=reader.number("layer_norm_eps", default=1e-5),
        block="parallel" if parallel else "sequential",
        activation=reader.choice("hidden_act", choices=ACTIVATIONS, default="gelu"),  # type: ignore[arg-type]
        gated_mlp=False,
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=True,
        tie_embeddings=reader.flag("tie_word_embeddings", default=False),
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_width,
        "max_position_embeddings": config.context_length,
        **_write_positions(config),
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.block == "parallel",
        "hidden_act": ACTIVATION_WORDS[config.activation],
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
        **MEGATRON_TRAINING,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"gpt_neox.layers.{number}"
        yield from weights(f"{theirs}.input_layernorm", f"{ours}.input_layernorm", bias=True)
        yield from weights(f"{theirs}.post_attention_layernorm", f"{ours}.post_attention_layernorm", bias=True)
        yield from megatron_maps(theirs, ours, config, attention="attention", groups=config.heads)

    return [
        same("gpt_neox.embed_in.weight", "embed_tokens.weight"),
        *layered(config, block),
        *weights("gpt_neox.final_layer_norm", "norm", bias=True),
        head("embed_out.weight", config),
    ]


NEOX = Family("gpt_neox", ("GPTNeoXForCausalLM",), _read, _write, _table, "gpt_neox.", _IGNORED)
