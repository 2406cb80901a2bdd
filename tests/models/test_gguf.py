"""GGUF files: blocks byte for byte as ggml makes them, a file that its own reader reads, logits as llama.cpp's."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for, load_model, save_model
from parlance.models.gguf import ARCHITECTURES, architecture_of, convert_to_gguf
from parlance.models.gguf_file import GGUFTensor, q4_0_blocks, q8_0_blocks, write_gguf
from parlance.models.gguf_tokenizer import pre_of, tokenizer_metadata
from parlance.models.transformer_config import RotaryScaling
from parlance.text.tokenizers import Tokenizer, train_tokenizer

LAYER_NORM = {"norm": "layer", "norm_epsilon": 1e-5, "gated_mlp": False, "qk_norm": False, "mlp_width": 128}
BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
LLAMA3 = RotaryScaling(
    kind="llama3", factor=8.0, original_context_length=16, low_frequency_factor=1.0, high_frequency_factor=4.0
)
YARN = RotaryScaling(kind="yarn", factor=4.0, original_context_length=16, attention_factor=1.3)
MODELS = {
    "llama": {"qk_norm": False, "kv_heads": 1} | BIASES,
    "llama-scaled": {"qk_norm": False, "rope_scaling": LLAMA3, "tie_embeddings": True},
    "qwen3-scaled": {"kv_heads": 1, "rope_scaling": YARN},
    "qwen2": {"qk_norm": False, "attention_bias": True, "kv_heads": 1},
    "gpt2": LAYER_NORM | BIASES | {"positions": "learned", "activation": "gelu-tanh", "tie_embeddings": True},
    "gptneox": LAYER_NORM | BIASES | {"block": "parallel", "rotary_width": 8, "activation": "gelu"},
    "falcon": LAYER_NORM | {"block": "parallel", "kv_heads": 1, "activation": "gelu", "tie_embeddings": True},
    "bloom": LAYER_NORM
    | BIASES
    | {"positions": "alibi", "embedding_norm": True, "activation": "gelu-tanh", "tie_embeddings": True},
    "mpt": LAYER_NORM
    | {"positions": "alibi", "norm_bias": False, "clip_qkv": 1.0, "activation": "gelu", "tie_embeddings": True},
}
TOKENS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(5))


def folder_of(tiny_transformer, tokenizer: Tokenizer, where: Path, **parts) -> Path:
    """A checkpoint folder with a tokenizer."""
    model = tiny_transformer(**{"mlp_width": 96, "vocab_size": tokenizer.vocab_size} | parts)
    save_model(where, model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad)
    tokenizer.save(where)
    return where


def fields_of(path: Path):
    """(values by key, tensors by name) of a file, by the format's own library."""
    gguf = pytest.importorskip("gguf", reason="the library gguf is not installed")
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_blocks_are_those_of_ggml():
    quants = pytest.importorskip("gguf.quants", reason="the library gguf is not installed")
    types = pytest.importorskip("gguf").GGMLQuantizationType
    generator = np.random.default_rng(0)
    for size in (1e-7, 1e-3, 1.0, 300.0):
        values = (generator.standard_normal((24, 96)) * size).astype(np.float32)
        values[3], values[5, :40] = 0, 0
        values[7] = np.round(values[7] / size * 2) * size / 2  # halves, which are rounded away from zero
        assert np.array_equal(q8_0_blocks(values).ravel(), quants.quantize(values, types.Q8_0).ravel())
        assert np.array_equal(q4_0_blocks(values).ravel(), quants.quantize(values, types.Q4_0).ravel())


def test_a_number_that_a_type_cannot_hold_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^a\.weight holds 7e\+04, more than numbers of type f16 reach"):
        write_gguf(tmp_path / "x.gguf", {}, [GGUFTensor("a.weight", "f16", torch.full((2, 32), 7e4))])
    assert not list(tmp_path.iterdir())


def test_the_file_is_read_back(tiny_transformer, tiny_tokenizer, tmp_path):
    source = folder_of(tiny_transformer, tiny_tokenizer, tmp_path / "m", qk_norm=False, kv_heads=1)
    facts = convert_to_gguf(source, tiny_tokenizer, tmp_path / "m.gguf", "q4_0")
    assert facts["family"] == "llama"
    assert facts["same_tokens"]
    fields, tensors = fields_of(tmp_path / "m.gguf")
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 2
    assert fields["llama.attention.head_count_kv"] == 1
    assert fields["llama.context_length"] == 64
    assert fields["llama.attention.layer_norm_rms_epsilon"] == np.float32(1e-6)
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.merges"] == []
    assert fields["tokenizer.ggml.tokens"] == tiny_tokenizer.entries()
    assert fields["tokenizer.ggml.token_type"] == [1] * 256 + [3] * 4
    assert fields["tokenizer.ggml.eot_token_id"] == tiny_tokenizer.end_of_turn
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in fields["tokenizer.chat_template"]
    assert "generation %" not in fields["tokenizer.chat_template"]
    model = load_model(source)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["blk.1.ffn_down.weight"] == "Q4_0"
    assert kinds["output.weight"] == "Q8_0"
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    down = model.get_parameter("layers.1.mlp.down_proj.weight").detach().numpy()
    assert tensors["blk.1.ffn_down.weight"].data.tobytes() == q4_0_blocks(down).tobytes()
    assert tensors["blk.1.ffn_down.weight"].shape.tolist() == [96, 32]
    norm = model.get_parameter("norm.weight").detach().numpy()
    assert np.array_equal(tensors["output_norm.weight"].data, norm)
    # Rotary pairs are neighbours: component i and i + 8 of a head of 16 are rows 2i and 2i + 1.
    keys = model.get_parameter("layers.0.self_attn.k_proj.weight").detach().numpy()
    blocks = tensors["blk.0.attn_k.weight"].data.reshape(16, -1)
    assert np.array_equal(blocks[::2], q4_0_blocks(keys[:8]))
    assert np.array_equal(blocks[1::2], q4_0_blocks(keys[8:]))


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name, tiny_transformer, tiny_tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    source = folder_of(tiny_transformer, tiny_tokenizer, tmp_path / "m", **MODELS[name])
    facts = convert_to_gguf(source, tiny_tokenizer, tmp_path / "m.gguf", "f16")
    assert facts["family"] == name.removesuffix("-scaled")
    with torch.inference_mode():
        ours = load_model(source).forward(TOKENS)[0][0].log_softmax(-1)
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    peer.eval(TOKENS[0].tolist())
    theirs = torch.from_numpy(np.array(peer.scores[: TOKENS.shape[1]])).log_softmax(-1)
    # Its weights, cache and activations are of 16 bits.
    assert (theirs - ours).abs().mean() < 0.01
    assert (theirs.argmax(-1) == ours.argmax(-1)).float().mean() > 0.9
    text = "def main(): # é日\n"
    assert peer.tokenize(text.encode(), add_bos=False, special=False) == tiny_tokenizer.encode(text)


@pytest.mark.data
def test_llama_cpp_continues_as_we_do(data_folder, tmp_path):
    """A trained model with a SentencePiece vocabulary: the same tokens, and the same likeliest continuation."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from parlance.inference.model import load
    from parlance.models.conversion import convert

    stories = data_folder / "stories260K"
    convert(stories / "stories260K.bin", tmp_path / "m", tokenizer=stories / "tok512.bin")
    model = load(tmp_path / "m", "cpu", "float32")
    convert_to_gguf(tmp_path / "m", model.tokenizer, tmp_path / "m.gguf", "f16")
    peer = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=256, n_threads=1, verbose=False)
    odd = "  Hello\n  café 日本 123"
    assert peer.tokenize(odd.encode(), add_bos=False, special=False) == model.tokenizer.encode(odd)
    for text in ("Once upon a time", "Lily and Tom went to the park. They saw a"):
        prompt = [*model.tokenizer.surrounding[0], *model.tokenizer.encode(text)]
        assert peer.tokenize(text.encode(), add_bos=True, special=False) == prompt
        peer.reset()
        theirs = [
            token
            for token, _ in zip(peer.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0), range(60), strict=False)
        ]
        ours, state, tokens = [], None, torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(60):
                logits, state = model.language_model.forward(tokens, state)
                tokens = logits[:, -1:].argmax(-1)
                ours.append(int(tokens))
        assert ours == theirs


def test_sentencepiece_vocabularies():
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": c, "special": True, "normalized": False, "single_word": False}
            | {"lstrip": False, "rstrip": False}
            for i, c in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {"type": "Prepend", "prepend": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "vocab": {name: i for i, name in enumerate(("<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "▁a", "aa"))},
            "merges": ["a a", "▁ a"],
            "unk_token": "<unk>",
            "byte_fallback": True,
            "fuse_unk": True,
        },
    }
    from tokenizers import Tokenizer as Backend

    tokenizer = Tokenizer(Backend.from_str(json.dumps(content)), {"bos_token": "<s>", "eos_token": "</s>"})
    keys = tokenizer_metadata(tokenizer, rows=10, ends=[2], source=Path("m")).metadata
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert keys["tokenizer.ggml.token_type"] == [2, 3, 3, 6, 1, 1, 1, 1, 5, 5]
    assert keys["tokenizer.ggml.tokens"][7:] == ["aa", "<|unused 8|>", "<|unused 9|>"]
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    assert scores["aa"] > scores["▁a"] > scores["a"]  # what is joined first is best
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (1, 2)


def test_the_names_of_cuts():
    for pattern, name, exact in (
        ("gpt2", "gpt-2", True),
        ("gpt4", "dbrx", True),
        ("o200k", "gpt-4o", True),
        ("parlance", "superbpe", False),
    ):
        tokenizer = train_tokenizer(["a b ab ab 12"], "bpe", 265, pattern)
        assert pre_of(json.loads(tokenizer.backend_json())) == (name, exact)
    content = json.loads(train_tokenizer([], "byte").backend_json())
    assert pre_of(content) == ("gpt-2", True)
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]] * 1}
    content["model"]["merges"] = ["a b"]
    with pytest.raises(UserError, match="no name for where this tokenizer cuts"):
        pre_of(content)
    with pytest.raises(UserError, match="changes its texts first"):
        pre_of(content | {"normalizer": {"type": "Lowercase"}})
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    with pytest.raises(UserError, match="space before every text"):
        pre_of(content)


def test_what_cannot_be_held_is_refused(tiny_transformer, tiny_tokenizer, tmp_path):
    out = tmp_path / "x.gguf"

    def refused(kind="f16", tokenizer=tiny_tokenizer, **parts) -> str:
        source = folder_of(tiny_transformer, tokenizer, tmp_path / "m", **parts)
        with pytest.raises(UserError) as error:
            convert_to_gguf(source, tokenizer, out, kind)
        assert not out.exists()
        return str(error.value)

    assert "GGUF files hold the families llama" in refused(norm_placement="post", activation="relu2")
    dynamic = RotaryScaling(kind="dynamic", factor=2.0, original_context_length=64)
    assert "architecture llama has no rotary scaling of the kind dynamic" in refused(
        qk_norm=False, rope_scaling=dynamic
    )
    assert "blk.0.ffn_down.weight has 80 inputs, and blocks of q8_0 hold 32" in refused("q8_0", mlp_width=80)
    words = train_tokenizer(["a b c d e"], "word", 40)
    assert "this tokenizer is of the kind word" in refused(tokenizer=words)
    characters = train_tokenizer(["abc"], "char", 20)
    assert "this tokenizer is of the kind char" in refused(tokenizer=characters)
    larger = train_tokenizer(["ab ab ab abab"], "bpe", 263)
    with pytest.raises(UserError, match=r"^m: the tokenizer has \d+ tokens, and the model knows 250"):
        tokenizer_metadata(larger, rows=250, ends=[], source=Path("m"))


def test_a_window_ends_the_context(tiny_transformer, tiny_tokenizer, tmp_path):
    parts = {"qk_norm": False, "sliding_window": 16}
    source = folder_of(tiny_transformer, tiny_tokenizer, tmp_path / "m", **parts)
    assert family_for(load_model(source).config).name == "mistral"
    assert convert_to_gguf(source, tiny_tokenizer, tmp_path / "m.gguf", "f16")["context"] == 16


def test_a_model_in_our_own_form_takes_the_architecture_that_says_it(tiny_transformer):
    config = tiny_transformer(**MODELS["gpt2"]).config
    assert architecture_of(config, "parlance-transformer") is ARCHITECTURES["gpt2"]


@pytest.mark.data
def test_gpt2s_tokenizer_has_its_name(data_folder):
    packed = (data_folder / "gpt2_bpe" / "gpt2_tokenizer.json.gz").read_bytes()
    assert pre_of(json.loads(gzip.decompress(packed))) == ("gpt-2", True)
