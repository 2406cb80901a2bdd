"""The encoder-decoder against what must hold of any: sources, padding, caches, sentinels.

That the whole computes what `transformers` computes is in families/test_t5.py.
"""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from parlance.models.building import build
from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.models.conditional import ConditionalLanguageModel
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from parlance.models.transformer_config import TransformerConfig

V, SENTINELS = 50, 6
SIZED = EncoderDecoderConfig.sized(
    vocab_size=V, context_length=64, width=32, layers=2, start_token=1, empty_source=(2,), sentinels=SENTINELS
)
SHAPES = {
    "default": {},
    "grouped, relative": {"heads": 4, "kv_heads": 2, "head_width": 10, "positions": "relative"},
    "tied, learned, post-norm": {
        "tie_embeddings": True,
        "positions": "learned",
        "norm": "layer",
        "norm_placement": "post",
        "gated_mlp": False,
    },
}


def configured(base: EncoderDecoderConfig = SIZED, **changes: object) -> EncoderDecoderConfig:
    """`base` with fields of both stacks changed."""
    values = base.model_dump()
    for stack in ("encoder", "decoder"):
        values[stack] |= changes
    return EncoderDecoderConfig(**values)


def made(seed: int = 0, **changes: object) -> EncoderDecoder:
    """A model with every weight random."""
    model = EncoderDecoder(configured(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, spread, generator=generator)
    return model


@pytest.fixture(params=SHAPES, ids=str)
def model(request) -> EncoderDecoder:
    return made(**SHAPES[request.param])


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


# --- source, target, state -------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_target_is_causal_and_the_source_is_not(model):
    source, target = ids(2, 11), ids(2, 13, seed=1)
    before = model.logits(model.hidden(target, memory=model.encode(source)))
    for place in (0, 5, 12):
        changed = target.clone()
        changed[:, place:] = (changed[:, place:] + 7) % V
        after = model.logits(model.hidden(changed, memory=model.encode(source)))
        close(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])
    for place in (0, 10):
        changed = source.clone()
        changed[:, place] = (changed[:, place] + 7) % V
        after = model.logits(model.hidden(target, memory=model.encode(changed)))
        assert ((after - before).abs().amax(-1) > 1e-4).all()  # every token of the target sees every one of the source


@torch.inference_mode()
def test_writing_in_pieces_equals_writing_at_once(model):
    source, target = ids(3, 9), ids(3, 48, seed=1)
    whole = model.logits(model.hidden(target, memory=model.encode(source)))[..., :V]
    for pieces in ([48], [1] * 48, [47, 1], [5, 1, 1, 30, 11]):
        for capacity in (4, 100):
            state = model.begin(source, capacity)
            parts = []
            for piece in target.split(pieces, dim=1):
                logits, state = model.forward(piece, state)
                parts.append(logits)
            close(torch.cat(parts, dim=1), whole)
            assert state.lengths.tolist() == [48, 48, 48]


@torch.inference_mode()
def test_without_a_source_it_is_a_language_model_of_the_empty_source(model):
    target = ids(2, 8)
    empty = torch.tensor([list(model.empty_source)] * 2)
    expected = model.logits(model.hidden(target, memory=model.encode(empty)))
    close(model.logits(model.hidden(target)), expected)
    logits, state = model.forward(target[:, :5])
    close(torch.cat([logits, model.forward(target[:, 5:], state)[0]], 1), expected[..., :V])
    close(model.forward(target, model.new_state(2, 8))[0], expected[..., :V])


@torch.inference_mode()
def test_padding_reaches_nothing(model):
    sources = [ids(1, length, seed=length) for length in (1, 7, 12)]
    targets = [ids(1, length, seed=10 + length) for length in (9, 4, 10)]
    for side in ("left", "right"):
        for filler in (0, V - 1):
            padded, mask = torch.full((3, 12), filler), torch.zeros(3, 12, dtype=torch.bool)
            for row, source in enumerate(sources):
                S = source.shape[1]
                at = slice(0, S) if side == "right" else slice(12 - S, 12)
                padded[row, at], mask[row, at] = source[0], True
            target = torch.full((3, 10), filler)
            for row, tokens in enumerate(targets):
                target[row, : tokens.shape[1]] = tokens[0]
            together = model.hidden(target, memory=model.encode(padded, mask))
            state = model.begin(padded, 10, mask)
            stepped = torch.cat([model.hidden(target[:, t : t + 1], state) for t in range(10)], 1)
            for row, (source, tokens) in enumerate(zip(sources, targets, strict=True)):
                alone = model.hidden(tokens, memory=model.encode(source))[0]
                close(together[row, : len(alone)], alone)
                close(stepped[row, : len(alone)], alone)


@torch.inference_mode()
def test_a_mask_of_all_tokens_is_no_mask(model):
    source, target = ids(2, 9), ids(2, 5, seed=1)
    plain = model.hidden(target, memory=model.encode(source))
    close(model.hidden(target, memory=model.encode(source, torch.ones(2, 9, dtype=torch.bool))), plain)


@torch.inference_mode()
def test_rows_leave_and_repeat_with_their_sources(model):
    source, target = ids(4, 7), ids(4, 9, seed=1)
    mask = torch.arange(7) < torch.tensor([7, 3, 5, 1])[:, None]
    whole = model.logits(model.hidden(target, memory=model.encode(source, mask)))[..., :V]
    _, state = model.forward(target[:, :4], model.begin(source, 6, mask))
    rows = torch.tensor([3, 1, 1])
    logits, _ = model.forward(target[rows, 4:], state.select(rows))
    close(logits, whole[rows, 4:])
    close(
        model.hidden(target[rows], memory=model.encode(source, mask).select(rows)),
        model.hidden(target, memory=model.encode(source, mask))[rows],
    )


@torch.inference_mode()
def test_sentinels_are_scored_in_training_and_never_drawn():
    model = made()
    assert isinstance(model, ConditionalLanguageModel)
    assert (model.vocab_size, model.config.first_sentinel, model.start_token) == (V, V, 1)
    target = torch.tensor([[1, V, V + SENTINELS - 1]])
    hidden = model.hidden(target, memory=model.encode(torch.tensor([[3, V + 1]])))
    assert model.logits(hidden).shape == (1, 3, V + SENTINELS)
    assert model.forward(target)[0].shape == (1, 3, V)


# --- precision, copies, gradients ------------------------------------------------------------------------------------


def test_gradients_reach_every_weight_and_are_float32_in_bfloat16(model):
    source, target = ids(4, 12), ids(4, 16, seed=1)
    mask = torch.arange(12) < torch.tensor([12, 3, 5, 1])[:, None]
    gradients = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.compute_dtype = dtype
        model.zero_grad()
        hidden = model.hidden(target, memory=model.encode(source, mask))
        assert hidden.dtype == dtype
        torch.nn.functional.cross_entropy(model.logits(hidden).float().flatten(0, 1), target.flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == torch.float32
            assert float(parameter.grad.norm()) > 0, name
        gradients[dtype] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert float(torch.nn.functional.cosine_similarity(*gradients.values(), dim=0)) > 0.99


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
        model = made(tie_embeddings=tied)
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
    model = made()
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
    wide = EncoderDecoder(configured(width=256))
    wide.initialise(torch.Generator().manual_seed(0))
    assert float(wide.embed_tokens.weight.detach().std()) == pytest.approx(1.0, rel=0.05)


@torch.inference_mode()
def test_fresh_scores_are_of_one_size_however_they_are_scaled():
    for scale in (None, 1.0, 0.01):
        model = EncoderDecoder(configured(width=128, head_width=64, attention_scale=scale, qk_norm=False))
        model.initialise(torch.Generator().manual_seed(0))
        x = torch.randn(1, 200, 128, generator=torch.Generator().manual_seed(1))
        for attention in (model.encoder.layers[0].self_attn, model.decoder.layers[1].cross_attn):
            scores = attention.queries(x) @ attention.keys_values(x)[0].mT * attention.scale
            assert float(scores.std()) == pytest.approx(1.0, rel=0.1)


def test_it_learns_to_reverse_what_it_reads():
    """Only cross-attention can carry the source over."""
    sized = EncoderDecoderConfig.sized(
        vocab_size=9, context_length=8, width=32, layers=1, start_token=1, empty_source=(0,)
    )
    model = EncoderDecoder(configured(sized, positions="learned"))
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - step / 75))
    for _ in range(150):
        source = torch.randint(2, 9, (32, 4), generator=generator)
        target = source.flip(1)
        inputs = torch.cat([torch.full((32, 1), model.start_token), target[:, :-1]], 1)
        logits = model.logits(model.hidden(inputs, memory=model.encode(source)))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    source = torch.randint(2, 9, (200, 4), generator=generator)
    with torch.inference_mode():
        state, tokens, written = model.begin(source, 4), torch.full((200, 1), model.start_token), []
        for _ in range(4):
            logits, state = model.forward(tokens, state)
            tokens = logits[:, -1].argmax(-1, keepdim=True)
            written.append(tokens)
    assert float((torch.cat(written, 1) == source.flip(1)).all(1).float().mean()) > 0.95


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
    ],
)
def test_stacks_that_do_not_fit_are_refused(where, changes, message):
    values = SIZED.model_dump()
    values = values | {where: values[where] | changes} if where else values | changes
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig(**values)


def test_canonical_says_the_same_model_in_one_way():
    filled = configured(kv_heads=SIZED.decoder.heads, mlp_width=SIZED.decoder.feed_forward_width)
    assert filled != SIZED
    assert filled.canonical() == SIZED.canonical()
    assert configured(mlp_width=72).canonical() != SIZED.canonical()


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
    assert SIZED.encoder.head_width == 32
    wide = EncoderDecoderConfig.sized(
        vocab_size=9, context_length=8, width=128, layers=3, start_token=0, empty_source=(1,)
    )
    assert (wide.decoder.heads, wide.decoder.head_width, wide.encoder.layers, wide.decoder.layers) == (2, 64, 3, 3)
    assert isinstance(wide.encoder, TransformerConfig)
