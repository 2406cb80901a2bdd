"""Mixtral and Qwen3-MoE: the logits of `transformers`, both ways; sizes in all and per token."""

from typing import Any

import pytest
import torch
import transformers
from parity import (
    assert_close,
    assert_same_bits,
    check_family,
    opened,
    parameter_count,
    peer_logits,
    random_peer,
    read_values,
    tokens,
)

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
QWEN = {"moe_intermediate_size": 24, "num_experts": 5, "num_experts_per_tok": 3, "head_dim": 16}

CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 3, "num_hidden_layers": 1}),
    "mixtral, window": (transformers.MixtralConfig, {"num_experts_per_tok": 1, "sliding_window": 5}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, QWEN),
    "qwen3_moe, normalised, in turns": (
        transformers.Qwen3MoeConfig,
        QWEN | {"norm_topk_prob": True, "decoder_sparse_step": 2, "moe_intermediate_size": 40, "attention_bias": True},
    ),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, tmp_path):
    kind, options = CASES[case]
    ours = check_family(kind(**TINY | options), tmp_path, lengths=(1, 7, 40), strict=case == "mixtral")
    assert family_for(ours.config).name == case.partition(",")[0]


def test_tensors_as_transformers_holds_them_in_memory_open_too(tmp_path):
    """Experts fused into two tensors: what `save_pretrained(save_original_format=False)` writes."""
    for kind, options in CASES["mixtral"], CASES["qwen3_moe"]:
        peer = random_peer(kind(**TINY | options))
        name = peer.config.model_type
        peer.save_pretrained(tmp_path / name / "fused", save_original_format=False)
        peer.save_pretrained(tmp_path / name / "apart")
        ours = opened(tmp_path / name / "fused")
        assert_same_bits(ours, opened(tmp_path / name / "apart"))
        ids = tokens(97, 9)
        with torch.inference_mode():
            assert_close(ours.forward(ids)[0], peer_logits(peer, ids))


MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mixtral",
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.36.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN3_30B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def test_published_sizes():
    assert parameter_count(MIXTRAL_8X7B) == 46_702_792_704
    assert parameter_count(QWEN3_30B) == 30_532_122_624


def test_weights_that_work_on_a_token():
    """Mixtral's 12.88 billion: matrices, head, embedding and norms, with two of eight experts."""
    config = read_values(MIXTRAL_8X7B)
    rest = config.vocab_size * config.width + (2 * config.layers + 1) * config.width
    assert config.matrix_parameters() + config.head_parameters() + rest == 12_879_925_248


def test_a_missing_rotary_base_is_the_family_s():
    short = {name: value for name, value in MIXTRAL_8X7B.items() if name != "rope_theta"}
    assert read_values(short).rope_theta == 1_000_000.0


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (QWEN3_30B | {"mlp_only_layers": [0]}, "mlp_only_layers"),
        (QWEN3_30B | {"use_sliding_window": True, "sliding_window": 8}, "use_sliding_window"),
        (QWEN3_30B | {"decoder_sparse_step": 2}, "decoder_sparse_step"),
        (MIXTRAL_8X7B | {"num_experts_per_tok": 9}, "experts_per_token 9"),
        (MIXTRAL_8X7B | {"num_shared_experts": 1}, "num_shared_experts"),
    ],
    ids=["dense layers", "window", "in turns", "more than all", "shared"],
)
def test_what_cannot_be_honoured_is_named(values, name):
    with pytest.raises((UserError, ValueError), match=name):
        read_values(values)
