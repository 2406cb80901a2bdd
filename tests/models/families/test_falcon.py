"""Falcon's four forms: the logits of `transformers`, both ways, and the sizes of the published models."""

from typing import Any

import pytest
import torch
import transformers
from parity import (
    assert_close,
    check_cache,
    check_family,
    check_logits,
    opened,
    parameter_count,
    peer_logits,
    random_peer,
    read_values,
    tokens,
)

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for
from parlance.models.transformer_config import TransformerConfig

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": 1e-3,
}

NEW = {"new_decoder_architecture": True, "num_kv_heads": 2}

FORMS: dict[str, dict[str, Any]] = {
    "7b": {},
    "7b, all heads": {"multi_query": False},
    "40b": NEW,
    "40b, one key head, biases": NEW | {"num_kv_heads": 1, "bias": True, "activation": "gelu_new"},
    "11b": NEW | {"num_ln_in_parallel_attn": 1, "ffn_hidden_size": 56},
    "one layer, a head of its own": NEW | {"num_hidden_layers": 1, "tie_word_embeddings": False},
    "sequential, one key head": {
        "parallel_attn": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
}


class WithFusedAttention:
    """`transformers`' models with its fused attention: the other form adds Falcon's ALiBi twice (seen in 5.23).

    The published code of Falcon RW adds it once.
    """

    @staticmethod
    def from_config(config: Any, attn_implementation: str, dtype: torch.dtype) -> Any:  # noqa: ARG004
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)

    @staticmethod
    def from_pretrained(folder: Any, output_loading_info: bool, attn_implementation: str) -> Any:  # noqa: ARG004
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=output_loading_info, attn_implementation="sdpa"
        )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_parity(form, tmp_path):
    ours = check_family(transformers.FalconConfig(**TINY | FORMS[form]), tmp_path, strict="one layer" in form)
    assert family_for(ours.config).name == "falcon"


@pytest.mark.parametrize("heads", [4, 6])
def test_parity_with_alibi(heads, tmp_path):
    """Six heads: slopes that are no powers of two."""
    sizes = TINY | {"num_attention_heads": heads}
    config = transformers.FalconConfig(**sizes, alibi=True, bias=True, parallel_attn=False, multi_query=False)
    ours = check_family(config, tmp_path, lengths=(1, 7, 64), kind=WithFusedAttention, strict=False)
    assert family_for(ours.config).name == "falcon"


def test_alibi_is_rounded_to_bfloat16(tmp_path):
    """Beyond 256 positions the rounded biases of neighbours are equal: a bias in full precision would differ."""
    config = transformers.FalconConfig(**TINY, alibi=True, multi_query=False)
    peer = random_peer(config, WithFusedAttention)
    peer.save_pretrained(tmp_path)
    ours = opened(tmp_path)
    check_logits(ours, peer, [400])
    check_cache(ours, peer, 300)


def test_a_state_with_room_changes_nothing(tmp_path):
    """Biases are as wide as the text, a state may be wider."""
    peer = random_peer(transformers.FalconConfig(**TINY, alibi=True, multi_query=False), WithFusedAttention)
    peer.save_pretrained(tmp_path)
    ours, ids = opened(tmp_path), tokens(97, 20)
    with torch.inference_mode():
        state, logits = ours.new_state(2, 64), []
        for piece in ids.split([9, 1, 10], dim=1):
            out, state = ours.forward(piece, state)
            logits.append(out)
        assert_close(torch.cat(logits, dim=1), peer_logits(peer, ids))


# --- configurations --------------------------------------------------------------------------------------------------

FALCON_7B = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["FalconForCausalLM"],
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 11,
    "eos_token_id": 11,
    "hidden_dropout": 0.0,
    "hidden_size": 4544,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "falcon",
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.27.4",
    "use_cache": True,
    "vocab_size": 65024,
}
FALCON_40B = FALCON_7B | {
    "hidden_size": 8192,
    "new_decoder_architecture": True,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
}
FALCON_11B = FALCON_40B | {
    "activation": "gelu",
    "ff_factor": 4,
    "ffn_hidden_size": 16384,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_ln_in_parallel_attn": 1,
    "rope_scaling": None,
    "rope_theta": 500042.0,
    "tie_word_embeddings": False,
}
FALCON_RW_1B = FALCON_7B | {
    "alibi": True,
    "bias": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 2048,
    "multi_query": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "parallel_attn": False,
    "vocab_size": 50304,
}


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (FALCON_7B, 6_921_720_704),
        (FALCON_40B, 41_303_293_952),
        (FALCON_RW_1B, 1_311_625_216),
    ],
    ids=["7b", "40b", "rw-1b"],
)
def test_published_sizes(values, count):
    assert parameter_count(values) == count


def test_the_11b_configuration():
    """Its head is its own: 11.1 billion with it."""
    config = read_values(FALCON_11B)
    assert (config.block, config.parallel_norms, config.kv_heads, config.rope_theta) == ("parallel", 1, 8, 500042.0)
    assert round(parameter_count(FALCON_11B) / 1e8) == 111


def test_old_names_of_fields():
    old = {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    renamed = {old.get(name, name): value for name, value in FALCON_40B.items()}
    renamed["n_head_kv"] = renamed.pop("num_kv_heads")
    assert read_values(renamed) == read_values(FALCON_40B)


@pytest.mark.parametrize(
    "changes",
    [
        {"apply_residual_connection_post_layernorm": True},
        {"activation": "mish"},
        {"num_ln_in_parallel_attn": 2},
        {"multi_query": False, "num_kv_heads": 2},
        {"num_attention_heads": 70},
        {"new_decoder_architecture": True, "parallel_attn": False},
        {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 3},
        {"rope_scaling": {"type": "spiral", "factor": 2.0}},
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_named(changes):
    with pytest.raises(UserError, match=r"|".join([*changes, "rope_type", "70 attention heads"])):
        read_values(FALCON_7B | changes)


def test_other_models_are_not_written_as_falcon():
    plain = read_values(FALCON_7B).model_dump()
    for change in (
        {"mlp_bias": True},
        {"norm": "rms"},
        {"activation": "silu"},
        {"block": "sequential", "kv_heads": None, "positions": "alibi"},  # ALiBi as BLOOM has it
        {"sliding_window": 16},
    ):
        assert family_for(TransformerConfig(**plain | change)).name != "falcon", change


def test_what_a_missing_field_means():
    """As in `transformers`: 7B's form."""
    sizes = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    peer = transformers.FalconConfig(**sizes)
    assert read_values({"model_type": "falcon", **sizes}) == read_values({"model_type": "falcon", **peer.to_dict()})
