"""BLOOM: the logits of `transformers`, both ways, and the sizes of the published models."""

import pytest
import transformers
from parity import check_family, parameter_count, read_values

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for
from parlance.models.transformer_config import TransformerConfig

TINY = {"vocab_size": 97, "hidden_size": 48, "n_layer": 2, "layer_norm_epsilon": 1e-3}


@pytest.mark.parametrize("heads", [4, 6])
def test_parity(heads, tmp_path):
    """Six heads: slopes that are no powers of two. BLOOM's ALiBi goes beyond any length."""
    ours = check_family(transformers.BloomConfig(**TINY, n_head=heads), tmp_path, lengths=(1, 7, 90), strict=False)
    assert family_for(ours.config).name == "bloom"


def test_parity_with_a_head_of_its_own(tmp_path):
    check_family(transformers.BloomConfig(**TINY | {"n_layer": 1}, n_head=1, tie_word_embeddings=False), tmp_path)


BLOOM_560M = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_embed": 1024,
    "n_inner": None,
    "n_layer": 24,
    "num_attention_heads": 16,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "transformers_version": "4.20.0",
    "unk_token_id": 0,
    "use_cache": True,
    "vocab_size": 250880,
}


def sized(layers: int, width: int, heads: int) -> dict[str, object]:
    return BLOOM_560M | {"n_layer": layers, "n_embed": width, "num_attention_heads": heads}


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (BLOOM_560M, 559_214_592),
        (sized(24, 1536, 16), 1_065_314_304),
        (sized(24, 2048, 16), 1_722_408_960),
        (sized(30, 2560, 32), 3_002_557_440),
        (sized(30, 4096, 32), 7_069_016_064),
        (sized(70, 14336, 112), 176_247_271_424),
    ],
    ids=["560m", "1b1", "1b7", "3b", "7b1", "176b"],
)
def test_published_sizes(values, count):
    assert parameter_count(values) == count


def test_both_spellings_of_the_fields():
    new = {"n_embed": "hidden_size", "num_attention_heads": "n_head"}
    renamed = {new.get(name, name): value for name, value in BLOOM_560M.items()}
    assert read_values(renamed) == read_values(BLOOM_560M)


@pytest.mark.parametrize(
    "changes", [{"apply_residual_connection_post_layernorm": True}, {"n_inner": 512}, {"n_embed": 1000}], ids=str
)
def test_what_cannot_be_honoured_is_named(changes):
    with pytest.raises(UserError, match=r"|".join([*changes, "width of 1000"])):
        read_values(BLOOM_560M | changes)


def test_other_models_are_not_written_as_bloom():
    plain = read_values(BLOOM_560M).model_dump()
    for change in ({"activation": "gelu"}, {"embedding_norm": False}, {"alibi_bias_max": 4.0}, {"mlp_width": 512}):
        assert family_for(TransformerConfig(**plain | change)).name != "bloom", change


def test_what_a_missing_field_means():
    peer = transformers.BloomConfig()
    config = read_values({"model_type": "bloom", "vocab_size": 97, "hidden_size": 48, "n_layer": 2, "n_head": 4})
    assert config.norm_epsilon == peer.layer_norm_epsilon
    assert config.tie_embeddings == peer.tie_word_embeddings
