"""LLaMA, Mistral, Qwen2 and Qwen3: the logits of `transformers`, both ways, with every option; published sizes."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import (
    assert_close,
    check_family,
    check_logits,
    copy_with,
    opened,
    parameter_count,
    random_peer,
    read_values,
    tokens,
)
from pydantic import ValidationError
from safetensors.torch import load_file

from parlance.core.errors import UserError
from parlance.inference.generation import stream
from parlance.inference.sampling import SamplingConfig
from parlance.models.checkpoints import family_for, save_model
from parlance.models.transformer_config import RotaryScaling, TransformerConfig

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
}
WINDOW = {"sliding_window": 5, "use_sliding_window": True}


def theta(value: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value}}


CASES: dict[str, tuple[type, dict[str, Any], str]] = {
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 4}, "llama"),
    "llama, grouped, tied": (transformers.LlamaConfig, theta(300.0) | {"tie_word_embeddings": True}, "llama"),
    "llama, biases, wide heads": (
        transformers.LlamaConfig,
        {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": 1},
        "llama",
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": 5}, "mistral"),
    "mistral, no window": (transformers.MistralConfig, {"sliding_window": None}, "llama"),
    "qwen2": (transformers.Qwen2Config, {}, "qwen2"),
    "qwen2, window": (transformers.Qwen2Config, WINDOW | {"max_window_layers": 1}, "qwen2"),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16, "num_hidden_layers": 1}, "qwen3"),
    "qwen3, biases, tied": (
        transformers.Qwen3Config,
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        "qwen3",
    ),
    "qwen3, window": (transformers.Qwen3Config, WINDOW | {"head_dim": 8, "max_window_layers": 2}, "qwen3"),
    "qwen3, window in turns": (
        transformers.Qwen3Config,
        WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "qwen3",
    ),
}
"""Configuration, options, and the family that it is written as."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, tmp_path):
    kind, options, family = CASES[case]
    ours = check_family(kind(**TINY | options), tmp_path, lengths=(1, 7, 40), strict=case == "qwen3")
    assert family_for(ours.config).name == family
    assert (ours.config.sliding_window == 5) == (("window" in case and "no window" not in case) or case == "mistral")


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, all its fields": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "attention_factor": 0.9,
    },
    "yarn, scales of DeepSeek": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_parity_of_longer_contexts(scaling, tmp_path):
    """Below and beyond the original context of 16, and beyond the extended one of 64."""
    rope = SCALINGS[scaling] | {"rope_theta": 500.0}
    config = transformers.LlamaConfig(**TINY, head_dim=16, rope_parameters=rope)
    ours = check_family(config, tmp_path, lengths=(1, 12, 33, 80), strict=False)
    assert family_for(ours.config).name == "llama"


def test_parity_of_the_dynamic_extension(tmp_path):
    """Beyond the context of 64 the base grows with the text; keys in a cache keep the base of their time, as there."""
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 500.0}
    config = transformers.LlamaConfig(**TINY, head_dim=16, rope_parameters=rope)
    ours = check_family(config, tmp_path, lengths=(1, 33, 64, 100), padded=False, cached=False, strict=False)
    # A fresh peer: theirs remembers the longest text that it has seen and goes on with its base.
    peer = random_peer(config)
    ids, state, past = tokens(97, 90), None, None
    with torch.inference_mode():
        for piece in ids.split([60, 1, 1, 8, 1, 19], dim=1):
            out = peer(input_ids=piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits, state = ours.forward(piece, state)
            assert_close(logits, out.logits)


def test_an_extension_changes_something(tmp_path):
    """Each extension gives other logits than none, so that parity means something."""
    plain = random_peer(transformers.LlamaConfig(**TINY, head_dim=16, **theta(500.0)))
    ids = tokens(97, 80)
    with torch.inference_mode():
        expected = plain(input_ids=ids).logits
    for number, scaling in enumerate([*SCALINGS.values(), {"rope_type": "dynamic", "factor": 3.0}]):
        rope = scaling | {"rope_theta": 500.0}
        config = transformers.LlamaConfig(**TINY, head_dim=16, rope_parameters=rope)
        plain.config.__dict__.update(rope_parameters=config.rope_parameters)
        plain.save_pretrained(tmp_path / str(number))
        with torch.inference_mode():
            assert (opened(tmp_path / str(number)).forward(ids)[0] - expected).abs().max() > 1e-2, scaling


# --- configurations --------------------------------------------------------------------------------------------------

LLAMA_7B = {
    "architectures": ["LLaMAForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "pad_token_id": -1,
    "rms_norm_eps": 1e-06,
    "torch_dtype": "float16",
    "transformers_version": "4.27.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_2_70B = LLAMA_7B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "max_position_embeddings": 4096,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
LLAMA_31_8B = LLAMA_7B | {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
LLAMA_32_1B = LLAMA_31_8B | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": LLAMA_31_8B["rope_scaling"] | {"factor": 32.0},
    "tie_word_embeddings": True,
}
LLAMA_32_3B = LLAMA_32_1B | {
    "head_dim": 128,
    "hidden_size": 3072,
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN3_06B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2_05B = {name: value for name, value in QWEN3_06B.items() if name not in ("head_dim", "attention_bias")} | {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "sliding_window": 131072,
}


def llama(layers: int, width: int, heads: int, mlp: int) -> dict[str, Any]:
    return LLAMA_7B | {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
    }


def qwen3(layers: int, width: int, mlp: int, heads: int, tied: bool) -> dict[str, Any]:
    return QWEN3_06B | {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }


SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "llama 7b": (LLAMA_7B, 6_738_415_616),
    "llama 13b": (llama(40, 5120, 40, 13824), 13_015_864_320),
    "llama 33b": (llama(60, 6656, 52, 17920), 32_528_943_616),
    "llama 65b": (llama(80, 8192, 64, 22016), 65_285_660_672),
    "alpaca 7b": (LLAMA_7B | {"vocab_size": 32001}, 6_738_415_616 + 2 * 4096),
    "llama 2 70b": (LLAMA_2_70B, 68_976_648_192),
    "llama 3.1 8b": (LLAMA_31_8B, 8_030_261_248),
    "llama 3.2 1b": (LLAMA_32_1B, 1_235_814_400),
    "llama 3.2 3b": (LLAMA_32_3B, 3_212_749_824),
    "mistral 7b": (MISTRAL_7B, 7_241_732_096),
    "qwen2 0.5b": (QWEN2_05B, 494_032_768),
    "qwen3 0.6b": (QWEN3_06B, 596_049_920),
    "qwen3 1.7b": (qwen3(28, 2048, 6144, 16, True), 1_720_574_976),
    "qwen3 4b": (qwen3(36, 2560, 9728, 32, True), 4_022_468_096),
    "qwen3 8b": (qwen3(36, 4096, 12288, 32, False), 8_190_735_360),
}


@pytest.mark.parametrize("model", SIZES, ids=str)
def test_published_sizes(model):
    values, count = SIZES[model]
    assert parameter_count(values) == count


def test_what_published_configurations_mean():
    assert read_values(LLAMA_7B).context_length == 2048
    long = read_values(LLAMA_31_8B)
    assert long.rope_theta == 500_000.0
    assert long.rope_scaling == RotaryScaling(kind="llama3", factor=8.0, original_context_length=8192)
    assert read_values(MISTRAL_7B).sliding_window == 4096
    assert read_values(QWEN2_05B).sliding_window is None


def test_what_a_missing_field_means():
    """As in `transformers`: a missing window is Mistral's 4096, null is none."""
    short = {name: value for name, value in MISTRAL_7B.items() if name not in ("sliding_window", "rope_theta")}
    assert read_values(short).sliding_window == transformers.MistralConfig(**short).sliding_window == 4096
    assert read_values(short).rope_theta == 10_000.0
    assert read_values(MISTRAL_7B | {"sliding_window": None}).sliding_window is None
    layers = {"num_hidden_layers": 30, "use_sliding_window": True}
    short = {name: value for name, value in QWEN3_06B.items() if name not in ("sliding_window", "max_window_layers")}
    ours, theirs = read_values(short | layers), transformers.Qwen3Config(**short | layers)
    assert ours.sliding_window == theirs.sliding_window == 4096
    kinds = ["sliding_attention" if ours.window(number) else "full_attention" for number in range(30)]
    assert kinds == theirs.layer_types


def test_the_old_spelling_of_an_extension_is_read():
    new = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}
    old = {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0}
    assert read_values(LLAMA_7B | old) == read_values(LLAMA_7B | new)
    assert read_values(LLAMA_7B | old).rope_theta == 500.0


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (LLAMA_7B | {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA_7B | {"num_attention_heads": 0}, "0 attention heads"),
        (LLAMA_7B | {"sliding_window": 5}, "sliding_window"),
        (LLAMA_7B | {"rope_scaling": {"type": "spiral", "factor": 2.0}}, "spiral"),
        (LLAMA_7B | {"rope_scaling": {"type": "linear"}}, "factor"),
        (LLAMA_7B | {"rope_scaling": {"type": "linear", "factor": 2.0, "wobble": 1}}, "wobble"),
        (LLAMA_7B | {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        (
            LLAMA_7B | {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512}},
            "original_max_position_embeddings",
        ),
        (
            LLAMA_7B | {"rope_scaling": {"factor": 2.0}, "rope_parameters": {"factor": 4.0}},
            "different values of factor",
        ),
        (LLAMA_7B | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary"),
        (LLAMA_7B | {"rope_scaling": "linear"}, "rope_scaling"),
        (
            LLAMA_7B | {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "rope_theta is 1000000.0, and within rope_parameters or rope_scaling 10000.0",
        ),
        (MISTRAL_7B | {"layer_types": ["full_attention"] * 32}, "layer_types"),
        (QWEN3_06B | {"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
        (QWEN3_06B | {"layer_types": ["full_attention"]}, "layer_types"),
        ({name: value for name, value in LLAMA_7B.items() if name != "hidden_size"}, "hidden_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_named(values, name):
    with pytest.raises(UserError, match=name):
        read_values(values)


def test_an_absurd_number_of_layers_is_refused_before_they_are_listed():
    values = {name: value for name, value in QWEN3_06B.items() if name != "layer_types"} | {"num_hidden_layers": 10**7}
    tracemalloc.start()
    try:
        with pytest.raises(ValidationError, match="layers"):
            read_values(values)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_an_extension_does_not_read_is_no_obstacle():
    """A linear extension has no original length, a model without rotary positions no base."""
    linear = RotaryScaling(kind="linear", factor=2.0, original_context_length=7, beta_fast=9.0)
    config = TransformerConfig(vocab_size=97, context_length=64, width=48, layers=1, heads=4, rope_scaling=linear)
    assert family_for(config).name == "qwen3"
    dynamic = linear.model_copy(update={"kind": "dynamic"})
    assert family_for(config.model_copy(update={"rope_scaling": dynamic})).name == "parlance-transformer"


def test_old_files_with_rotary_tables_open(tmp_path):
    peer = random_peer(transformers.LlamaConfig(**TINY))
    peer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.ones(6) for number in range(3)}
    copy_with(tmp_path, tmp_path / "old", tensors=tensors | extra)
    check_logits(opened(tmp_path / "old"), peer, [9])


def test_the_greedy_text_of_a_windowed_model(tmp_path):
    """Mistral beyond its window, continued one token at a time, says what `transformers` says."""
    peer = random_peer(transformers.MistralConfig(**TINY, sliding_window=5))
    peer.save_pretrained(tmp_path)
    prompt = tokens(97, 9, rows=1)
    theirs = peer.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=30)[0, 9:]
    ours = list(stream(opened(tmp_path), prompt[0].tolist(), SamplingConfig(max_tokens=30, temperature=0.0), stop=()))
    assert ours == theirs.tolist()


def test_generation_settings_are_written(tmp_path):
    ours = opened(written(tmp_path / "peer"))
    save_model(tmp_path / "ours", ours, end_of_text=3, pad=5, end_of_turn=7)
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (settings.eos_token_id, settings.pad_token_id) == ([7, 3], 5)


def written(folder: Path) -> Path:
    """A small LLaMA as `transformers` writes it."""
    random_peer(transformers.LlamaConfig(**TINY)).save_pretrained(folder)
    return folder
