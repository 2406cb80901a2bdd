"""From a kind and sizes to a configuration: encoders and encoder-decoders. Other kinds are in test_pretraining.py."""

import pytest

from parlance.core.errors import UserError
from parlance.models.building import build
from parlance.models.checkpoints import family_for
from parlance.models.encoder_decoder import EncoderDecoderConfig
from parlance.models.recurrent_attention import RecurrentAttentionConfig
from parlance.training.architectures import ARCHITECTURES, configure
from parlance.training.denoising import sentinels_needed

SIZES = {"layers": 2, "width": 128, "vocab_size": 300, "context_length": 64}
FAMILIES = {
    "transformer": "qwen3",
    "recurrent": "parlance-recurrent",
    "convolutional": "parlance-convolutional",
    "feedforward": "parlance-feedforward",
    "encoder": "bert",
    "encoder-decoder": "t5",
    "recurrent-attention": "parlance-recurrent-attention",
}


def test_every_kind_is_written_as_the_family_that_others_open():
    assert set(FAMILIES) == set(ARCHITECTURES)
    for kind, family in FAMILIES.items():
        config = configure(kind, **SIZES, fields={})
        assert family_for(config).name == family
        assert build(config).embed_tokens.num_embeddings >= 300
        assert ARCHITECTURES[kind].ladder == tuple(sorted(ARCHITECTURES[kind].ladder))


def test_an_encoder_has_one_more_row_for_the_mask():
    assert configure("encoder", **SIZES, fields={}).vocab_size == 301


@pytest.mark.parametrize("kind", ["encoder-decoder", "recurrent-attention"])
def test_sentinels_are_as_many_as_a_window_needs_and_one_row_begins(kind):
    config = configure(kind, **SIZES, fields={})
    assert config.vocab_size == config.first_sentinel == 300
    assert config.sentinels == sentinels_needed(64) + 1 == 5
    assert config.start_token == 304
    assert config.empty_source == (304,)
    own = configure(kind, **SIZES, fields={"sentinels": 9, "start_token": 2, "empty_source": [3]})
    assert (own.sentinels, own.start_token, own.empty_source) == (9, 2, (3,))


def test_both_stacks_take_fields_and_each_its_own():
    fields = {"norm": "layer", "heads": 4, "encoder": {"layers": 3}, "decoder": {"mlp_width": 64}}
    config = configure("encoder-decoder", **SIZES, fields=fields)
    assert isinstance(config, EncoderDecoderConfig)
    for stack in (config.encoder, config.decoder):
        assert (stack.norm, stack.heads, stack.head_width) == ("layer", 4, 32)
        assert stack.scale == 0.25  # a power of two near 1 / sqrt(32), as in a T5's files
        assert stack.context_length == 64
        assert stack.vocab_size == 305
    assert (config.encoder.layers, config.decoder.layers) == (3, 2)
    assert config.decoder.mlp_width == 64 != config.encoder.mlp_width


def test_a_recurrent_encoder_decoder_takes_its_fields():
    config = configure("recurrent-attention", **SIZES, fields={"cell": "lstm", "attention": "additive"})
    assert isinstance(config, RecurrentAttentionConfig)
    assert (config.cell, config.attention, config.layers, config.width) == ("lstm", "additive", 2, 128)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (
            "encoder-decoder",
            {"nonsense": 1},
            r"encoder-decoder model has no field nonsense; its fields: .*, norm, ",
        ),
        ("encoder-decoder", {"decoder": 3}, r"model\.decoder is 3; give a mapping"),
        ("encoder-decoder", {"head_width": 48}, "width 128 is not a multiple of 48"),
        ("encoder-decoder", {"sentinels": "many"}, "model.sentinels is 'many'; give a whole number"),
        ("transformer", {"causal": False}, r"model\.causal is not set there: it follows from the kind of model"),
        ("transformer", {"heads": 0}, r"model\.heads is 0; give a whole number that divides the width 128"),
        ("transformer", {"heads": "a"}, r"model\.heads is 'a'; give a whole number"),
        ("encoder-decoder", {"sentinels": 2}, r"model\.sentinels is 2; give a whole number, 3 or more"),
        ("encoder-decoder", {"layers": 3}, r"model\.layers is not set there"),
        ("recurrent-attention", {"start_token": 900}, "start_token and empty_source are rows of the embedding"),
        (
            "recurrent-attention",
            {"heads": 2},
            "recurrent-attention model has no field heads; its fields: attention, cell",
        ),
    ],
)
def test_what_does_not_fit_is_a_user_error(kind, fields, message):
    with pytest.raises(UserError, match=message):
        configure(kind, **SIZES, fields=fields)
