"""Folders whose matrices are integers: what is packed is unpacked, what is opened computes what the integers say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from parlance.core.errors import UserError
from parlance.inference.quantisation.rounding import nearest
from parlance.models.checkpoints import family_for, load_model, read_config, read_values
from parlance.models.quantised_checkpoint import is_quantised, quantised_names, read_quantised, write_quantised
from parlance.models.quantised_tensors import GROUP, QuantisedTensor, pack, packed_tensors, unpack, unpacked
from parlance.models.tensor_files import TensorFiles

LAYER_NORM = {"norm": "layer", "norm_epsilon": 1e-5, "gated_mlp": False, "qk_norm": False, "mlp_width": 128}
BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
FAMILIES = {
    "qwen3": {"kv_heads": 1},
    "llama": {"qk_norm": False, "tie_embeddings": True},
    "gpt_neox": LAYER_NORM | BIASES | {"block": "parallel", "activation": "gelu", "rotary_width": 8},
    "gpt2": LAYER_NORM | BIASES | {"positions": "learned", "activation": "gelu-tanh", "tie_embeddings": True},
}
TOKENS = torch.tensor([[1, 7, 42, 3, 250]])


def small(tiny_transformer, name: str):
    return tiny_transformer(**{"mlp_width": 96} | FAMILIES[name])


def written(folder: Path, model, bits: int = 4):
    """A folder of the model with the nearest integers, and those."""
    matrices = {name: nearest(model.get_parameter(name), each) for name, each in quantised_names(model, bits).items()}
    family = write_quantised(
        folder,
        {"eos_token_id": [3, 5], "pad_token_id": 0},
        model.config,
        dict(model.named_parameters()),
        matrices,
        family=family_for(model.config),
        dtype=torch.float32,
    )
    return family, matrices


@given(st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_packing_is_undone(bits, rows, groups, seed):
    low, high = (-8, 7) if bits == 4 else (-128, 127)
    codes = torch.from_numpy(np.random.default_rng(seed).integers(low, high + 1, (rows, groups * GROUP), dtype=np.int8))
    words = pack(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, groups * bits)
    assert torch.equal(unpack(words, bits, groups * GROUP), codes)
    # The lowest bits of a word are the first code, with half the range added.
    first = int(words[0, 0]) & (2**bits - 1)
    assert first == int(codes[0, 0]) + 2 ** (bits - 1)


def test_a_weight_is_code_times_scale():
    codes = torch.arange(-64, 64).to(torch.int8).view(2, 64)
    scales = torch.tensor([[0.5, 2.0], [1.0, 0.25]]).half()
    weight = QuantisedTensor(codes, scales, 8).weight()
    assert weight[0, 0] == -32
    assert weight[0, 32] == -64
    assert weight[1, 0] == 0
    assert weight[1, 63] == 63 * 0.25


def test_wider_groups_get_a_scale_for_each_32():
    codes = torch.randint(-8, 8, (3, 128), dtype=torch.int8)
    tensors = packed_tensors("m", QuantisedTensor(codes, torch.ones(3, 4), 4))
    scales = torch.rand(3, 1)
    read = unpacked("m", tensors["m.weight_packed"], scales, tensors["m.weight_shape"])
    assert torch.equal(read.weight(), codes.float() * scales)
    with pytest.raises(UserError, match=r"^m: the shapes of its quantised parts do not fit"):
        unpacked("m", tensors["m.weight_packed"], torch.ones(2, 1), tensors["m.weight_shape"])
    with pytest.raises(UserError, match="do not fit"):
        unpacked("m", tensors["m.weight_packed"], scales, torch.tensor([3, 0]))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_what_is_opened_computes_what_the_integers_say(name, bits, tiny_transformer, tmp_path):
    model = small(tiny_transformer, name)
    family, matrices = written(tmp_path / "q", model, bits)
    # GPT-2's matrices lie the other way round in its files.
    assert family == ("parlance-transformer" if name == "gpt2" else name)
    opened = load_model(tmp_path / "q")
    for parameter, matrix in matrices.items():
        assert torch.equal(opened.get_parameter(parameter), matrix.weight())
        model.get_parameter(parameter).copy_(matrix.weight())
    model.embed_tokens.weight.copy_(model.embed_tokens.weight.half().float())
    if model.embed_positions is not None:
        model.embed_positions.weight.copy_(model.embed_positions.weight.half().float())
    torch.testing.assert_close(opened.forward(TOKENS)[0], model.forward(TOKENS)[0], atol=0, rtol=0)
    codes = read_quantised(tmp_path / "q")
    assert codes.keys() == matrices.keys()
    assert all(torch.equal(codes[key].codes, matrices[key].codes) for key in codes)
    assert all(torch.equal(codes[key].scales, matrices[key].scales) for key in codes)
    values = read_values(tmp_path / "q")
    assert is_quantised(values)
    assert values["eos_token_id"] == [3, 5]
    head = values["quantization_config"]["ignore"] if model.config.tie_embeddings else []
    assert bool(head) == model.config.tie_embeddings


def test_what_becomes_integers(tiny_transformer):
    names = quantised_names(tiny_transformer(mlp_width=96), 4)
    assert len(names) == 2 * 7 + 1
    assert names["lm_head.weight"] == 8
    assert all(bits == 4 for name, bits in names.items() if name.startswith("layers."))
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.down_proj\.weight has 80 inputs, and integers come in group"):
        quantised_names(tiny_transformer(mlp_width=80), 4)
    with pytest.raises(UserError, match="experts"):
        quantised_names(tiny_transformer(mlp_width=96, experts=4), 4)


def test_what_cannot_be_honoured_is_named(tiny_transformer, tmp_path):
    written(tmp_path, small(tiny_transformer, "qwen3"))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())

    def refused(change) -> str:
        broken = json.loads(json.dumps(values))
        change(broken["quantization_config"])
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError) as error:
            load_model(tmp_path)
        return str(error.value)

    def of_weights(**fields):
        return lambda q: q["config_groups"]["group_0"]["weights"].update(fields)

    assert "quantised by 'gptq', and only compressed-tensors" in refused(lambda q: q.update(quant_method="gptq"))
    assert "symmetric False" in refused(of_weights(symmetric=False))
    assert "num_bits 3" in refused(of_weights(num_bits=3))
    assert "type 'float'" in refused(of_weights(type="float"))
    assert "actorder 'group'" in refused(of_weights(actorder="group"))
    assert "input_activations" in refused(lambda q: q["config_groups"]["group_0"].update(input_activations={}))
    assert "format 'float-quantized'" in refused(
        lambda q: q["config_groups"]["group_0"].update(format="float-quantized")
    )
    assert "kv_cache_scheme" in refused(lambda q: q.update(kv_cache_scheme={"num_bits": 8}))
    assert "config_groups" in refused(lambda q: q.update(config_groups={}))
    path.write_text(json.dumps(values | {"quantization_config": None}))
    assert read_config(tmp_path)[0].name == "qwen3"  # the integers are found in the files all the same


def test_a_damaged_file_is_named(tiny_transformer, tmp_path):
    written(tmp_path, small(tiny_transformer, "qwen3"))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    module = "model.layers.0.mlp.up_proj"
    whole = dict(tensors)
    del tensors[f"{module}.weight_scale"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"weight_packed without {module}\.weight_scale"):
        load_model(tmp_path)
    save_file(whole | {f"{module}.weight_scale": whole[f"{module}.weight_scale"] * torch.inf}, path)
    with pytest.raises(UserError, match="not finite"):
        load_model(tmp_path)
    save_file(whole | {f"{module}.weight_shape": torch.tensor([96, 64])}, path)
    with pytest.raises(UserError, match="do not fit together"):
        load_model(tmp_path)
    save_file(whole | {f"{module}.weight_packed": whole[f"{module}.weight_packed"].long()}, path)
    with pytest.raises(UserError, match="do not fit together"):
        load_model(tmp_path)


def test_the_files_say_what_they_hold(tiny_transformer, tmp_path):
    written(tmp_path, small(tiny_transformer, "qwen3"))
    with TensorFiles(tmp_path) as files:
        assert "model.layers.0.mlp.up_proj.weight" in files.names
        assert not any(name.endswith(("packed", "scale", "shape")) for name in files.names)
        assert files.kind("model.layers.0.mlp.up_proj.weight") == ("F32", 96 * 32)
        assert files.kind("model.norm.weight") == ("F32", 32)
        assert files.kind("model.embed_tokens.weight") == ("F16", 260 * 32)
        assert files.quantised("model.norm.weight") is None


def test_transformers_computes_the_same(tiny_transformer, tmp_path):
    pytest.importorskip("compressed_tensors", reason="the library compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers")
    for name in ("qwen3", "llama", "gpt_neox"):
        written(tmp_path / name, small(tiny_transformer, name))
        peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        with torch.inference_mode():
            ours = load_model(tmp_path / name).forward(TOKENS)[0]
            torch.testing.assert_close(peer(TOKENS).logits, ours, atol=1e-4, rtol=1e-4)
