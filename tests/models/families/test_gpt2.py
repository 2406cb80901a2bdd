"""GPT-2's and Cerebras-GPT's files: logits of `transformers` both ways, the published configurations and sizes."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from parity import (
    assert_close,
    assert_same_bits,
    check_family,
    copy_with,
    opened,
    parameter_count,
    peer_logits,
    random_peer,
    read_values,
    refusal,
    tokens,
)
from safetensors.torch import load_file

from parlance.core.errors import UserError

TINY = {"vocab_size": 120, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
TINY |= {"bos_token_id": 3, "eos_token_id": 3}

PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
"""The first release; the larger ones add bookkeeping."""

CEREBRAS = {
    "activation_function": "gelu",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.0,
    "bos_token_id": 50256,
    "embd_pdrop": 0.0,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 10,
    "n_positions": 2048,
    "reorder_and_upcast_attn": False,
    "resid_pdrop": 0.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "torch_dtype": "float32",
    "transformers_version": "4.25.1",
    "use_cache": True,
    "vocab_size": 50257,
}

SHAPES = {
    "gpt2": {},
    "cerebras": {"activation_function": "gelu", "n_inner": 72, "layer_norm_epsilon": 1e-3},
    "unscaled": {"scale_attn_weights": False, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False, "activation_function": "silu", "n_head": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
    config = transformers.GPT2Config(**TINY | SHAPES[shape])
    check_family(config, tmp_path, lengths=(1, 7, 40), strict=shape == "gpt2")


def test_the_first_files_have_masks_and_no_prefix(tmp_path):
    peer = random_peer(transformers.GPT2Config(**TINY))
    peer.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for number in range(2):
        old[f"h.{number}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
        old[f"h.{number}.attn.masked_bias"] = torch.tensor(-1e4)
    sizes = {name: TINY[name] for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    copy_with(tmp_path / "new", tmp_path / "old", tensors=old, config={"n_inner": None})
    (tmp_path / "old" / "config.json").write_text(json.dumps(PUBLISHED | sizes | {"n_ctx": 40}))
    assert_same_bits(opened(tmp_path / "old"), opened(tmp_path / "new"))
    ids = tokens(120, 40)
    assert_close(opened(tmp_path / "old").forward(ids)[0], peer_logits(peer, ids))
    # But a mask is passed over only where the masks are.
    copy_with(tmp_path / "new", tmp_path / "odd", tensors=tensors | {"transformer.attn.bias": torch.ones(2)})
    assert "unknown tensor transformer.attn.bias" in refusal(tmp_path / "odd")


@pytest.mark.parametrize(
    ("layers", "width", "heads", "more", "count"),
    [
        (12, 768, 12, {}, 124_439_808),
        (24, 1024, 16, {"n_special": 0, "predict_special_tokens": True}, 354_823_168),
        (36, 1280, 20, {"n_special": 0, "predict_special_tokens": True}, 774_030_080),
        (48, 1600, 25, {"output_past": True}, 1_557_611_200),
    ],
)
def test_published_sizes(layers, width, heads, more, count):
    assert parameter_count(PUBLISHED | {"n_layer": layers, "n_embd": width, "n_head": heads} | more) == count


@pytest.mark.parametrize(
    ("layers", "width", "heads", "count"),
    [
        (10, 768, 12, 111_050_496),
        (14, 1088, 17, 255_977_024),
        (18, 1536, 12, 590_310_912),
        (24, 2048, 16, 1_315_723_264),
        (32, 2560, 32, 2_651_553_280),
        (32, 4096, 32, 6_658_404_352),
        (40, 5120, 40, 12_853_386_240),
    ],
)
def test_published_sizes_of_cerebras_gpt(layers, width, heads, count):
    values = CEREBRAS | {"n_layer": layers, "n_embd": width, "n_head": heads, "n_inner": 4 * width}
    assert parameter_count(values) == count
    assert read_values(values).activation == "gelu"


def test_fields_may_have_their_general_names():
    general = {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    general |= {"n_positions": "max_position_embeddings"}
    renamed = {general.get(name, name): value for name, value in PUBLISHED.items()}
    assert read_values(renamed) == read_values(PUBLISHED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is not supported"),
        ({"activation_function": ["gelu"]}, "activation_function .* is not supported"),
        ({"n_head": 7}, "7 attention heads cannot share a width of 768"),
        ({"n_head": 0}, "0 attention heads cannot share a width of 768"),
        ({"n_embd": None}, "no field n_embd"),
        ({"rotary_dim": 64}, "the field rotary_dim"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        read_values(PUBLISHED | changes)


def test_a_size_that_is_none_is_one_sentence(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {"vocab_size": 0}))
    assert refusal(tmp_path).endswith("vocab_size: should be greater than or equal to 1")
