"""What a user loads: text in and out, scores, chat, and which model of a run directory it is."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.inference import model as model_module
from parlance.inference.constraints import choice
from parlance.inference.model import Model, load, resolve_model_folder
from parlance.inference.sampling import SamplingConfig
from parlance.inference.scoring import document_log_probs
from parlance.models.checkpoints import save_model
from parlance.models.conversion import convert
from parlance.models.ngram import NGramModel
from parlance.models.ngram_arpa import write_arpa
from parlance.text.chat_template import encode_chat
from parlance.text.tokenizers import Tokenizer, train_tokenizer

BYTES = train_tokenizer([], "byte")


@pytest.fixture
def folder(tiny_transformer, tiny_tokenizer, tmp_path, monkeypatch) -> Path:
    """A saved tiny Transformer, to be opened in fp32 on every machine."""
    monkeypatch.setattr(model_module, "fast_bfloat16", lambda _device: False)
    save_model(tmp_path / "base", tiny_transformer(), end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path / "base")
    return tmp_path / "base"


class Script:
    """A language model that says given tokens, one after the other, and then ends the text."""

    context_length = None

    def __init__(self, tokens: list[int], end: int, vocab_size: int = 260) -> None:
        self.tokens, self.vocab_size = [*tokens, end], vocab_size

    def forward(self, tokens: torch.Tensor, state: int | None = None) -> tuple[torch.Tensor, int]:
        said = 0 if state is None else state
        logits = torch.full((1, tokens.shape[1], self.vocab_size), -1e9)
        logits[0, -1, self.tokens[said]] = 0.0
        return logits, said + 1


def say(tokens: list[int], end: int = 256, tokenizer: Tokenizer = BYTES) -> list[str]:
    return list(Model(Script(tokens, end), tokenizer, Path()).stream("?", SamplingConfig(max_tokens=1000)))


# --- generating ------------------------------------------------------------------------------------------------------


def test_generate_is_the_joined_stream_and_seeds_reproduce(folder):
    model = load(folder, "cpu")
    sampling = SamplingConfig(max_tokens=30, seed=3)
    text = model.generate("def f(", sampling)
    assert text == "".join(model.stream("def f(", sampling)) == model.generate("def f(", sampling)
    assert text != model.generate("def f(", SamplingConfig(max_tokens=30, seed=4))
    assert len(load(folder, "cpu").generate("a", SamplingConfig(temperature=0.0, max_tokens=5)).encode()) >= 5


def test_chat_continues_the_rendered_conversation(folder):
    model = load(folder, "cpu")
    messages = [{"role": "user", "content": "Hi"}]
    sampling = SamplingConfig(max_tokens=12, temperature=0.0)
    seen: list[list[int]] = []
    hidden = model.language_model.hidden

    def recording(tokens, state=None):
        seen.append(tokens[0].tolist())
        return hidden(tokens, state)

    model.language_model.hidden = recording
    reply = model.chat(messages, sampling)
    assert seen[0] == encode_chat(model.tokenizer, messages, add_generation_prompt=True)[0]
    assert reply == "".join(model.chat_stream(messages, sampling)).strip()
    with pytest.raises(UserError, match="role"):
        model.chat([{"role": "robot", "content": "Hi"}])


@pytest.mark.parametrize("end", ["end_of_text", "end_of_turn"])
def test_both_end_tokens_end_the_text(end, tiny_tokenizer):
    pieces = say(list(b"abc"), getattr(tiny_tokenizer, end))
    assert "".join(pieces) == "abc"


def test_a_tokenizer_without_turns_generates(tmp_path):
    BYTES.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace("<|im_end|>", "<|other|>"))
    plain = Tokenizer.load(tmp_path)
    assert "<|im_end|>" not in plain.special_tokens
    assert "".join(say(list(b"abc"), 256, plain)) == "abc"
    with pytest.raises(UserError, match=r"no special token <\|im_end\|>"):
        Model(Script([], 256), plain, Path()).chat([{"role": "user", "content": "Hi"}])


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_streamed_pieces_are_whole_characters(text):
    pieces = say(list(text.encode()))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        # Byte by byte, each piece is exactly one character.
        assert pieces == list(text)


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=12))
def test_streamed_bytes_that_are_no_text_come_out_as_when_decoded_at_once(data):
    assert "".join(say(list(data))) == data.decode("utf-8", errors="replace")


def test_a_cut_character_at_the_end_is_shown_as_such():
    assert say(list("é€".encode()[:-1])) == ["é", "\ufffd"]


@pytest.mark.parametrize(
    ("most", "overflow", "ended"),
    [(5, "error", "max_tokens"), (1000, "error", "context"), (200, "slide", "max_tokens")],
)
def test_a_continuation_says_why_it_ended(folder, most, overflow, ended):
    model = load(folder, "cpu")
    model.stop = frozenset()
    pieces = model.stream("def", SamplingConfig(max_tokens=most, overflow=overflow))
    assert pieces.ended is None
    text = "".join(pieces)
    assert pieces.ended == ended
    assert list(pieces) == []
    assert pieces.ended == ended, "also when it is asked once more"
    if ended == "context":
        assert 0 < len(text) <= 64 - 3


def test_a_stop_token_ended_it():
    pieces = Model(Script(list(b"abc"), 256), BYTES, Path()).stream("?", SamplingConfig(max_tokens=3))
    assert ("".join(pieces), pieces.ended, pieces.unknown) == ("abc", "max_tokens", 0)
    pieces = Model(Script(list(b"abc"), 256), BYTES, Path()).stream("?", SamplingConfig(max_tokens=4))
    assert ("".join(pieces), pieces.ended) == ("abc", "stop")


def test_stop_strings_end_the_text_wherever_tokens_end():
    for text, stop, expected in (("one two", (" t",), "one"), ("a\n\nb", ("\n\n", "b"), "a"), ("abc", ("x",), "abc")):
        pieces = Model(Script(list(text.encode()), 256), BYTES, Path()).stream("?", SamplingConfig(stop=stop))
        assert ("".join(pieces), pieces.ended) == (expected, "stop")
    pieces = Model(Script(list(b"abcd"), 256), BYTES, Path()).stream("?", SamplingConfig(stop=("bc",), max_tokens=3))
    assert ("".join(pieces), pieces.ended) == ("a", "stop")
    pieces = Model(Script(list(b"abcd"), 256), BYTES, Path()).stream("?", SamplingConfig(stop=("bcx",), max_tokens=3))
    assert ("".join(pieces), pieces.ended) == ("abc", "max_tokens"), "what was held is shown at the end"


def test_log_probabilities_come_along(folder):
    model = load(folder, "cpu")
    pieces = model.stream("def", SamplingConfig(max_tokens=8, top_logprobs=3, temperature=0.5))
    text = "".join(pieces)
    assert len(pieces.draws) == 8
    assert model.tokenizer.decode([draw.token for draw in pieces.draws]) == text
    ids = torch.tensor([[*BYTES.encode("def"), *(draw.token for draw in pieces.draws)]])
    expected = model.language_model.forward(ids)[0][0, 2:-1].log_softmax(-1)
    for draw, row in zip(pieces.draws, expected, strict=True):
        assert draw.log_prob == pytest.approx(float(row[draw.token]), abs=1e-4)
        assert [value for _, value in draw.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_a_callback_sees_the_pieces(folder):
    model, pieces = load(folder, "cpu"), []
    text = model.generate("def", SamplingConfig(max_tokens=9), on_text=pieces.append)
    assert "".join(pieces) == text
    assert len(pieces) > 1


def test_best_of_is_the_best_of_its_seeds(folder):
    model, sampling = load(folder, "cpu"), SamplingConfig(max_tokens=6, seed=3)
    found = model.best_of("def", 4, sampling)
    texts = {model.generate("def", sampling.model_copy(update={"seed": seed})) for seed in range(3, 7)}
    assert {candidate.text for candidate in found} == texts
    assert [each.mean_log_prob for each in found] == sorted((each.mean_log_prob for each in found), reverse=True)
    with pytest.raises(UserError, match="at least one"):
        model.best_of("def", 0)


def test_beams_find_likelier_texts_than_greedy_generation(folder):
    model, sampling = load(folder, "cpu"), SamplingConfig(max_tokens=6, temperature=0.0)
    greedy = model.stream("def", sampling)
    assert model.beam_search("def", 1, sampling)[0].text == "".join(greedy)
    best = model.beam_search("def", 8, sampling)[0]
    assert best.log_prob >= sum(draw.log_prob for draw in greedy.draws) - 1e-4


def test_a_draft_needs_the_same_tokenizer(folder, tmp_path):
    model, sampling = load(folder, "cpu"), SamplingConfig(max_tokens=20, temperature=0.0)
    plain = model.generate("def def", sampling)
    assert model.generate("def def", sampling, draft="prompt") == plain
    assert model.generate("def def", sampling, draft=load(folder, "cpu")) == plain
    other = Model(Script([], 256), train_tokenizer(["abc"], "char", 20), tmp_path)
    with pytest.raises(UserError, match=r"is not that of .* needs the same one"):
        model.generate("def", sampling, draft=other)


def test_a_constraint_holds_for_prompts_and_chats(folder):
    model = load(folder, "cpu")
    options = ["yes", "no"]
    assert model.generate("?", constraint=choice(options, model.tokenizer)) in options
    assert model.chat([{"role": "user", "content": "?"}], constraint=choice(options, model.tokenizer)) in options


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_score_is_the_documents_log_probability(folder):
    model = load(folder, "cpu")
    text = "héllo " * 30  # longer than the context of 64
    score = model.score(text)
    expected = document_log_probs(model.language_model, [BYTES.encode(text)], BYTES.end_of_text)[0]
    assert score.log_probs == pytest.approx(expected.tolist())
    assert score.nats == pytest.approx(-expected.sum())
    assert score.tokens == score.bytes == len(text.encode()) == 210
    assert score.bits_per_byte == pytest.approx(score.nats / 210 / math.log(2))
    assert score.perplexity == pytest.approx(math.exp(score.nats / 210))
    with pytest.raises(UserError, match="the text is empty"):
        model.score("")


def test_a_lone_surrogate_counts_as_the_character_it_is_read_as(folder):
    score = load(folder, "cpu").score("a\ud800")
    assert score.tokens == score.bytes == 4  # "a" and the three bytes of U+FFFD


def test_an_ngram_folder_is_a_model_too(tmp_path, tiny_tokenizer):
    tokens = tiny_tokenizer.encode("abcdefgh")
    NGramModel.train([np.array(tokens)] * 2, 260, 4, tiny_tokenizer.end_of_text).save(tmp_path)
    tiny_tokenizer.save(tmp_path)
    model = load(tmp_path)
    assert model.generate("abc", SamplingConfig(temperature=0.0)) == "defgh"
    assert model.score("abcdefgh").bits_per_byte < model.score("hgfedcba").bits_per_byte


def words_file(path: Path, *others: str) -> NGramModel:
    """An ARPA file of words; returns the model in it."""
    words = ["</s>", "the", "fox", "is", *others]
    model = NGramModel.train([np.array([1, 2, 3, 1, 2]), np.array([1, 3])], len(words), 3, 0)
    write_arpa(model, path, words)
    return model


def test_words_of_an_arpa_file_are_scored_line_by_line(tmp_path):
    """As `query` of KenLM does: the end of each line is predicted, and white space beyond ASCII is part of words."""
    model = words_file(tmp_path / "model.arpa", "<unk>", "a\u00a0b")
    convert(tmp_path / "model.arpa", tmp_path / "folder")
    text = "the fox  is\n\nis a\u00a0b bear\u2003x\nthe </s>"
    ids = [1, 2, 3, 0, 0, 3, 5, 4, 0, 1, 4, 0]
    for path in (tmp_path / "model.arpa", tmp_path / "folder"):
        opened = load(path)
        scored = opened.score(text)
        np.testing.assert_allclose(scored.log_probs, model.log_probs(np.array(ids)), rtol=1e-5)
        assert (scored.tokens, scored.unknown) == (12, 2)
        assert opened.tokenizer.encode(text) == [index for index in ids if index != 0], "as prompts are read"
        assert scored.bytes == len(" the fox is is a\u00a0b the".encode())
        assert opened.stream("the bear is").unknown == 1


def test_an_arpa_file_without_unk_names_the_word_it_does_not_know(tmp_path):
    words_file(tmp_path / "model.arpa")
    opened = load(tmp_path / "model.arpa")
    assert opened.score("the fox\n").unknown == 0
    with pytest.raises(UserError, match="there is nothing to score: the text has no words"):
        opened.score("\n")
    for text in ("the <unk>\n", "the bear\n"):
        with pytest.raises(UserError, match=f"does not know the word '{text.split()[1]}', and has no <unk>"):
            opened.score(text)


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_run_directory_stands_for_its_most_advanced_model(tmp_path):
    for name in ("ngram", "base", "sft", "policy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / "reward").mkdir(exist_ok=True)
        (tmp_path / "reward" / "config.json").write_text("{}")
        assert resolve_model_folder(tmp_path) == tmp_path / name
    # A stage that is not finished has no config.json.
    (tmp_path / "policy" / "config.json").unlink()
    assert resolve_model_folder(tmp_path) == tmp_path / "sft"
    assert resolve_model_folder(tmp_path / "base") == tmp_path / "base"


def test_what_is_no_model_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no model; name a checkpoint folder or a run directory"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"holds no model \(there is no such folder\)"):
        load(tmp_path / "none")


def test_loading_takes_the_devices_fast_precision(folder, monkeypatch):
    full, half = torch.float32, torch.bfloat16
    for fast, small, precision, dtype in (
        (False, False, "auto", full),
        (True, False, "auto", half),
        (True, True, "auto", full),  # of no use there
        (True, False, "float32", full),
        (False, True, "bfloat16", half),
    ):
        monkeypatch.setattr(model_module, "fast_bfloat16", lambda _device, fast=fast: fast)
        monkeypatch.setattr(model_module, "SMALL_BYTES", 10**9 if small else 0)
        opened = load(str(folder), "cpu", precision)
        parameters = list(opened.language_model.parameters())
        assert {parameter.dtype for parameter in parameters} == {dtype}
        assert not any(parameter.requires_grad for parameter in parameters)
        assert opened.folder == folder
        assert opened.generate("a", SamplingConfig(max_tokens=3)) is not None


def test_generation_ends_where_the_checkpoint_says(folder):
    """The end of a text as generation_config.json names it, one id or several, besides the tokenizer's."""
    for named, expected in ((7, {7}), ([7, 9], {7, 9}), (None, {256})):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named} if named else {}))
        assert load(folder, "cpu").stop >= expected


def test_a_tokenizer_of_another_model_is_refused(folder):
    train_tokenizer(["".join(map(chr, range(200, 700)))], "char", 600).save(folder)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ tokens and the model knows 260"):
        load(folder, "cpu")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds a model without its tokenizer"):
        load(folder, "cpu")


@pytest.mark.data
def test_a_file_of_llama2c_opens_by_itself(data_folder):
    model = load(data_folder / "stories260K" / "stories260K.bin", "cpu")
    page = (data_folder / "stories260K" / "stories260K.md").read_text()
    begin = page.index("Once upon a time")
    story = page[begin : page.index("```", begin)].strip()
    assert model.generate("", SamplingConfig(max_tokens=256, temperature=0.0)).strip() == story


def test_a_reward_model_is_called_one(folder):
    config = folder / "config.json"
    config.write_text(config.read_text().replace("ForCausalLM", "ForSequenceClassification"))
    with pytest.raises(UserError, match=r"is a reward model: it scores answers .* `parlance align --reward`"):
        load(folder, "cpu")


def test_rows_that_no_token_has_are_never_drawn(tiny_transformer, tiny_tokenizer, tmp_path):
    """Published vocabularies are padded to round numbers: the model knows more ids than the tokenizer."""
    model = tiny_transformer(vocab_size=400)
    with torch.no_grad():
        model.lm_head.weight[260:] *= 100
    save_model(tmp_path, model, end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path)
    opened = load(tmp_path, "cpu")
    assert int(opened.language_model.forward(torch.tensor([[65]]))[0][0, -1].argmax()) >= 260
    opened.generate("A", SamplingConfig(max_tokens=20))  # every id of it has bytes


def test_what_stands_around_a_text_without_a_tokenizer_json(tiny_transformer, tmp_path):
    """Word files leave it to tokenizer_config.json, and that to the family."""
    vocab = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    save_model(tmp_path, tiny_transformer(qk_norm=False), end_of_text=1, pad=1)
    for config, expected in (
        ({}, ([0], [])),
        ({"add_bos_token": False}, ([], [])),
        ({"add_eos_token": True}, ([0], [1])),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        assert load(tmp_path, "cpu").tokenizer.surrounding == expected
