"""T5 1.0 and 1.1 against `transformers`: padding on both sides, cached and greedy decoding, gradients, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import (
    END,
    PAD,
    assert_close,
    assert_same_bits,
    check_shards,
    check_tensors_of_the_file,
    check_unknown_field,
    copy_with,
    padding_mask,
    parameter_count,
    random_peer,
    read_values,
    refusal,
    tokens,
)
from safetensors.torch import load_file

from parlance.models.checkpoints import family_for, load_model, read_config, save_model
from parlance.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

SIZES = {
    "vocab_size": 60,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 2,
}
VERSIONS = {
    "1.0": {},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "gated silu": {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False, "num_decoder_layers": None},
    "1.1, made tied": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "tied": True},
}
SMALL = {  # as published for t5-small
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"early_stopping": True, "num_beams": 4, "prefix": "summarize: "}},
    "vocab_size": 32128,
}
BASE = SMALL | {"d_ff": 3072, "d_model": 768, "num_heads": 12, "num_layers": 12}
SMALL_11 = {  # as published for t5-v1_1-small
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}


def peer_of(version: str, **more: Any) -> Any:
    """A model of `transformers` with every parameter random, and (1.1) a head of its own."""
    values = SIZES | VERSIONS[version] | more
    tied = values.pop("tied", values.get("tie_word_embeddings", True))
    peer = random_peer(transformers.T5Config(**values), transformers.AutoModelForSeq2SeqLM)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("Attention.q.weight"):  # as T5 draws them: scores are not scaled afterwards
                parameter.mul_(values["d_kv"] ** -0.5)
    if not tied:  # transformers 5 makes every fresh model tied; only opening a file unties it
        head = torch.randn(peer.shared.weight.shape, generator=torch.Generator().manual_seed(1))
        peer.lm_head.weight = torch.nn.Parameter(head / 4)
    return peer


@pytest.fixture(params=VERSIONS, ids=str)
def peer(request) -> Any:
    return peer_of(request.param)


def opened(folder: Path) -> EncoderDecoder:
    model = load_model(folder)
    assert isinstance(model, EncoderDecoder)
    return model


def saved(peer: Any, folder: Path) -> EncoderDecoder:
    """The peer's checkpoint as we open it."""
    peer.save_pretrained(folder)
    return opened(folder)


def peer_logits(peer: Any, source: torch.Tensor, target: torch.Tensor, mask: Any = None, seen: Any = None) -> Any:
    with torch.inference_mode():
        return peer(input_ids=source, attention_mask=mask, decoder_input_ids=target, decoder_attention_mask=seen).logits


def test_it_computes_what_transformers_computes(peer, tmp_path):
    ours = saved(peer, tmp_path)
    assert ours.parameter_count() == sum(parameter.numel() for parameter in peer.parameters())
    assert (ours.start_token, ours.empty_source) == (2, (1,))
    for S, T in ((1, 1), (1, 7), (33, 5), (40, 33)):  # beyond the buckets' largest distance too
        source, target = tokens(60, S, rows=4), tokens(60, T, rows=4, seed=1)
        with torch.inference_mode():
            whole = ours.logits(ours.hidden(target, memory=ours.encode(source)))
            assert_close(whole, peer_logits(peer, source, target))
            if S > 1:
                # Sources padded on the left, the right, both sides; targets on the right.
                mask, seen = padding_mask(S), padding_mask(T)[[0, 0, 2, 2]]
                padded = ours.logits(ours.hidden(target, memory=ours.encode(source, mask)))
                assert_close(padded[seen], peer_logits(peer, source, target, mask.long(), seen.long())[seen])
                state, steps = ours.begin(source, 3, mask), []
                for piece in target.split([1] * (T // 2) + [T - T // 2], 1):
                    logits, state = ours.forward(piece, state)
                    steps.append(logits)
                assert_close(torch.cat(steps, 1), peer_logits(peer, source, target, mask.long()))


@pytest.mark.parametrize("version", VERSIONS)
def test_greedy_generation_is_that_of_transformers(version, tmp_path):
    peer = peer_of(version, num_decoder_layers=2)  # its generation fails where the decoder has more blocks
    ours = saved(peer, tmp_path)
    source, mask = tokens(60, 9, rows=4), padding_mask(9)
    theirs = peer.generate(
        source,
        attention_mask=mask.long(),
        do_sample=False,
        max_new_tokens=25,
        eos_token_id=-1,
        decoder_start_token_id=2,
    )
    state, written = ours.begin(source, 26, mask), [torch.full((4, 1), ours.start_token)]
    with torch.inference_mode():
        for _ in range(25):
            logits, state = ours.forward(written[-1], state)
            written.append(logits[:, -1].argmax(-1, keepdim=True))
    assert torch.cat(written, 1).tolist() == theirs.tolist()
    assert len(theirs[:, 1:].unique()) > 4


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_gradients_are_those_of_transformers(version, tmp_path):
    peer = peer_of(version)
    ours = saved(peer, tmp_path)
    source, inputs, targets = tokens(60, 12, rows=4), tokens(60, 8, rows=4, seed=1), tokens(60, 8, rows=4, seed=2)
    mask = padding_mask(12)
    logits = ours.logits(ours.hidden(inputs, memory=ours.encode(source, mask)))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    peer(input_ids=source, attention_mask=mask.long(), decoder_input_ids=inputs, labels=targets).loss.backward()
    theirs = dict(peer.named_parameters())
    family, config = read_config(tmp_path)
    mine, compared = dict(ours.named_parameters()), 0
    for entry in family.table(config):
        if not entry.optional:
            # d/d(f w) = 1/f d/dw: what `split` does to a weight, `join` does to its gradient.
            gradient = entry.join([theirs[entry.theirs].grad])
            torch.testing.assert_close(mine[entry.ours[0]].grad, gradient, atol=1e-5, rtol=1e-3)
            assert float(gradient.norm()) > 0
            compared += 1
    assert compared == len(mine)


def test_transformers_opens_our_checkpoint_and_we_get_it_back_bit_for_bit(peer, tmp_path):
    ours = saved(peer, tmp_path / "peer")
    assert family_for(ours.config).name == "t5"
    save_model(tmp_path / "ours", ours, end_of_text=END, pad=PAD)
    again, information = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not information[problem], (problem, information[problem])
    source, target = tokens(60, 30), tokens(60, 12, seed=1)
    assert_close(peer_logits(again.eval(), source, target), peer_logits(peer, source, target))
    assert again.generation_config.decoder_start_token_id == 2
    assert (again.generation_config.eos_token_id, again.generation_config.pad_token_id) == (END, PAD)
    returned = opened(tmp_path / "ours")
    assert returned.config == ours.config
    assert_same_bits(returned, ours)
    # And what transformers writes of it.
    assert_same_bits(saved(again, tmp_path / "again"), ours)


def test_our_own_model_in_its_form_opens_in_transformers_with_its_sentinels(tmp_path):
    _, config = _config_of(peer_of("1.1"), tmp_path / "peer")
    values = config.model_dump() | {"vocab_size": 54, "sentinels": 6, "start_token": 3, "empty_source": (4, 5)}
    config = EncoderDecoderConfig(**values)
    model = EncoderDecoder(config)
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.decoder.lm_head.weight.mul_(300)
    assert family_for(config).name == "t5"
    save_model(tmp_path / "ours", model, end_of_text=5, pad=3)
    assert opened(tmp_path / "ours").config == config
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    target = tokens(60, 12, seed=1)
    with torch.inference_mode():
        ours = model.logits(model.hidden(target))  # of the empty source
    assert_close(ours, peer_logits(again, torch.tensor([[4, 5]] * 2), target))


@pytest.mark.parametrize(("head_width", "scale"), [(64, None), (64, 1.0), (128, 0.125), (10, 0.25), (16, 2.0)])
def test_scores_scaled_by_a_power_of_two_are_written_into_the_queries(head_width, scale, tmp_path):
    """T5's own are not scaled; ours learn better so. Nothing is lost either way."""
    _, config = _config_of(peer_of("1.1"), tmp_path / "peer")
    values = config.model_dump()
    for stack in ("encoder", "decoder"):
        values[stack] |= {"head_width": head_width, "attention_scale": scale}
    model = EncoderDecoder(EncoderDecoderConfig(**values))
    model.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "relative_bias.weight", "lm_head.weight")):
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    assert family_for(model.config).name == "t5"
    save_model(tmp_path / "ours", model, end_of_text=1, pad=0)
    returned = opened(tmp_path / "ours")
    assert returned.config.canonical() == model.config.canonical()
    assert_same_bits(returned, model)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    source, target = tokens(60, 20), tokens(60, 12, seed=1)
    with torch.inference_mode():
        ours = model.logits(model.hidden(target, memory=model.encode(source)))
    assert_close(ours, peer_logits(again, source, target))
    # Without our field the factor is another, and what is computed is the same.
    copy_with(tmp_path / "ours", tmp_path / "without", config={"query_factor": None})
    without = opened(tmp_path / "without")
    with torch.inference_mode():
        assert_close(without.logits(without.hidden(target, memory=without.encode(source))), ours)


def test_a_scale_that_is_no_power_of_two_is_no_t5(tmp_path):
    _, config = _config_of(peer_of("1.1"), tmp_path / "peer")
    values = config.model_dump()
    for stack in ("encoder", "decoder"):
        values[stack] |= {"attention_scale": None}  # 1 / sqrt(10)
    assert family_for(EncoderDecoderConfig(**values)).name == "parlance-encoder-decoder"


def _config_of(peer: Any, folder: Path) -> Any:
    peer.save_pretrained(folder)
    return read_config(folder)


def test_files(tmp_path):
    peer = peer_of("1.0", num_layers=1, num_decoder_layers=1)
    ours = saved(peer, tmp_path / "peer")
    check_shards(ours, peer, tmp_path / "shards")
    check_unknown_field(tmp_path / "peer", tmp_path / "field")
    check_tensors_of_the_file(tmp_path / "peer", tmp_path / "tensors")
    # Old files repeat the embedding, and hold a bias that nothing uses.
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    repeated = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    old = tensors | dict.fromkeys(repeated, tensors["shared.weight"])
    old["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(8, 3)
    copy_with(tmp_path / "peer", tmp_path / "old", tensors=old)
    assert_same_bits(opened(tmp_path / "old"), ours)
    for name in repeated:
        copy_with(tmp_path / "peer", tmp_path / "untied", tensors=old | {name: old[name] + 1})
        assert name in refusal(tmp_path / "untied")


def test_a_head_of_its_own_is_found_in_either_spelling(tmp_path):
    """transformers 5 writes tie_word_embeddings true for every T5; its file says more."""
    peer = peer_of("1.1")
    ours = saved(peer, tmp_path / "peer")
    values = json.loads((tmp_path / "peer" / "config.json").read_text())
    assert (values["tie_word_embeddings"], values["scale_decoder_outputs"]) == (True, False)
    assert not ours.config.decoder.tie_embeddings
    older = {"tie_word_embeddings": False, "scale_decoder_outputs": None}
    copy_with(tmp_path / "peer", tmp_path / "older", config=older)
    assert_same_bits(opened(tmp_path / "older"), ours)
    tensors = load_file(tmp_path / "peer" / "model.safetensors")
    del tensors["lm_head.weight"]
    copy_with(tmp_path / "peer", tmp_path / "headless", config=older, tensors=tensors)
    assert "no tensor lm_head.weight" in refusal(tmp_path / "headless")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feed_forward_proj": "gated-quick_gelu"}, "feed_forward_proj 'gated-quick_gelu' is not supported"),
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, "scale_decoder_outputs true"),
        ({"empty_source": 3}, "empty_source is 3"),
        ({"query_factor": 3}, "query_factor is 3.0, not a power of two"),
        ({"empty_source": [70]}, "empty_source are rows of the embedding"),
        ({"d_model": None}, "no field d_model"),
    ],
)
def test_what_is_not_read_is_named(changes, message, tmp_path):
    peer_of("1.0").save_pretrained(tmp_path / "peer")
    copy_with(tmp_path / "peer", tmp_path / "odd", config=changes)
    assert message in refusal(tmp_path / "odd")


def test_published_sizes():
    assert parameter_count(SMALL) == 60_506_624
    assert parameter_count(BASE) == 222_903_552
    with torch.device("meta"):
        peer = transformers.T5ForConditionalGeneration(transformers.T5Config(**SMALL_11))
    head = 32128 * 512  # transformers 5 ties the head of every fresh model
    assert parameter_count(SMALL_11) == sum(parameter.numel() for parameter in peer.parameters()) + head
    config = read_values(SMALL)
    assert (config.start_token, config.empty_source, config.decoder.context_length) == (0, (1,), 512)
    assert config.decoder.logit_scale == 512**-0.5
    assert config.encoder.canonical().attention_scale is None  # the usual 1/8
