"""Generation against a naive loop without a cache, and batches against single sequences."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from parlance.core.errors import UserError
from parlance.inference import reading
from parlance.inference.generation import Response, generate_batch, stream
from parlance.inference.reading import Reader
from parlance.inference.sampling import SamplingConfig
from parlance.models.exact import ConditionalFrequencies
from parlance.models.masked import MaskedLanguageModel
from parlance.models.ngram import NGramModel
from parlance.models.transformer import Transformer

PROMPTS = [[5, 3, 200], [7], list(range(40, 60)), [9, 9], [250, 1, 2, 3, 4, 5, 6]]


@pytest.fixture
def model(tiny_transformer) -> Transformer:
    return tiny_transformer(heads=4, kv_heads=2, head_width=8)


def greedy(count: int) -> SamplingConfig:
    return SamplingConfig(max_tokens=count, temperature=0.0)


@torch.inference_mode()
def naive(model: Transformer, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation that reads everything anew for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.forward(torch.tensor([tokens]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def cut(tokens: list[int], stop: set[int]) -> Response:
    for place, token in enumerate(tokens):
        if token in stop:
            return Response(tokens[: place + 1], True)
    return Response(tokens, False)


# --- greedy ----------------------------------------------------------------------------------------------------------


def test_stream_equals_the_naive_loop(model):
    for prompt in PROMPTS:
        assert list(stream(model, prompt, greedy(20), stop=())) == naive(model, prompt, 20)


def test_a_batch_equals_its_rows(model):
    expected = [Response(naive(model, prompt, 24), False) for prompt in PROMPTS]
    assert generate_batch(model, PROMPTS, greedy(24), stop=()) == expected


def test_rows_end_at_different_times(model):
    full = [naive(model, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in full}) == len(PROMPTS)
    # Stop tokens that end each row elsewhere, two of them in the same step, one row never.
    stops = {full[0][2], full[1][7], full[2][7], full[3][15]}
    expected = [cut(tokens, stops) for tokens in full]
    ends = sorted(len(response.tokens) for response in expected)
    assert len(set(ends)) >= 3
    assert generate_batch(model, PROMPTS, greedy(24), stops) == expected
    for prompt, response in zip(PROMPTS, expected, strict=True):
        text = response.tokens[:-1] if response.ended else response.tokens
        assert list(stream(model, prompt, greedy(24), stops)) == text


def test_all_rows_may_end_at_once(model):
    first = {naive(model, prompt, 1)[0] for prompt in PROMPTS}
    responses = generate_batch(model, PROMPTS, greedy(10), first)
    assert all(response.ended and len(response.tokens) == 1 for response in responses)
    assert all(list(stream(model, prompt, greedy(10), first)) == [] for prompt in PROMPTS)


def test_one_token_and_no_prompts(model):
    assert [len(response.tokens) for response in generate_batch(model, PROMPTS, greedy(1), ())] == [1] * 5
    assert generate_batch(model, [], greedy(5), ()) == []


def test_bfloat16_batches_are_close_to_their_rows(model):
    """In bfloat16 the paths round differently, so near-ties may fall either way; most tokens are the same."""
    model.compute_dtype = torch.bfloat16
    twin = model.inference_copy()
    batch = generate_batch(twin, PROMPTS, greedy(8), stop=())
    rows = [list(stream(twin, prompt, greedy(8), stop=())) for prompt in PROMPTS]
    same = sum(a == b for one, many in zip(rows, batch, strict=True) for a, b in zip(one, many.tokens, strict=True))
    assert same >= 20  # of 40


# --- draws -----------------------------------------------------------------------------------------------------------


def test_seeds_reproduce(model):
    sampling = SamplingConfig(max_tokens=15, seed=7)
    batches = [generate_batch(model, PROMPTS, sampling, stop={1, 2}) for _ in range(2)]
    assert batches[0] == batches[1]
    assert generate_batch(model, PROMPTS, sampling.model_copy(update={"seed": 8}), stop={1, 2}) != batches[0]
    generator = torch.Generator().manual_seed(7)
    assert generate_batch(model, PROMPTS, sampling, {1, 2}, generator) == batches[0]
    assert generate_batch(model, PROMPTS, sampling, {1, 2}, generator) != batches[0]
    streams = [list(stream(model, [1, 2], sampling, stop=())) for _ in range(2)]
    assert streams[0] == streams[1]


def test_drawn_tokens_follow_the_models_distribution(model):
    count, prompt = 4000, [5, 3, 200]
    sampling = SamplingConfig(max_tokens=2, temperature=0.7)
    responses = generate_batch(model, [prompt] * count, sampling, stop=())
    with torch.inference_mode():
        first = (model.forward(torch.tensor([prompt]))[0][0, -1] / 0.7).softmax(-1)
        likely = int(first.argmax())
        second = (model.forward(torch.tensor([[*prompt, likely]]))[0][0, -1] / 0.7).softmax(-1)
    after_likely = [response.tokens[1] for response in responses if response.tokens[0] == likely]
    for drawn, probabilities in (([response.tokens[0] for response in responses], first), (after_likely, second)):
        counts = Counter(drawn)
        assert len(drawn) > 100
        for token in probabilities.topk(5).indices.tolist():
            p = float(probabilities[token])
            assert abs(counts[token] / len(drawn) - p) < 4.5 * math.sqrt(p * (1 - p) / len(drawn))


# --- limits ----------------------------------------------------------------------------------------------------------


def test_generation_ends_where_the_context_is_full(model):
    assert model.context_length == 64
    # Most rows are short, so the full ones stay in the batch for a while.
    prompts = [list(range(60)), list(range(63)), *([start, 2] for start in range(7))]
    room = [4, 1] + [10] * 7
    responses = generate_batch(model, prompts, greedy(10), stop=())
    assert [len(response.tokens) for response in responses] == room
    assert not any(response.ended for response in responses)
    assert [response.tokens for response in responses] == [
        naive(model, prompt, count) for prompt, count in zip(prompts, room, strict=True)
    ]
    assert [len(list(stream(model, prompt, greedy(10), stop=()))) for prompt in prompts] == room


@pytest.mark.parametrize("length", [64, 100])
def test_a_prompt_that_leaves_no_room_is_a_user_error(model, length):
    message = f"the prompt has {length} tokens and the model reads 64; shorten it"
    with pytest.raises(UserError, match=message):
        list(stream(model, [1] * length, greedy(5), stop=()))
    with pytest.raises(UserError, match=message):
        generate_batch(model, [[1], [1] * length], greedy(5), stop=())


def test_an_empty_prompt_is_a_user_error(model):
    with pytest.raises(UserError, match="the prompt is empty"):
        list(stream(model, [], greedy(5), stop=()))
    with pytest.raises(UserError, match="the prompt is empty"):
        generate_batch(model, [[1], []], greedy(5), stop=())


# --- any language model ----------------------------------------------------------------------------------------------


def test_an_ngram_model_generates_through_the_same_function():
    document = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    model = NGramModel.train([document] * 3, vocab_size=10, order=3, end_of_text=0)
    assert list(stream(model, [3, 1], greedy(20), stop={0})) == document[2:].tolist()
    assert len(list(stream(model, [3, 1] * 500, greedy(7), stop=()))) == 7


# --- texts that outgrow the context ----------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_sliding_context_goes_on_from_its_second_half(tiny_transformer):
    model = tiny_transformer(context_length=16)
    prompt = list(range(40, 70))
    with pytest.raises(UserError, match=r"the prompt has 30 tokens and the model reads 16; shorten it, or let"):
        list(stream(model, prompt, SamplingConfig(temperature=0.0), stop=()))
    made = list(stream(model, prompt, SamplingConfig(max_tokens=40, temperature=0.0, overflow="slide"), stop=()))
    assert len(made) == 40
    text = prompt[-8:]
    for token in made:
        # What the model saw: up to 16 tokens, then the last 8 of them.
        assert token == int(model.forward(torch.tensor([text]))[0][0, -1].argmax())
        text.append(token)
        if len(text) > 16:
            text = text[-8:]
    # A text that fits is not touched.
    short = SamplingConfig(max_tokens=5, temperature=0.0)
    sliding = short.model_copy(update={"overflow": "slide"})
    assert list(stream(model, [5, 6], short, ())) == list(stream(model, [5, 6], sliding, ()))


def test_tokens_outside_the_vocabulary_are_named(model):
    with pytest.raises(UserError, match=r"token 999 is outside the model's vocabulary of 260 \(ids 0 to 259\)"):
        list(stream(model, [1, 999], SamplingConfig(), stop=()))
    with pytest.raises(UserError, match=r"token -1 is outside the model's vocabulary"):
        generate_batch(model, [[1, 2], [-1]], SamplingConfig(), stop=())
    with pytest.raises(UserError, match="token 260 is outside the vocabulary of 260"):
        model.forward(torch.tensor([[260]]))
    with pytest.raises(UserError, match="the input has no tokens"):
        model.forward(torch.empty(1, 0, dtype=torch.int64))


@torch.inference_mode()
def test_a_prompt_is_cut_on_the_left_where_that_is_asked_for(tiny_transformer):
    model = tiny_transformer(context_length=16)
    prompt = list(range(40, 70))
    for most, kept in ((4, 12), (100, 8)):
        config = SamplingConfig(max_tokens=most, temperature=0.0, overflow="truncate")
        assert list(stream(model, prompt, config, ())) == naive(model, prompt[-kept:], 16 - kept)
    # A prompt that fits is not cut, and the text ends where the context is full.
    config = SamplingConfig(max_tokens=100, temperature=0.0, overflow="truncate")
    assert list(stream(model, prompt[:10], config, ())) == naive(model, prompt[:10], 6)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "ngram", "exact", "masked"])
@torch.inference_mode()
def test_a_prompt_read_in_pieces_is_the_prompt(kind, tiny_transformer, monkeypatch):
    model = {
        "transformer": lambda: tiny_transformer(vocab_size=12),
        "ngram": lambda: NGramModel.train([np.array([3, 1, 4, 1, 5, 9, 2, 6])] * 3, 12, 4, 0),
        "exact": lambda: ConditionalFrequencies.from_documents([[3, 1, 4, 1, 5, 9, 2, 6]], list("abcdefghijkl"), 0),
        "masked": lambda: MaskedLanguageModel(
            tiny_transformer(vocab_size=13, causal=False), vocab_size=12, mask_token=12
        ),
    }[kind]()
    monkeypatch.setattr(reading, "PIECE", 5)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4]
    for length in range(1, len(prompt) + 1):
        reader = Reader(model, prompt[:length], SamplingConfig())
        expected = model.forward(torch.tensor([prompt[:length]]))[0][:, -1]
        torch.testing.assert_close(reader.read(reader.beginning), expected)
        longer = model.forward(torch.tensor([[*prompt[:length], 1]]))[0][:, -1]
        torch.testing.assert_close(reader.read([1]), longer)


@torch.inference_mode()
def test_what_is_taken_back_was_never_read(model):
    reader = Reader(model, [5, 6, 7], SamplingConfig())
    reader.read(reader.beginning)
    several = reader.read([1, 2, 3, 4], wanted=3)
    torch.testing.assert_close(several, model.forward(torch.tensor([[5, 6, 7, 1, 2, 3, 4]]))[0][0, -3:])
    reader.take_back(3)
    expected = model.forward(torch.tensor([[5, 6, 7, 1, 9]]))[0][:, -1]
    torch.testing.assert_close(reader.read([9]), expected)
    assert reader.free == 64 - 5


def test_logits_of_a_prompt_are_computed_of_its_end_alone(model, monkeypatch):
    asked = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: asked.append(hidden.shape[1]) or logits(hidden))
    list(stream(model, list(range(50)), greedy(3), ()))
    assert asked == [1, 1, 1]


def networks(tiny_transformer):
    from parlance.models.convolutional import Convolutional, ConvolutionalConfig
    from parlance.models.feedforward import FeedForwardConfig, FeedForwardModel
    from parlance.models.recurrent import Recurrent, RecurrentConfig

    return {
        "recurrent": Recurrent(RecurrentConfig(vocab_size=20, layers=2, width=16)),
        "convolutional": Convolutional(ConvolutionalConfig(vocab_size=20, layers=2, width=16)),
        "feedforward": FeedForwardModel(FeedForwardConfig(vocab_size=20, layers=2, width=16)),
        "transformer": tiny_transformer(vocab_size=20, context_length=600),
    }


@pytest.mark.parametrize("kind", ["recurrent", "convolutional", "feedforward", "transformer"])
def test_work_per_token_does_not_grow_with_the_text(kind, tiny_transformer):
    """Counted operations of one token behind 40 and behind 500: equal, but for a Transformer's attention."""
    from torch.utils.flop_counter import FlopCounterMode

    model = networks(tiny_transformer)[kind]
    model.initialise(torch.Generator().manual_seed(0))
    counts = []
    for length in (40, 500):
        reader = Reader(model, [1 + place % 9 for place in range(length)], SamplingConfig())
        reader.read(reader.beginning)
        with FlopCounterMode(display=False) as counter:
            reader.read([3])
        counts.append(counter.get_total_flops())
    if kind == "transformer":
        # Two layers; at most twice 500 rounded up to 512, and to a doubled capacity, two products of 32 each.
        assert counts[0] <= counts[1] <= counts[0] + 2 * 2 * 2 * 1024 * 32
    else:
        assert counts[0] == counts[1]


def test_batches_refuse_what_needs_the_text_of_each_row(model):
    for fields in ({"presence_penalty": 1.0}, {"stop": ("a",)}, {"top_logprobs": 3}, {"repetition_penalty": 1.1}):
        with pytest.raises(UserError, match=next(iter(fields))):
            generate_batch(model, PROMPTS, SamplingConfig(**fields), ())
