"""BERT against `transformers`: masked tokens, segments, padding, the pooled output, the next sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import (
    PAD,
    assert_close,
    assert_same_bits,
    check_export,
    check_shards,
    check_tensors_of_the_file,
    check_unknown_field,
    check_without_prefix,
    copy_with,
    opened,
    padding_mask,
    parameter_count,
    randomise,
    read_values,
    refusal,
    tokens,
)
from safetensors.torch import load_file

from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.models.transformer_blocks import padding_layout

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 48,
}
ODD = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "type_vocab_size": 3}
BASE = {  # as published for bert-base-uncased
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "gradient_checkpointing": False,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
MULTILINGUAL = {  # what the published bert-base-multilingual-cased has besides
    "directionality": "bidi",
    "pooler_fc_size": 768,
    "pooler_num_attention_heads": 12,
    "pooler_num_fc_layers": 3,
    "pooler_size_per_head": 128,
    "pooler_type": "first_token_transform",
    "vocab_size": 119547,
}


def peer_of(kind: str, **more: Any) -> Any:
    """A model of `transformers` with every parameter random."""
    peer = getattr(transformers, kind)(transformers.BertConfig(**(SIZES | more), attn_implementation="eager")).eval()
    randomise(peer)
    return peer


@pytest.fixture(params=["BertForMaskedLM", "BertForPreTraining", "BertModel", "BertForNextSentencePrediction"])
def kind(request) -> str:
    return request.param


def check_outputs(ours: Any, peer: Any, length: int, *, padded: bool = True) -> None:
    """Everything that the peer's model gives: activations, logits, pooled output, next-sentence scores."""
    mask = padding_mask(length)[[0, 2]] if padded else torch.ones(2, length, dtype=torch.bool)
    ids = tokens(ours.vocab_size, length)
    types = torch.randint(0, ours.config.token_types, ids.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = peer(input_ids=ids, attention_mask=mask.long(), token_type_ids=types)
        layout = padding_layout(mask, causal=False) if padded else None
        hidden = ours.hidden(ids, layout=layout, token_types=types)
        name = type(peer).__name__
        if name == "BertModel":
            assert_close(hidden[mask], theirs.last_hidden_state[mask])
            assert_close(ours.pooled(hidden), theirs.pooler_output)
        if name in ("BertForMaskedLM", "BertForPreTraining"):
            logits = theirs.logits if name == "BertForMaskedLM" else theirs.prediction_logits
            assert_close(ours.logits(hidden)[mask], logits[mask])
        if name in ("BertForNextSentencePrediction", "BertForPreTraining"):
            scores = theirs.logits if name == "BertForNextSentencePrediction" else theirs.seq_relationship_logits
            assert_close(ours.next_sentence(ours.pooled(hidden)), scores)


@pytest.mark.parametrize("odd", [{}, ODD], ids=["plain", "odd"])
def test_it_computes_what_transformers_computes_and_goes_back(kind, odd, tmp_path):
    peer = peer_of(kind, **odd)
    peer.save_pretrained(tmp_path / "peer")
    ours = opened(tmp_path / "peer")
    # The peer has a second head bias in these two, tied to the first only where it is saved.
    assert ours.parameter_count() == sum(parameter.numel() for parameter in peer.parameters())
    for length in (1, 7, 48):
        check_outputs(ours, peer, length, padded=length > 1)
        check_outputs(ours, peer, length, padded=False)
    # Back again: the same architecture, which knows every tensor and gives the same.
    assert family_for(ours.config).name == "bert"
    save_model(tmp_path / "ours", ours, end_of_text=2, pad=PAD)
    again, information = getattr(transformers, kind).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not information[problem], (problem, information[problem])
    assert again.config.architectures == [kind]
    check_outputs(ours, again.eval(), 33)
    returned = load_model(tmp_path / "ours")
    assert returned.config.canonical() == ours.config.canonical()
    assert_same_bits(returned, ours)


def test_files(tmp_path):
    """Shards, names without the prefix, unknown fields, missing and mis-shaped tensors."""
    peer = peer_of("BertForPreTraining", num_hidden_layers=1)
    peer.save_pretrained(tmp_path / "peer")
    ours = opened(tmp_path / "peer")
    check_shards(ours, peer, tmp_path / "shards")
    check_without_prefix(ours, tmp_path / "peer", tmp_path / "short")
    check_unknown_field(tmp_path / "peer", tmp_path / "field")
    check_tensors_of_the_file(tmp_path / "peer", tmp_path / "tensors")


def test_a_masked_model_is_exported_as_one(tmp_path):
    peer = peer_of("BertForMaskedLM")
    peer.save_pretrained(tmp_path / "peer")
    check_export(opened(tmp_path / "peer"), peer, tmp_path / "out", transformers.AutoModelForMaskedLM)


def test_the_first_published_files(tmp_path):
    """They say BertForMaskedLM and hold all heads, call norms gamma and beta, and repeat what is tied."""
    peer = peer_of("BertForPreTraining")
    peer.save_pretrained(tmp_path / "peer")
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(48)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    copy_with(tmp_path / "peer", tmp_path / "old", config={"architectures": ["BertForMaskedLM"]}, tensors=old)
    ours = opened(tmp_path / "old")
    assert_same_bits(ours, load_model(tmp_path / "peer"))
    check_outputs(ours, peer, 20)
    # A repetition that is none is not passed over.
    for name in ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"):
        copy_with(tmp_path / "old", tmp_path / "untied", tensors=old | {name: old[name] + 1})
        assert name in refusal(tmp_path / "untied")


def test_a_masked_model_with_its_pooler_left_in_keeps_it(tmp_path):
    peer = peer_of("BertForPreTraining")
    peer.save_pretrained(tmp_path / "peer")
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "seq_relationship" not in name}
    copy_with(tmp_path / "peer", tmp_path / "kept", config={"architectures": ["BertForMaskedLM"]}, tensors=kept)
    ours = opened(tmp_path / "kept")
    assert ours.config.pooler
    assert not ours.config.next_sentence
    save_model(tmp_path / "ours", ours, end_of_text=2, pad=0)
    assert_same_bits(load_model(tmp_path / "ours"), ours)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False is not supported"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is not supported"),
        ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ({"num_attention_heads": 5}, "5 attention heads"),
        ({"type_vocab_size": 0}, "type_vocab_size 0 is not supported"),
    ],
)
def test_what_is_not_read_is_named(changes, message, tmp_path):
    peer_of("BertForMaskedLM").save_pretrained(tmp_path / "peer")
    copy_with(tmp_path / "peer", tmp_path / "odd", config=changes)
    assert message in refusal(tmp_path / "odd")


def test_published_sizes():
    """bert-base and bert-large with their pooler and without heads; then what is in bert-base-uncased's file."""
    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24}
    assert parameter_count(BASE | {"architectures": ["BertModel"]}) == 109_482_240
    assert parameter_count(BASE | large | {"architectures": ["BertModel"]}) == 335_141_888
    head = 768 * 768 + 768 + 2 * 768 + 30522  # transform, its norm, biases
    assert parameter_count(BASE) == 109_482_240 - 768 * 768 - 768 + head
    assert parameter_count(BASE | {"architectures": ["BertForPreTraining"]}) == 109_482_240 + head + 2 * 768 + 2
    assert read_values(BASE | MULTILINGUAL).vocab_size == 119547


def test_a_decoder_or_another_encoder_is_not_called_bert(tiny_transformer, tmp_path):
    for shape in ({}, {"causal": False}):
        assert family_for(tiny_transformer(**shape).config).name != "bert"
    model = tiny_transformer(causal=False, tie_embeddings=True)
    save_model(tmp_path, model, end_of_text=2, pad=0)
    assert_same_bits(load_model(Path(tmp_path)), model)
