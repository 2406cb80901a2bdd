"""OPT: LayerNorm, learned positions whose table begins with two unused rows, ReLU, a head tied to the embedding.

The 350m model differs: its norms come after each branch and there is none after the last block, and its embedding is
half as wide as the rest, with a projection in and out. The epsilon of the norms is 1e-5 and stands in no file. Not
read: norms without weights (`layer_norm_elementwise_affine` false).

    OPT.read(ConfigReader(json.loads(text), path))            # -> TransformerConfig

Sources: Zhang et al. 2022; names and fields as `transformers` writes them.
"""

from collections.abc import Iterable

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
    weights,
)
from parlance.models.transformer_config import TransformerConfig

_OFFSET = 2
"""Rows of the table of positions before the first token's."""


def _read(reader: ConfigReader) -> TransformerConfig:
    reader.only("layer_norm_elementwise_affine", True)
    reader.only("learned_embeddings", True)
    reader.only("scale_embeddings", False)
    reader.passed_over("layerdrop")  # of training
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    embedding_width = reader.integer("word_embed_proj_dim", default=width)
    before, biased = reader.flag("do_layer_norm_before", default=True), reader.flag("enable_bias", default=True)
    unfinished = reader.flag("_remove_final_layer_norm", default=False)
    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=reader.integer("max_position_embeddings"),
        width=width,
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        head_width=reader.head_width(width, heads),
        mlp_width=reader.integer("ffn_dim"),
        positions="learned",
        position_offset=_OFFSET,
        qk_norm=False,
        norm="layer",
        norm_epsilon=1e-5,
        norm_placement="pre" if before else "post",
        final_norm=before and not unfinished,
        activation=reader.choice("activation_function", choices=ACTIVATIONS, default="relu"),  # type: ignore[arg-type]
        gated_mlp=False,
        attention_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        embedding_width=None if embedding_width == width else embedding_width,
        tie_embeddings=reader.flag("tie_word_embeddings", default=True),
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    before = config.norm_placement == "pre"
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.feed_forward_width,
        "max_position_embeddings": config.context_length,
        "word_embed_proj_dim": config.embedding_width or config.width,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not config.final_norm,
        "layer_norm_elementwise_affine": True,
        "enable_bias": config.attention_bias,
        "activation_function": ACTIVATION_WORDS[config.activation],
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "layerdrop": 0.0,
        "init_std": 0.02,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": True,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    biased = config.attention_bias

    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"model.decoder.layers.{number}"
        for part in ("q_proj", "k_proj", "v_proj"):
            yield from weights(f"{theirs}.self_attn.{part}", f"{ours}.self_attn.{part}", bias=biased)
        yield from weights(f"{theirs}.self_attn.out_proj", f"{ours}.self_attn.o_proj", bias=biased)
        yield from weights(f"{theirs}.self_attn_layer_norm", f"{ours}.input_layernorm", bias=True)
        yield from weights(f"{theirs}.fc1", f"{ours}.mlp.up_proj", bias=biased)
        yield from weights(f"{theirs}.fc2", f"{ours}.mlp.down_proj", bias=biased)
        yield from weights(f"{theirs}.final_layer_norm", f"{ours}.post_attention_layernorm", bias=True)

    entries: list[Entry | Stacked] = [
        same("model.decoder.embed_tokens.weight", "embed_tokens.weight"),
        same("model.decoder.embed_positions.weight", "embed_positions.weight"),
        *layered(config, block),
    ]
    if config.embedding_width is not None:
        entries += [same(f"model.decoder.{part}.weight", f"{part}.weight") for part in ("project_in", "project_out")]
    if config.final_norm:
        entries += weights("model.decoder.final_layer_norm", "norm", bias=True)
    return [*entries, head("lm_head.weight", config)]


OPT = Family("opt", ("OPTForCausalLM",), _read, _write, _table, "model.")
