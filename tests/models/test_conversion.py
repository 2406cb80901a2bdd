"""Converting keeps what a model computes, whatever it is written as; what cannot be said is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.models.checkpoints import family_for, load_language_model, load_model, read_config, save_model
from parlance.models.conversion import convert, convert_to_arpa, convert_to_llama2c, open_foreign
from parlance.models.exact import ConditionalFrequencies
from parlance.models.feedforward import FeedForwardConfig
from parlance.models.llama2c import write_llama2c
from parlance.models.ngram import NGramModel
from parlance.models.ngram_arpa import write_arpa
from parlance.models.recurrent import RecurrentConfig
from parlance.models.tensor_files import stored_type
from parlance.text.tokenizers import Tokenizer, train_tokenizer

TOKENS = torch.tensor([[1, 7, 42, 3, 250]])


@pytest.fixture
def llama(tiny_transformer, tiny_tokenizer, tmp_path) -> Path:
    """A LLaMA-shaped checkpoint folder with its tokenizer."""
    model = tiny_transformer(qk_norm=False, norm_epsilon=1e-5)
    save_model(tmp_path / "llama", model, end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path / "llama")
    return tmp_path / "llama"


@torch.inference_mode()
def test_families_types_and_shards(llama, tmp_path):
    expected = load_model(llama).forward(TOKENS)[0]
    facts = convert(llama, tmp_path / "mistral", family="mistral", shard_bytes=20_000)
    assert (facts["family"], facts["dtype"]) == ("mistral", "float32")
    assert len([name for name in facts["files"] if name.endswith(".safetensors")]) > 2
    torch.testing.assert_close(load_model(tmp_path / "mistral").forward(TOKENS)[0], expected, atol=0, rtol=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "mistral" / name).read_bytes() == (llama / name).read_bytes()
    # Half the bits, and back: rounded once, then exact.
    convert(llama, tmp_path / "half", dtype=torch.bfloat16)
    assert read_config(tmp_path / "half")[0].name == "llama"
    assert stored_type(tmp_path / "half") == torch.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(tmp_path / "half", tmp_path / "full", dtype=torch.float32)
    halves, full = load_model(tmp_path / "half"), load_model(tmp_path / "full")
    for name, parameter in load_model(llama).named_parameters():
        assert torch.equal(full.get_parameter(name), parameter.bfloat16().float())
        assert torch.equal(halves.get_parameter(name), full.get_parameter(name))


def test_a_llama2c_file_needs_its_tokenizer(llama, tmp_path):
    convert_to_llama2c(llama, tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"there are 0 tok\*\.bin beside it; name it: parlance convert"):
        convert(tmp_path / "model.bin", tmp_path / "again")


@pytest.mark.data
@torch.inference_mode()
def test_llama2c_files_out_and_in(llama, tiny_transformer, tmp_path, data_folder):
    vocabulary = data_folder / "stories260K" / "tok512.bin"
    convert_to_llama2c(llama, tmp_path / "small.bin")
    with pytest.raises(UserError, match="has 512 tokens and the model 260"):
        convert(tmp_path / "small.bin", tmp_path / "again", tokenizer=vocabulary)
    model = tiny_transformer(qk_norm=False, norm_epsilon=1e-5, vocab_size=512)
    write_llama2c(tmp_path / "fits.bin", model)
    convert(tmp_path / "fits.bin", tmp_path / "again", tokenizer=vocabulary)
    again = load_model(tmp_path / "again")
    torch.testing.assert_close(again.forward(TOKENS)[0], model.forward(TOKENS)[0], atol=0, rtol=0)
    # Texts begin with <s>, and it ends them too.
    assert Tokenizer.load(tmp_path / "again").surrounding == ([1], [])
    assert json.loads((tmp_path / "again" / "generation_config.json").read_text())["eos_token_id"] == [2, 1]


def test_arpa_words_that_are_not_utf_8_are_refused(tmp_path):
    model = NGramModel.train([np.array([1, 2])], 3, 2, 0)
    write_arpa(model, tmp_path / "model.arpa", ["</s>", "a", "f\udcf6x"])
    with pytest.raises(UserError, match="the word 'f\ufffdx' is not in UTF-8"):
        open_foreign(tmp_path / "model.arpa")


def test_an_ngram_model_as_arpa_and_back(tmp_path):
    tokenizer = train_tokenizer(["a b b a c\n"], "char", 20)
    texts = ["a b", "b a c\n", "a b b a"]
    documents = [np.array(tokenizer.encode(text)) for text in texts]
    model = NGramModel.train(documents, tokenizer.vocab_size, 3, tokenizer.end_of_text)
    (tmp_path / "ngram").mkdir()
    model.save(tmp_path / "ngram")
    tokenizer.save(tmp_path / "ngram")
    convert_to_arpa(tmp_path / "ngram", tmp_path / "model.arpa")
    assert "<0x20>" in (tmp_path / "model.arpa").read_text()
    # With its tokenizer, the very model; without, words between spaces.
    convert(tmp_path / "model.arpa", tmp_path / "same", tokenizer=tmp_path / "ngram")
    same = load_language_model(tmp_path / "same")
    assert Tokenizer.load(tmp_path / "same").encode("a b") == tokenizer.encode("a b")
    np.testing.assert_allclose(same.log_probs(documents[1]), model.log_probs(documents[1]), atol=1e-5)
    other = train_tokenizer(["x y z"], "char", 20)
    (tmp_path / "other").mkdir()
    other.save(tmp_path / "other")
    with pytest.raises(UserError, match="their words differ"):
        convert(tmp_path / "model.arpa", tmp_path / "no", tokenizer=tmp_path / "other")
    with pytest.raises(UserError, match="has no family"):
        convert(tmp_path / "model.arpa", tmp_path / "no", family="gpt2")
    facts = convert(tmp_path / "model.arpa", tmp_path / "back")
    assert facts["family"] == "parlance-ngram"
    back = load_language_model(tmp_path / "back")
    words = Tokenizer.load(tmp_path / "back")
    spelled = ["a", "<0x20>", "b"]
    ids = np.array(words.encode(" ".join(spelled)))
    assert [words.decode([index]).strip() for index in ids] == spelled
    np.testing.assert_allclose(back.log_probs(ids), model.log_probs(documents[0]), atol=1e-5)
    assert words.end_of_text == [*words.entries()].index("</s>")


def test_what_cannot_be_written_is_refused_before_anything_is(llama, tiny_transformer, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"cannot be written as gpt2: it has parts that gpt2 has not .*llama"):
        convert(llama, out, family="gpt2")
    for kind, other in (
        (FeedForwardConfig(vocab_size=9, context_length=4, layers=1, width=8), "feedforward"),
        (RecurrentConfig(vocab_size=9, layers=1, width=8), "recurrent"),
    ):
        with pytest.raises(UserError, match=f"it is of the kind {other}; it can be written as parlance-{other}"):
            family_for(kind, "llama")
    with pytest.raises(UserError, match="'gtp2' is not a family this version writes"):
        convert(llama, out, family="gtp2")
    save_model(tmp_path / "qwen", tiny_transformer(), end_of_text=1, pad=2)
    with pytest.raises(UserError, match="norm"):
        convert_to_llama2c(tmp_path / "qwen", out)
    with pytest.raises(UserError, match="is not an n-gram model"):
        convert_to_arpa(llama, out)
    (tmp_path / "counts").mkdir()
    NGramModel.train([np.array([1, 2])], 3, 2, 0).save(tmp_path / "counts")
    with pytest.raises(UserError, match="is an n-gram or exact model, and this needs a network"):
        convert_to_llama2c(tmp_path / "counts", out)
    (tmp_path / "exact").mkdir()
    ConditionalFrequencies.from_text("a b").save(tmp_path / "exact")
    with pytest.raises(UserError, match="is an exact model, which has one form alone"):
        convert(tmp_path / "exact", out)
    assert not out.exists()


@pytest.mark.data
def test_the_character_lstm_of_others_opens(data_folder):
    model, tokenizer = open_foreign(data_folder / "charrnn_lstm" / "charlotte_bronte")
    ids = torch.tensor([tokenizer.encode("There was ")])
    assert tokenizer.decode([int(model.forward(ids)[0][0, -1].argmax())]).isalpha()
