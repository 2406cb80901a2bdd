"""BERT: an encoder with norms behind each branch, segments, and heads for masked tokens and for the next sentence.

`architectures` says which heads a checkpoint has, but published files often hold more (that of bert-base-uncased says
BertForMaskedLM and has the pooler and the next-sentence head too): what is in the files is read, and what
`architectures` names must be there.

Sources: Devlin et al. 2019; names and fields as `transformers` writes them.
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

_PARTS = {
    "BertForPreTraining": (True, True, True),
    "BertForMaskedLM": (True, False, False),
    "BertModel": (False, True, False),
    "BertForNextSentencePrediction": (False, True, True),
}
"""Which of head, pooler and next-sentence scores an architecture has."""


def _read(reader: ConfigReader) -> TransformerConfig:
    named = reader.value("architectures", default=["BertForPreTraining"])
    if not isinstance(named, list) or not named or named[0] not in _PARTS:
        raise reader.error(f"architectures {named!r} is not supported (only {', '.join(_PARTS)})")
    masked, pooler, next_sentence = _PARTS[named[0]]
    reader.only("position_embedding_type", "absolute")
    reader.only("is_decoder", False)
    reader.only("add_cross_attention", False)
    reader.only("tie_word_embeddings", True)
    # How the pooler and the attention were named in the first TensorFlow files; they say nothing that is not here.
    reader.only("directionality", "bidi")
    reader.only("pooler_type", "first_token_transform")
    reader.passed_over("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head")
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    segments = reader.integer("type_vocab_size", default=2)
    if segments < 1:
        raise reader.error(f"type_vocab_size {segments} is not supported (only 1 or more)")
    masked = masked or bool(reader.stores("cls.predictions.bias"))
    next_sentence = next_sentence or bool(reader.stores("cls.seq_relationship.weight"))
    config = TransformerConfig(
        vocab_size=reader.integer("vocab_size"),
        context_length=reader.integer("max_position_embeddings"),
        width=width,
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        head_width=reader.head_width(width, heads),
        mlp_width=reader.integer("intermediate_size"),
        causal=False,
        positions="learned",
        qk_norm=False,
        norm="layer",
        norm_epsilon=reader.number("layer_norm_eps", default=1e-12),
        norm_placement="post",
        final_norm=False,
        embedding_norm=True,
        activation=reader.choice("hidden_act", choices=ACTIVATIONS, default="gelu"),  # type: ignore[arg-type]
        gated_mlp=False,
        attention_bias=True,
        output_bias=True,
        mlp_bias=True,
        token_types=segments,
        tie_embeddings=True,
        head_transform=masked,
        head_bias=masked,
        pooler=pooler or next_sentence or bool(reader.stores("bert.pooler.dense.weight", "pooler.dense.weight")),
        next_sentence=next_sentence,
    )
    reader.finish()
    return config


def _write(config: TransformerConfig) -> Values:
    parts = (config.head_transform, config.pooler, config.next_sentence)
    # Both heads and no next-sentence scores is a masked model with the pooler left in.
    named = [name for name, has in _PARTS.items() if has == parts]
    return {
        "architectures": named or ["BertForMaskedLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": ACTIVATION_WORDS[config.activation],
        "max_position_embeddings": config.context_length,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_epsilon,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _table(config: TransformerConfig) -> list[Entry | Stacked]:
    def block(number: int) -> Iterable[Entry]:
        ours, theirs = f"layers.{number}", f"bert.encoder.layer.{number}"
        for part, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            yield from weights(f"{theirs}.attention.self.{name}", f"{ours}.self_attn.{part}", bias=True)
        yield from weights(f"{theirs}.attention.output.dense", f"{ours}.self_attn.o_proj", bias=True)
        yield from weights(f"{theirs}.attention.output.LayerNorm", f"{ours}.input_layernorm", bias=True)
        yield from weights(f"{theirs}.intermediate.dense", f"{ours}.mlp.up_proj", bias=True)
        yield from weights(f"{theirs}.output.dense", f"{ours}.mlp.down_proj", bias=True)
        yield from weights(f"{theirs}.output.LayerNorm", f"{ours}.post_attention_layernorm", bias=True)

    entries: list[Entry | Stacked] = [
        same("bert.embeddings.word_embeddings.weight", "embed_tokens.weight"),
        same("bert.embeddings.position_embeddings.weight", "embed_positions.weight"),
        same("bert.embeddings.token_type_embeddings.weight", "embed_types.weight"),
        *weights("bert.embeddings.LayerNorm", "embed_norm", bias=True),
        *layered(config, block),
    ]
    if config.pooler:
        entries += weights("bert.pooler.dense", "pooler", bias=True)
    if config.head_transform:
        entries += weights("cls.predictions.transform.dense", "head_dense", bias=True)
        entries += weights("cls.predictions.transform.LayerNorm", "head_norm", bias=True)
        entries += [
            same("cls.predictions.bias", "head_bias"),
            head("cls.predictions.decoder.weight", config),
            Entry("cls.predictions.decoder.bias", ("head_bias",), optional=True),
        ]
    if config.next_sentence:
        entries += weights("cls.seq_relationship", "next_sentence", bias=True)
    return entries


BERT = Family(
    "bert",
    tuple(_PARTS),
    _read,
    _write,
    _table,
    "bert.",
    (r"(bert\.)?embeddings\.position_ids", r"(bert\.)?embeddings\.token_type_ids"),
)
