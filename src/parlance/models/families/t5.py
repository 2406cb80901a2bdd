"""T5, versions 1.0 and 1.1 (FLAN-T5 too): an encoder-decoder with RMSNorm, relative positions and no biases.

Version 1.0 has a plain ReLU feed-forward and a tied head that reads activations times 1 / sqrt(D); 1.1 a gated GELU
and a head of its own. Scores of attention are not scaled. One table of position biases serves all blocks of a stack;
the file has it in the first. `transformers` 5 no longer says in the configuration whether a head of its own is in the
files (it writes `tie_word_embeddings` true and `scale_decoder_outputs` false for both), so they are looked at.

T5 does not scale the scores of attention: its queries are drawn smaller instead. An optimizer that gives every matrix
steps of one size then moves the scores sqrt(E) times as fast, and learns worse (docs/lab-notebook.md); so a power of
two near sqrt(E) is taken out of the scores and put into our queries, which changes no bit of what is computed or
written. `query_factor` says which, where it is not the nearest.

Sentinels of span corruption that lie beyond the tokenizer's vocabulary are rows of the file's `vocab_size`; the field
`sentinels`, which other programs pass over, says how many. `empty_source` and `query_factor` are ours as well.

Sources: Raffel et al. 2020; Shazeer 2020; names and fields as `transformers` writes them.
"""

import math
from collections.abc import Iterable
from typing import Any

from parlance.models.encoder_decoder import EncoderDecoderConfig
from parlance.models.families.family import ACTIVATIONS, ConfigReader, Entry, Family, Values, same, weights
from parlance.models.transformer_config import TransformerConfig

_FEED_FORWARDS = {f"gated-{word}": f"gated {name}" for word, name in ACTIVATIONS.items()} | ACTIVATIONS
_FEED_FORWARDS["gated-gelu"] = "gated gelu-tanh"  # so named in the files of version 1.1
_WRITTEN = {
    "gated gelu-tanh": "gated-gelu",
    "gated silu": "gated-silu",
    "gated relu": "gated-relu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu-tanh": "gelu_new",
    "silu": "silu",
}
"""`feed_forward_proj`. A gated exact GELU has no word: gated-gelu is the tanh form."""


def _read(reader: ConfigReader) -> EncoderDecoderConfig:
    reader.only("is_decoder", False)
    reader.passed_over("dense_act_fn", "is_gated_act")  # feed_forward_proj, taken apart
    width, start = reader.integer("d_model"), reader.integer("decoder_start_token_id", "pad_token_id", default=0)
    feed_forward = reader.choice("feed_forward_proj", choices=_FEED_FORWARDS, default="relu")
    tied, scaled = _head(reader)
    rows, sentinels = reader.integer("vocab_size"), reader.integer("sentinels", default=0)
    layers, head_width = reader.integer("num_layers"), reader.integer("d_kv")
    if head_width < 1:
        raise reader.error(f"d_kv is {head_width}, not a size")
    factor = reader.number("query_factor", default=_near(head_width))
    if not _is_power_of_two(factor):
        raise reader.error(f"query_factor is {factor}, not a power of two")
    stack: dict[str, Any] = {
        "vocab_size": rows,
        "context_length": reader.integer("n_positions", default=512),
        "width": width,
        "heads": reader.integer("num_heads"),
        "head_width": head_width,
        "mlp_width": reader.integer("d_ff"),
        "positions": "relative",
        "relative_buckets": reader.integer("relative_attention_num_buckets", default=32),
        "relative_max_distance": reader.integer("relative_attention_max_distance", default=128),
        "attention_scale": 1 / factor,
        "qk_norm": False,
        "norm_epsilon": reader.number("layer_norm_epsilon", default=1e-6),
        "activation": feed_forward.removeprefix("gated "),
        "gated_mlp": feed_forward.startswith("gated "),
        "tie_embeddings": tied,
    }
    config = EncoderDecoderConfig(
        vocab_size=rows - sentinels,
        sentinels=sentinels,
        start_token=start,
        empty_source=_empty_source(reader),
        encoder=TransformerConfig(**stack, layers=layers, causal=False),
        decoder=TransformerConfig(
            **stack,
            layers=reader.integer("num_decoder_layers", default=layers),
            cross_attention=True,
            logit_scale=width**-0.5 if scaled else 1.0,
        ),
    )
    reader.finish()
    return config


def _near(head_width: int) -> float:
    """The power of two nearest to sqrt(E): itself for 16, 64, 256."""
    return 2.0 ** round(math.log2(head_width) / 2)


def _is_power_of_two(factor: float) -> bool:
    return factor > 0 and math.frexp(factor)[0] == 0.5


def _head(reader: ConfigReader) -> tuple[bool, bool]:
    """Whether the head is the embedding, and whether its activations are scaled."""
    tied = reader.flag("tie_word_embeddings", default=True)
    scaled = reader.flag("scale_decoder_outputs", default=tied)
    if tied and not scaled and reader.stores("lm_head.weight"):
        tied = False
    if scaled and not tied:
        raise reader.error("scale_decoder_outputs true is not supported with tie_word_embeddings false")
    return tied, scaled


def _empty_source(reader: ConfigReader) -> tuple[int, ...]:
    """A text without words is its end alone."""
    end = reader.value("eos_token_id", default=1)
    source = reader.value("empty_source", default=[end[0] if isinstance(end, list) else end])
    if not isinstance(source, list) or not all(isinstance(token, int) for token in source):
        raise reader.error(f"empty_source is {source!r}, not a list of token ids")
    return tuple(source)


def _write(config: EncoderDecoderConfig) -> Values:
    encoder, decoder = config.encoder, config.decoder
    return {
        "vocab_size": decoder.vocab_size,
        "sentinels": config.sentinels,
        "empty_source": list(config.empty_source),
        "decoder_start_token_id": config.start_token,
        "d_model": decoder.width,
        "d_kv": decoder.head_width,
        "query_factor": 1 / decoder.scale,
        "d_ff": decoder.feed_forward_width,
        "num_layers": encoder.layers,
        "num_decoder_layers": decoder.layers,
        "num_heads": decoder.heads,
        "n_positions": decoder.context_length,
        "relative_attention_num_buckets": decoder.relative_buckets,
        "relative_attention_max_distance": decoder.relative_max_distance,
        "feed_forward_proj": _WRITTEN.get(("gated " if decoder.gated_mlp else "") + decoder.activation),
        "layer_norm_epsilon": decoder.norm_epsilon,
        "tie_word_embeddings": decoder.tie_embeddings,
        "scale_decoder_outputs": decoder.logit_scale != 1.0,
        "is_encoder_decoder": True,
        "dropout_rate": 0.0,
        "initializer_factor": 1.0,
        "use_cache": True,
    }


def _attention(theirs: str, ours: str, factor: float) -> Iterable[Entry]:
    yield Entry(
        f"{theirs}.q.weight",
        (f"{ours}.q_proj.weight",),
        lambda stored: (stored * factor,),
        lambda parts: parts[0] / factor,
    )
    for part in ("k", "v", "o"):
        yield from weights(f"{theirs}.{part}", f"{ours}.{part}_proj", bias=False)


def _stack(name: str, config: TransformerConfig) -> Iterable[Entry]:
    for number in range(config.layers):
        ours, theirs = f"{name}.layers.{number}", f"{name}.block.{number}.layer"
        last = 2 if config.cross_attention else 1
        yield from _attention(f"{theirs}.0.SelfAttention", f"{ours}.self_attn", 1 / config.scale)
        yield same(f"{theirs}.0.layer_norm.weight", f"{ours}.input_layernorm.weight")
        if config.cross_attention:
            yield from _attention(f"{theirs}.1.EncDecAttention", f"{ours}.cross_attn", 1 / config.scale)
            yield same(f"{theirs}.1.layer_norm.weight", f"{ours}.cross_layernorm.weight")
        parts = {"wi_0": "gate_proj", "wi_1": "up_proj"} if config.gated_mlp else {"wi": "up_proj"}
        for part, own in (parts | {"wo": "down_proj"}).items():
            yield same(f"{theirs}.{last}.DenseReluDense.{part}.weight", f"{ours}.mlp.{own}.weight")
        yield same(f"{theirs}.{last}.layer_norm.weight", f"{ours}.post_attention_layernorm.weight")
    yield same(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{name}.relative_bias.weight")
    yield same(f"{name}.final_layer_norm.weight", f"{name}.norm.weight")


def _table(config: EncoderDecoderConfig) -> list[Entry]:
    tied = config.decoder.tie_embeddings
    return [
        same("shared.weight", "embed_tokens.weight"),
        *(
            Entry(f"{stack}.embed_tokens.weight", ("embed_tokens.weight",), optional=True)
            for stack in ("encoder", "decoder")
        ),
        *_stack("encoder", config.encoder),
        *_stack("decoder", config.decoder),
        Entry("lm_head.weight", ("embed_tokens.weight" if tied else "decoder.lm_head.weight",), optional=tied),
    ]


T5 = Family(
    "t5",
    ("T5ForConditionalGeneration", "T5Model"),
    _read,
    _write,
    _table,
    # Stray in the first files; cross-attention has no positions.
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
)
