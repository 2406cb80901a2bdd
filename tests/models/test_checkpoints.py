"""Checkpoint folders: `transformers` opens ours and we open its, with the same logits; what is wrong is said."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers

from parlance.alignment.reward_model import RewardModel, load_reward_model, save_reward_model
from parlance.core.errors import UserError
from parlance.models.checkpoints import (
    checkpoint_tensors,
    checkpoint_values,
    family_for,
    load_language_model,
    load_transformer,
    read_config,
    save_model,
)
from parlance.models.ngram import NGramModel
from parlance.models.transformer import Transformer
from parlance.text.chat_template import encode_chat

SHAPES = {
    "qwen3, grouped, wide heads": {"heads": 4, "kv_heads": 2, "head_width": 16},
    "qwen3, tied, narrow heads": {"heads": 2, "head_width": 8, "tie_embeddings": True},
    "llama, one key head": {"qk_norm": False, "heads": 4, "kv_heads": 1, "head_width": 10},
    "llama, tied": {"qk_norm": False, "heads": 2, "tie_embeddings": True},
}
ODD = {"rope_theta": 5_000.0, "norm_epsilon": 1e-4, "mlp_width": 72, "layers": 3}
"""Values that no default hides."""


QWEN_ONLY = dict.fromkeys(("use_sliding_window", "sliding_window", "layer_types"))
"""Fields of Qwen3 that LLaMA has not."""


def tokens(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 260, (rows, length), generator=torch.Generator().manual_seed(length))


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a peer's model."""
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=ids).logits
    return out


@pytest.fixture(params=SHAPES, ids=str)
def model(request, tiny_transformer) -> Transformer:
    return tiny_transformer(seed=1, **ODD, **SHAPES[request.param])


@pytest.fixture
def saved(tiny_transformer, tmp_path) -> Path:
    """A folder with one small checkpoint, to be broken."""
    save_model(tmp_path, tiny_transformer(layers=1), end_of_text=256, pad=257)
    return tmp_path


def edit(folder: Path, **changes: object) -> None:
    """Set fields of config.json; None removes one."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


# --- parity ----------------------------------------------------------------------------------------------------------


def test_transformers_opens_our_checkpoint_with_our_logits(model, tmp_path):
    save_model(tmp_path, model, end_of_text=256, pad=257)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(peer).__name__ == ("Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM")
    assert peer.config.eos_token_id == peer.generation_config.eos_token_id == 256
    assert peer.config.pad_token_id == 257
    for length in (1, 2, 9, 40, 64):
        ours = model.forward(tokens(length))[0]
        torch.testing.assert_close(ours, logits(peer, tokens(length)), atol=1e-4, rtol=1e-4)


def test_transformers_continues_greedily_as_we_do(model, tmp_path):
    from parlance.inference.generation import stream
    from parlance.inference.sampling import SamplingConfig

    save_model(tmp_path, model, end_of_text=256, pad=257)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = tokens(5, rows=1)
    theirs = peer.generate(prompt, do_sample=False, max_new_tokens=20, eos_token_id=-1, pad_token_id=257)[0, 5:]
    ours = list(stream(model, prompt[0].tolist(), SamplingConfig(max_tokens=20, temperature=0.0), stop=()))
    assert ours == theirs.tolist()


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_we_open_a_checkpoint_of_transformers_with_its_logits(family, tied, dtype, tmp_path):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=260,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 3_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
    )
    peer = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    peer.to(dtype).save_pretrained(tmp_path)
    # Opened again, because casting the module has rounded its rotary frequencies too.
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = load_transformer(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    for length in (1, 13, 64):
        torch.testing.assert_close(ours.forward(tokens(length))[0], logits(peer, tokens(length)), atol=1e-4, rtol=1e-4)


def test_a_model_that_chats_stops_at_its_turn_s_end_in_transformers_too(tiny_transformer, tmp_path):
    model = tiny_transformer()
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        first = int(model.forward(prompt)[0][0, -1].argmax())
    save_model(tmp_path, model, end_of_text=1, pad=2, end_of_turn=first)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    written = opened.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
    assert written[0].tolist() == [5, 6, 7, first]


def test_older_files_have_rope_theta_at_the_top_level(saved):
    edit(saved, rope_parameters=None, rope_theta=777.0, head_dim=None, num_key_value_heads=None)
    _, config = read_config(saved)
    assert (config.rope_theta, config.head_width, config.key_value_heads) == (777.0, 16, 2)
    edit(saved, rope_theta=None)
    assert read_config(saved)[1].rope_theta == 10_000.0


def test_the_tokenizer_beside_it_opens_with_the_same_ids(tiny_transformer, tiny_tokenizer, tmp_path):
    save_model(tmp_path, tiny_transformer(), end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path)
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return 'héllo €'\n"
    assert peer(text)["input_ids"] == tiny_tokenizer.encode(text)
    assert peer.decode(tiny_tokenizer.encode(text)) == text
    assert (peer.eos_token_id, peer.pad_token_id) == (tiny_tokenizer.end_of_text, tiny_tokenizer.pad)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    theirs = peer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert theirs == encode_chat(tiny_tokenizer, messages)[0]


def test_transformers_reads_the_raw_scores_of_our_reward_model(model, tmp_path):
    reward = RewardModel(model)
    reward.initialise_head(torch.Generator().manual_seed(5))
    reward.mean = 0.7
    save_reward_model(tmp_path, reward, end_of_text=256, pad=257)
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [tokens(length, rows=1)[0].tolist() for length in (40, 3, 17)]
    padded = torch.full((3, 40), 257)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row)
    with torch.inference_mode():
        theirs = peer(input_ids=padded, attention_mask=(padded != 257).long()).logits
    assert theirs.shape == (3, 1)
    ours = torch.tensor(reward.rewards(rows)) + 0.7
    torch.testing.assert_close(theirs[:, 0], ours, atol=1e-4, rtol=1e-4)


# --- round trip ------------------------------------------------------------------------------------------------------


def test_saving_and_loading_keeps_every_bit(model, tmp_path):
    save_model(tmp_path, model, end_of_text=256, pad=257)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded = load_language_model(tmp_path)
    assert isinstance(loaded, Transformer)
    # What was left to a default is written out.
    assert loaded.config.model_dump(exclude={"kv_heads", "mlp_width"}) == model.config.model_dump(
        exclude={"kv_heads", "mlp_width"}
    )
    assert loaded.config.key_value_heads == model.config.key_value_heads
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert model.lm_head is not None or "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_weights_of_an_inference_copy_are_saved_as_float32(tiny_transformer, tmp_path):
    model = tiny_transformer()
    model.compute_dtype = torch.bfloat16
    save_model(tmp_path, model.inference_copy(), end_of_text=256, pad=257)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_the_same_model_gives_the_same_bytes(tiny_transformer, tmp_path):
    for name in ("a", "b"):
        save_model(tmp_path / name, tiny_transformer(), end_of_text=256, pad=257)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_ngram_folder_opens_through_the_same_function(tmp_path):
    model = NGramModel.train([np.array([1, 2, 3, 1, 2])], vocab_size=8, order=2, end_of_text=0)
    model.save(tmp_path)
    loaded = load_language_model(tmp_path)
    assert isinstance(loaded, NGramModel)
    assert loaded.vocab_size == 8


# --- what cannot be opened -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not one this version reads"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type 'longrope' is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "has no field factor"),
        ({"rope_parameters": None, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, "has no field low_freq"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, r"no tensor model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"mlp_bias": True}, r"the field mlp_bias \(True\) is not known"),
        ({"layer_types": ["linear_attention"]}, "layer_types 'linear_attention' is not supported"),
        ({"surprise": 3}, r"the field surprise \(3\) is not known"),
        ({"rms_norm_eps": None}, "has no field rms_norm_eps"),
        ({"num_attention_heads": None}, "has no field num_attention_heads"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "must divide heads"),
        ({"hidden_size": 48}, r"has shape \(260, 32\), not \(260, 48\)"),
        ({"num_hidden_layers": 2, "layer_types": None}, "no tensor model.layers.1."),
        ({"model_type": "llama"} | QWEN_ONLY, r"unknown tensor model\.layers\.0\.self_attn\.k_norm\.weight"),
        ({"tie_word_embeddings": False}, None),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused(saved, changes, message):
    edit(saved, **changes)
    if message is None:
        assert load_transformer(saved).lm_head is not None
        return
    with pytest.raises(UserError, match=message):
        load_transformer(saved)


def test_a_tied_checkpoint_may_repeat_the_embedding_as_its_head(tiny_transformer, tmp_path):
    model = tiny_transformer(tie_embeddings=True)
    save_model(tmp_path, model, end_of_text=256, pad=257)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_transformer(tmp_path).state_dict(), model.state_dict(), atol=0, rtol=0)


def test_a_damaged_or_missing_file_is_a_user_error(saved):
    weights = saved / "model.safetensors"
    content = weights.read_bytes()
    for broken in (content[:-8], content[: len(content) // 2], b"", b"\xff" * 64):
        weights.write_bytes(broken)
        with pytest.raises(UserError, match=r"model\.safetensors (is damaged|cannot be read)"):
            load_transformer(saved)
    weights.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors; is it a finished checkpoint"):
        load_transformer(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(UserError, match="it is a list, not an object"):
        read_config(saved)
    (saved / "config.json").unlink()
    with pytest.raises(UserError, match=r"is not a checkpoint folder: it has no config\.json"):
        load_language_model(saved)


def test_a_save_that_was_killed_is_no_checkpoint(tiny_transformer, tmp_path, monkeypatch):
    """The configuration comes last, so a folder with weights alone is recognised as unfinished."""

    def killed(_path: Path, _value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("parlance.models.checkpoints.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, tiny_transformer(), end_of_text=256, pad=257)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(UserError, match="is not a checkpoint folder"):
        load_language_model(tmp_path)


def test_a_language_model_is_no_reward_model_and_the_other_way_round(tiny_transformer, saved, tmp_path_factory):
    with pytest.raises(UserError, match="is not a reward model"):
        load_reward_model(saved)
    folder = tmp_path_factory.mktemp("reward")
    save_reward_model(folder, RewardModel(tiny_transformer()), end_of_text=256, pad=257)
    with pytest.raises(UserError, match=r"no tensor lm_head\.weight|unknown tensor score\.weight"):
        load_transformer(folder)


def test_every_tensor_name_is_one_transformers_knows(model):
    config = transformers.AutoConfig.for_model(**checkpoint_values(model.config, end_of_text=256, pad=257))
    peer = transformers.AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in peer.named_parameters()}
    ours = {
        name: tuple(tensor.shape)
        for name, tensor in checkpoint_tensors(
            family_for(model.config).table(model.config), dict(model.named_parameters())
        ).items()
    }
    assert ours == expected


def test_links_and_indices_that_lead_nowhere_are_said(saved):
    weights = saved / "model.safetensors"
    moved = saved / "elsewhere"
    weights.rename(moved)
    weights.symlink_to(saved / "gone")
    with pytest.raises(UserError, match="is a link to a file that is not there"):
        load_transformer(saved)
    weights.unlink()
    moved.rename(saved / "part.safetensors")
    names = list(load_file(saved / "part.safetensors"))
    index = saved / "model.safetensors.index.json"
    for homes, message in (
        (dict.fromkeys([*names, "nonsense"], "part.safetensors"), "names the tensor nonsense, which no file"),
        ({"a": ".."}, r"names \.\., which is not a file of the folder"),
        ({"a": "../part.safetensors"}, "which is not a file of the folder"),
        ({"a": "x" * 5000}, "holds no xxx"),
        ({}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": homes}))
        with pytest.raises(UserError, match=message):
            load_transformer(saved)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    load_transformer(saved)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**9}, {"hidden_size": 10**18}, {"vocab_size": 10**30}], ids=str
)
def test_sizes_that_no_model_has_are_refused_at_once(saved, changes):
    edit(saved, **changes)
    with pytest.raises(UserError):
        load_transformer(saved)


def test_numbers_that_sum_beyond_their_type_are_numbers(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, saved / "model.safetensors")
    assert float(load_transformer(saved).norm.weight[0].detach()) == pytest.approx(3e38)
