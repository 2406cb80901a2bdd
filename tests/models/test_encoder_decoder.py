"""The encoder-decoder of two Transformers: its one embedding, its counts, its configuration.

What must hold of any model with a source is in test_conditional_models.py; that the whole computes what `transformers`
computes is in families/test_t5.py.
"""

import math

import pytest
import torch
from conditional_samples import SENTINELS, TRANSFORMERS, V, close, ids, stacks, transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parlance.models.building import build
from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

SIZED = stacks()


@pytest.fixture(params=TRANSFORMERS, ids=str)
def model(request) -> EncoderDecoder:
    return transformer(**TRANSFORMERS[request.param])


# --- precision, copies -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_bfloat16_is_near_float32_whole_and_in_steps(model):
    source, target = ids(2, 20), ids(2, 24, seed=1)
    exact = model.forward(target, model.begin(source, 24))[0]
    model.compute_dtype = torch.bfloat16
    assert model.encoder.compute_dtype == model.decoder.compute_dtype == torch.bfloat16
    state = model.begin(source, 24)
    assert state.keys[0].dtype == state.memory.keys[0].dtype == torch.bfloat16
    first, state = model.forward(target[:, :20], state)
    steps = [model.forward(target[:, t : t + 1], state)[0] for t in range(20, 24)]
    rough = torch.cat([first, *steps], 1)
    assert rough.dtype == torch.float32
    assert float((rough - exact).norm() / exact.norm()) < 0.05


def test_the_embedding_is_one_parameter_also_in_a_copy():
    for tied in (False, True):
        model = transformer(tie_embeddings=tied)
        names = dict(model.named_parameters())
        assert [name for name in names if "embed" in name] == ["embed_tokens.weight"]
        assert [name for name in names if "lm_head" in name] == ([] if tied else ["decoder.lm_head.weight"])
        twin = model.inference_copy()
        assert twin.encoder.embed_tokens is twin.decoder.embed_tokens is twin.embed_tokens
        assert twin.parameter_count() == model.parameter_count()
        target = ids(1, 4)
        close(twin.forward(target)[0], model.forward(target)[0].detach())


# --- sizes, work, initialisation -------------------------------------------------------------------------------------


def test_counts_of_parameters():
    config = SIZED
    model = EncoderDecoder(config)
    D, L, E = config.decoder.width, config.decoder.layers, config.decoder.head_width
    matrices = config.encoder.matrix_parameters() + config.decoder.matrix_parameters()
    norms = (2 * L + 1) * D + (3 * L + 1) * D + 2 * E * (L + 2 * L)  # of the stream; of queries and keys
    assert model.parameter_count() == matrices + 2 * (V + SENTINELS) * D + norms


@pytest.mark.parametrize("length", [32, 64])
def test_floating_point_operations_are_those_torch_counts(length):
    """Half of the tokens source, half target. torch counts the masked half of the target's self-attention too."""
    model = transformer()
    source, target = ids(2, length // 2), ids(2, length // 2, seed=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model.hidden(target, memory=model.encode(source)))
    decoder = model.config.decoder
    masked = 4.0 * decoder.layers * decoder.heads * decoder.head_width * (length / 2) / 2 * target.numel()
    assert counter.get_total_flops() == model.forward_flops_per_token(length) * 2 * length + masked
    assert model.training_flops_per_token(length) == 3 * model.forward_flops_per_token(length)


def test_initialisation():
    model, again = EncoderDecoder(SIZED), EncoderDecoder(SIZED)
    for twin in (model, again):
        twin.initialise(torch.Generator().manual_seed(3))
    torch.testing.assert_close(model.state_dict(), again.state_dict(), atol=0, rtol=0)
    source, target = ids(2, 9), ids(2, 8, seed=1)
    # Every branch begins at zero, so the decoder begins as its norm over the embedding; and the loss is a guess's.
    hidden = model.hidden(target, memory=model.encode(source))
    torch.testing.assert_close(hidden, model.decoder.norm(model.embed_tokens(target)))
    loss = torch.nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), target.flatten())
    assert float(loss.detach()) == pytest.approx(math.log(V + SENTINELS), abs=0.01)
    loss.backward()
    for layer in model.decoder.layers:
        assert float(layer.cross_attn.o_proj.weight.grad.norm()) > 0
    # With a head of its own, the embedding is drawn for the stream, N(0, 1).
    wide = EncoderDecoder(stacks(width=256))
    wide.initialise(torch.Generator().manual_seed(0))
    assert float(wide.embed_tokens.weight.detach().std()) == pytest.approx(1.0, rel=0.05)


@torch.inference_mode()
def test_fresh_scores_are_of_one_size_however_they_are_scaled():
    for scale in (None, 1.0, 0.01):
        model = EncoderDecoder(stacks(width=128, head_width=64, attention_scale=scale, qk_norm=False))
        model.initialise(torch.Generator().manual_seed(0))
        x = torch.randn(1, 200, 128, generator=torch.Generator().manual_seed(1))
        for attention in (model.encoder.layers[0].self_attn, model.decoder.layers[1].cross_attn):
            scores = attention.queries(x) @ attention.keys_values(x)[0].mT * attention.scale
            assert float(scores.std()) == pytest.approx(1.0, rel=0.1)


# --- configuration, checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("encoder", {"causal": True}, "encoder sees its whole source"),
        ("encoder", {"cross_attention": True}, "no cross_attention"),
        ("decoder", {"causal": False}, "decoder is causal"),
        ("decoder", {"cross_attention": False}, "decoder is causal and has cross_attention"),
        ("encoder", {"vocab_size": V}, r"encoder.vocab_size \(50\) must be vocab_size \+ sentinels \(50 \+ 6\)"),
        ("decoder", {"width": 64}, "encoder.width and decoder.width must be equal"),
        ("decoder", {"tie_embeddings": True}, "encoder.tie_embeddings and decoder.tie_embeddings"),
        ("encoder", {"pooler": True}, "encoder.pooler is of the head"),
        ("encoder", {"logit_scale": 0.5}, "encoder.logit_scale is of the head"),
        ("", {"start_token": V + SENTINELS}, "rows of the embedding"),
        ("", {"empty_source": [V + SENTINELS]}, "rows of the embedding"),
        ("", {"empty_source": []}, "at least 1"),
        ("", {"empty_source": [-1]}, "greater than or equal to 0"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(where, changes, message):
    values = SIZED.model_dump()
    values = values | {where: values[where] | changes} if where else values | changes
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig(**values)


def test_canonical_says_the_same_model_in_one_way():
    filled = stacks(kv_heads=SIZED.decoder.heads, mlp_width=SIZED.decoder.feed_forward_width)
    assert filled != SIZED
    assert filled.canonical() == SIZED.canonical()
    assert stacks(mlp_width=72).canonical() != SIZED.canonical()


def test_what_t5_cannot_say_is_written_in_our_own_form_bit_for_bit(model, tmp_path):
    assert family_for(model.config).name == "parlance-encoder-decoder"
    save_model(tmp_path, model, end_of_text=2, pad=1)
    again = load_model(tmp_path)
    assert isinstance(again, EncoderDecoder)
    assert again.config == model.config
    torch.testing.assert_close(again.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert again.encoder.embed_tokens.weight is again.embed_tokens.weight
    target = ids(2, 5)
    torch.testing.assert_close(again.forward(target)[0], model.forward(target)[0], atol=0, rtol=0)


def test_it_is_built_from_its_configuration():
    assert isinstance(build(SIZED), EncoderDecoder)
