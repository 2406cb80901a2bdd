"""GPT-NeoX's and Pythia's files: logits of `transformers` both ways, old and new fields, the published sizes."""

import json

import pytest
import torch
import transformers
from parity import (
    assert_close,
    assert_same_bits,
    check_export,
    check_family,
    check_logits,
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
from parlance.models.families.neox import NEOX

TINY = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"max_position_embeddings": 40, "intermediate_size": 72, "eos_token_id": 0}

PUBLISHED = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
"""Pythia 70m."""


def rotary(share: float, base: float = 500.0, **scaling: object) -> dict[str, object]:
    """The field of files since version 5."""
    fields = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share}
    return {"rope_parameters": fields | scaling}


SHAPES = {
    "pythia": {},
    "one branch after the other, all turn": {"use_parallel_residual": False, **rotary(1.0), "layer_norm_eps": 1e-3},
    "tied, few biases, tanh": {"tie_word_embeddings": True, "attention_bias": False, "hidden_act": "gelu_fast"},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
    config = transformers.GPTNeoXConfig(**TINY | SHAPES[shape])
    check_family(config, tmp_path, lengths=(1, 7, 40), strict=shape == "pythia")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_longer_contexts(scaling, tmp_path):
    config = transformers.GPTNeoXConfig(**TINY | rotary(0.5, 100.0, **scaling))
    peer = random_peer(config)
    peer.save_pretrained(tmp_path / "peer")
    ours = opened(tmp_path / "peer")
    check_logits(ours, peer, (7, 40, 70))
    check_export(ours, peer, tmp_path / "exported")


def test_old_fields_say_the_same(tmp_path):
    """Before version 5: share and base at the top, the extension apart, masks and frequencies among the tensors."""
    peer = random_peer(transformers.GPTNeoXConfig(**TINY | rotary(0.5, 500.0, rope_type="linear", factor=2.0)))
    peer.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    for number in range(2):
        tensors |= {
            f"gpt_neox.layers.{number}.attention.bias": torch.ones(1, 1, 40, 40).tril(),
            f"gpt_neox.layers.{number}.attention.masked_bias": torch.tensor(-1e9),
            f"gpt_neox.layers.{number}.attention.rotary_emb.inv_freq": torch.ones(4),
        }
    copy_with(tmp_path / "new", tmp_path / "old", tensors=tensors)
    old = PUBLISHED | {name: value for name, value in TINY.items() if name in PUBLISHED}
    old |= {"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read_values(old | {"partial_rotary_factor": 0.5, "rope_theta": 500}) == read_values(old)
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    ours = opened(tmp_path / "old")
    assert_same_bits(ours, opened(tmp_path / "new"))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old", dtype=torch.float32)
    ids = tokens(120, 33)
    theirs = peer_logits(peer, ids)
    assert_close(peer_logits(again, ids), theirs)
    assert_close(ours.forward(ids)[0], theirs)


@pytest.mark.parametrize(
    ("layers", "width", "heads", "vocabulary", "total", "inner"),
    [
        (6, 128, 4, 50304, 14_067_712, 1_189_888),
        (6, 256, 8, 50304, 30_494_720, 4_739_072),
        (6, 512, 8, 50304, 70_426_624, 18_915_328),
        (12, 768, 12, 50304, 162_322_944, 85_056_000),
        (24, 1024, 16, 50304, 405_334_016, 302_311_424),
        (16, 2048, 8, 50304, 1_011_781_632, 805_736_448),
        (24, 2048, 16, 50304, 1_414_647_808, 1_208_602_624),
        (32, 2560, 32, 50304, 2_775_208_960, 2_517_652_480),
        (32, 4096, 32, 50432, 6_857_302_016, 6_444_163_072),
        (36, 5120, 40, 50688, 11_846_072_320, 11_327_027_200),
        (44, 6144, 64, 50432, 20_554_567_680, 19_934_859_264),  # GPT-NeoX 20B itself
    ],
)
def test_published_sizes(layers, width, heads, vocabulary, total, inner):
    values = PUBLISHED | {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    values |= {"vocab_size": vocabulary, "intermediate_size": 4 * width}
    assert parameter_count(values) == total
    assert total - 2 * vocabulary * width == inner


def test_a_share_is_written_so_that_it_reads_as_the_same_number_of_components():
    """Also where turning / width, multiplied by the width again, falls just short of it."""
    for width in (46, 50, 64, 92, 98, 128):
        for turning in range(2, width + 1, 2):
            config = read_values(PUBLISHED).model_copy(update={"head_width": width, "rotary_width": turning})
            values = NEOX.write(config)
            share = values["rope_parameters"]["partial_rotary_factor"]
            assert values["rotary_pct"] == share <= 1
            assert int(width * share) == turning


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary_pct": 0.01}, "rotary_pct 0.01 of a head of width 64 is not an even number of components"),
        ({"rotary_pct": 0.05}, "rotary_pct 0.05 of a head of width 64 is not an even number of components"),
        ({"rotary_pct": 1.5}, "rotary_pct 1.5 of a head of width 64"),
        ({"rotary_pct": float("nan")}, "rotary_pct nan of a head of width 64"),
        ({"hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is not supported"),
        ({"num_attention_heads": 7}, "7 attention heads cannot share a width of 512"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_theta": 1e6}, "rope_theta 1000000.0 is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "surprise": 1}}, "the field surprise"),
        ({"multi_query": True}, "the field multi_query"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        read_values(PUBLISHED | changes)


def test_a_head_of_another_name_is_named(tmp_path):
    random_peer(transformers.GPTNeoXConfig(**TINY)).save_pretrained(tmp_path / "peer")
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    tensors["output.weight"] = tensors.pop("embed_out.weight")
    copy_with(tmp_path / "peer", tmp_path / "odd", tensors=tensors)
    assert "output.weight" in refusal(tmp_path / "odd")
