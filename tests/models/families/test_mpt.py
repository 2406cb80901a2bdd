"""MPT: the logits of `transformers`, both ways; what it ignores of a configuration is honoured here."""

import pytest
import torch
import transformers
from parity import check_family, copy_with, opened, parameter_count, random_peer, randomise, read_values, tokens
from safetensors.torch import load_file

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.models.transformer import Transformer
from parlance.models.transformer_config import TransformerConfig

TINY = {"vocab_size": 97, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64, "layer_norm_epsilon": 1e-3}

OPTIONS = {
    "plain": {},
    "clipped, scaled": {"attn_config": {"clip_qkv": 0.8, "softmax_scale": 0.3}},
    "eight heads, one layer": {"n_heads": 8, "n_layers": 1},
}


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_parity(option, tmp_path):
    config = transformers.MptConfig(**TINY | OPTIONS[option])
    ours = check_family(config, tmp_path, lengths=(1, 7, 64), strict="one layer" in option)
    assert family_for(ours.config).name == "mpt"
    assert (ours.config.clip_qkv is not None) == (option == "clipped, scaled")


MPT_7B = {
    "architectures": ["MPTForCausalLM"],
    "attn_config": {
        "alibi": True,
        "alibi_bias_max": 8,
        "attn_impl": "torch",
        "attn_pdrop": 0,
        "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False,
        "clip_qkv": None,
        "prefix_lm": False,
        "qk_ln": False,
        "softmax_scale": None,
    },
    "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    "d_model": 4096,
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "expansion_ratio": 4,
    "init_config": {"emb_init_std": None, "fan_mode": "fan_in", "init_std": 0.02, "name": "kaiming_normal_"},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "max_seq_len": 2048,
    "model_type": "mpt",
    "n_heads": 32,
    "n_layers": 32,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.28.1",
    "use_cache": False,
    "verbose": 0,
    "vocab_size": 50432,
}
STORYWRITER = MPT_7B | {
    "max_seq_len": 65536,
    "attn_config": MPT_7B["attn_config"] | {"alibi_bias_max": 16, "clip_qkv": 6},
}


def test_published_size():
    assert parameter_count(MPT_7B) == 6_649_286_656


def test_the_story_writer_has_gentler_slopes():
    config = read_values(STORYWRITER)
    assert (config.alibi_bias_max, config.clip_qkv, config.context_length) == (16.0, 6.0, 65536)


def with_attention(**changes: object) -> dict[str, object]:
    return MPT_7B | {"attn_config": MPT_7B["attn_config"] | changes}


def test_fields_that_transformers_ignores_are_honoured():
    assert read_values(MPT_7B | {"expansion_ratio": 2}).mlp_width == 8192
    assert read_values(MPT_7B | {"logit_scale": "inv_sqrt_d_model"}).logit_scale == 1 / 64
    assert read_values(MPT_7B | {"logit_scale": 0.5}).logit_scale == 0.5
    assert read_values(with_attention(alibi=False)).positions == "learned"
    biased = read_values(MPT_7B | {"no_bias": False})
    assert biased.norm_bias
    assert biased.attention_bias
    assert biased.output_bias
    assert biased.mlp_bias


def test_a_file_with_learned_positions_and_biases_opens(tmp_path):
    """Such files come from the makers' program alone, so the tensors are made here, with the names they have there."""
    peer = random_peer(transformers.MptConfig(**TINY))
    peer.save_pretrained(tmp_path / "peer")
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    for name in [name for name in tensors if "wte" not in name]:
        tensors[name.removesuffix("weight") + "bias"] = torch.randn(len(tensors[name]))
    tensors["transformer.wpe.weight"] = torch.randn(64, 48)
    fields = {"no_bias": False, "attn_config": {"alibi": False}}
    copy_with(tmp_path / "peer", tmp_path / "made", config=fields, tensors=tensors)
    ours = opened(tmp_path / "made")
    parameters = dict(ours.named_parameters())
    assert torch.equal(parameters["embed_positions.weight"], tensors["transformer.wpe.weight"])
    assert torch.equal(
        parameters["layers.1.self_attn.v_proj.bias"], tensors["transformer.blocks.1.attn.Wqkv.bias"].chunk(3)[2]
    )
    assert torch.equal(parameters["norm.bias"], tensors["transformer.norm_f.bias"])


@pytest.mark.parametrize(
    "change",
    [
        {"alibi_bias_max": 16.0},
        {"logit_scale": 0.5},
        {"mlp_width": 64},
        {"positions": "learned"},
        {"norm_bias": True, "attention_bias": True, "output_bias": True, "mlp_bias": True},
    ],
    ids=str,
)
def test_what_transformers_would_ignore_is_not_written_as_mpt(change, tmp_path):
    """It is written in another form, which says it all."""
    plain = read_values(MPT_7B | {"d_model": 48, "n_heads": 6, "n_layers": 1, "vocab_size": 97, "max_seq_len": 64})
    assert family_for(plain).name == "mpt"
    model = Transformer(TransformerConfig(**plain.model_dump() | change))
    randomise(model)
    assert family_for(model.config).name != "mpt"
    save_model(tmp_path, model, end_of_text=3, pad=5)
    again = load_model(tmp_path)
    assert torch.equal(again.forward(tokens(97, 9))[0], model.forward(tokens(97, 9))[0])


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (with_attention(prefix_lm=True), "prefix_lm"),
        (with_attention(qk_ln=True), "qk_ln"),
        (with_attention(attn_type="multiquery_attention"), "attn_type"),
        (with_attention(attn_uses_sequence_id=True), "attn_uses_sequence_id"),
        (with_attention(rope=True), "rope"),
        (with_attention(alibi=False) | {"learned_pos_emb": False}, "learned_pos_emb"),
        (MPT_7B | {"norm_type": "rmsnorm"}, "norm_type"),
        (MPT_7B | {"n_heads": 33}, "33 attention heads"),
        (MPT_7B | {"attn_config": 3}, "attn_config"),
        (MPT_7B | {"logit_scale": "loud"}, "logit_scale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_named(values, name):
    with pytest.raises(UserError, match=name):
        read_values(values)


def test_what_a_missing_field_means():
    """As in `transformers`."""
    sizes = {"vocab_size": 97, "d_model": 48, "n_layers": 2, "n_heads": 6}
    peer = transformers.MptConfig(**sizes)
    assert read_values({"model_type": "mpt", **sizes}) == read_values({"model_type": "mpt", **peer.to_dict()})
