"""GPT-J's files: logits of `transformers` both ways, the published configuration and size."""

import pytest
import torch
import transformers
from parity import (
    assert_same_bits,
    check_family,
    copy_with,
    opened,
    parameter_count,
    random_peer,
    read_values,
)
from safetensors.torch import load_file

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for

TINY = {"vocab_size": 120, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8}
TINY |= {"bos_token_id": 3, "eos_token_id": 3}

PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 1.0}},
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "transformers_version": "4.18.0.dev0",
    "use_cache": True,
    "vocab_size": 50400,
}

SHAPES = {
    "6B": {},
    "all components turn": {"rotary_dim": 16, "n_inner": 72, "activation_function": "gelu"},
    "tied, one head": {"tie_word_embeddings": True, "n_head": 1, "rotary_dim": 2, "layer_norm_epsilon": 1e-3},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
    config = transformers.GPTJConfig(**TINY | SHAPES[shape])
    check_family(config, tmp_path, lengths=(1, 7, 40), strict=shape == "6B")


def test_masks_are_passed_over(tmp_path):
    random_peer(transformers.GPTJConfig(**TINY)).save_pretrained(tmp_path / "new")
    masks = {"transformer.h.1.attn.bias": torch.ones(1, 1, 40, 40).tril()}
    masks["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    copy_with(tmp_path / "new", tmp_path / "old", tensors=tensors | masks)
    assert_same_bits(opened(tmp_path / "old"), opened(tmp_path / "new"))


def test_published_size():
    assert parameter_count(PUBLISHED) == 6_050_882_784
    config = read_values(PUBLISHED)
    assert (config.head_width, config.rotary_width, config.head_bias) == (256, 64, True)
    assert family_for(config).name == "gptj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": False}, "rotary False is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights False is not supported"),
        ({"rotary_dim": None}, "no field rotary_dim"),
        ({"rotary_dim": 63}, "rotary_dim 63 is not an even part of a head of width 256"),
        ({"rotary_dim": 0}, "rotary_dim 0 is not an even part of a head of width 256"),
        ({"rotary_dim": 258}, "rotary_dim 258 is not an even part of a head of width 256"),
        ({"n_head": 3}, "3 attention heads cannot share a width of 4096"),
        ({"activation_function": "mish"}, "activation_function 'mish' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "the field rope_scaling"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        read_values(PUBLISHED | changes)


@pytest.mark.parametrize(
    "change", [{"rope_theta": 500.0}, {"attention_bias": True}, {"parallel_norms": 2}, {"head_bias": False}]
)
def test_it_does_not_claim_what_it_cannot_say(change):
    config = read_values(PUBLISHED)
    assert family_for(config.model_copy(update=change)).name != "gptj"
