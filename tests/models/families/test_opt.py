"""OPT's files: logits of `transformers` both ways, 350m's own form, the published configurations and sizes."""

import pytest
import transformers
from parity import check_family, parameter_count, read_values

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for

TINY = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 72}
TINY |= {"max_position_embeddings": 40}

PUBLISHED = {
    "_name_or_path": "facebook/opt-125m",
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "eos_token_id": 2,
    "ffn_dim": 3072,
    "hidden_size": 768,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0",
    "use_cache": True,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}

OF_350M = {
    "do_layer_norm_before": False,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "word_embed_proj_dim": 512,
}

SHAPES = {
    "125m": {},
    "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "projected, no final norm": {"word_embed_proj_dim": 48, "_remove_final_layer_norm": True},
    "no biases, gelu, untied": {"enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
    config = transformers.OPTConfig(**TINY | SHAPES[shape])
    ours = check_family(config, tmp_path, lengths=(1, 7, 40), strict=shape == "350m")
    assert (ours.project_in is None) == ("projected" not in shape and shape != "350m")
    assert (ours.norm is None) == (shape in ("350m", "projected, no final norm"))


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 125_239_296),
        (OF_350M, 331_196_416),
        (
            {
                "ffn_dim": 8192,
                "hidden_size": 2048,
                "num_attention_heads": 32,
                "num_hidden_layers": 24,
                "word_embed_proj_dim": 2048,
                "_remove_final_layer_norm": False,
            },
            1_315_758_080,
        ),
    ],
)
def test_published_sizes(more, count):
    assert parameter_count(PUBLISHED | more) == count


def test_old_files_say_less():
    """Biases, the head's tie and the final norm have fields only since later versions; null stands for no value."""
    absent = {"enable_bias": None, "_remove_final_layer_norm": None, "word_embed_proj_dim": None}
    config = read_values(PUBLISHED | absent)
    assert config == read_values(PUBLISHED)
    assert config.attention_bias
    assert config.mlp_bias
    assert config.final_norm
    assert config.tie_embeddings
    assert config.position_offset == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine False is not supported"),
        ({"activation_function": "gelu_10"}, "activation_function 'gelu_10' is not supported"),
        ({"num_attention_heads": 10}, "10 attention heads cannot share a width of 768"),
        ({"ffn_dim": None}, "no field ffn_dim"),
        ({"do_layer_norm_before": "yes"}, "do_layer_norm_before is 'yes', not true or false"),
        ({"n_embd": 768}, "the field n_embd"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        read_values(PUBLISHED | changes)


@pytest.mark.parametrize(
    "change",
    [
        {"norm_epsilon": 1e-6},
        {"position_offset": 3},
        {"mlp_bias": False},
        {"embedding_width": 768},
        {"norm_placement": "post"},
        {"sliding_window": 9},
    ],
)
def test_it_does_not_claim_what_it_cannot_say(change):
    config = read_values(PUBLISHED)
    assert family_for(config).name == "opt"
    assert family_for(config.model_copy(update=change)).name != "opt"
