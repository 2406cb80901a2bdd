"""The exact toy model: the figures of its example, its definition, and the contract."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.models import exact
from parlance.models.contract import LanguageModel
from parlance.models.exact import END, ConditionalFrequencies

FOX = "The quick brown fox jumps over the lazy dog\nThe fox is much faster than the lazy dog\n"


@pytest.mark.parametrize(
    ("word", "context", "p"),
    [
        ("The", "", 1),
        ("quick", "The", 0.5),
        ("fox", "The", 0.5),
        ("jumps", "fox", 0.5),
        ("is", "fox", 0.5),
        ("is", "The fox", 1),
        ("jumps", "brown fox", 1),
        ("lazy", "the", 1),
        ("quick", "the", 0),
        (END, "lazy dog", 1),
        ("unicorn", "The", 0),
    ],
)
def test_the_two_sentences(word, context, p):
    model = ConditionalFrequencies.from_text(FOX)
    assert model.probability(word, context) == p
    assert model.probability(word, context.split()) == p


def test_the_example_runs():
    assert doctest.testmod(exact) == (0, 5)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_equals_the_definition(sentences, data):
    model = ConditionalFrequencies.from_sentences(sentences)
    sentence = data.draw(st.sampled_from(sentences))
    start = data.draw(st.integers(0, len(sentence)))
    context = sentence[start : data.draw(st.integers(start, len(sentence)))]
    texts = ["^" + "".join(each) + "$" for each in sentences]
    pattern = "".join(context) or "^"
    hits = [text[i + len(pattern)] for text in texts for i in range(len(text) - 1) if text[i:].startswith(pattern)]
    for word in "abc":
        assert model.probability(word, context) == hits.count(word) / len(hits)
    assert model.probability(END, context) == hits.count("$") / len(hits)


def test_what_the_text_does_not_hold_is_the_users_error():
    model = ConditionalFrequencies.from_text(FOX)
    for context in ("dog The", "unicorn", "quick fox"):
        with pytest.raises(UserError, match=f"does not hold '{context}'"):
            model.probability("fox", context)
    with pytest.raises(UserError, match="does not hold 'unicorn'"):
        model.continue_text("The unicorn", seed=0)
    with pytest.raises(UserError, match="no words"):
        ConditionalFrequencies.from_text(" \n\n")
    with pytest.raises(UserError, match="marks the end"):
        ConditionalFrequencies.from_text("a </s>")
    with pytest.raises(UserError, match="outside the vocabulary"):
        model.forward(torch.tensor([[99]]))


def test_continues_a_text():
    model = ConditionalFrequencies.from_text(FOX)
    drawn = {model.continue_text("", seed) for seed in range(20)}
    assert drawn == set(FOX.splitlines())  # with its whole past as context it only repeats
    assert model.continue_text("the", seed=0, max_words=1) == "the lazy"
    assert model.continue_text("", seed=3) == model.continue_text("", seed=3)


def test_is_a_language_model():
    model = ConditionalFrequencies.from_text(FOX)
    contract: LanguageModel = model
    number = {word: i for i, word in enumerate(model.words)}
    assert contract.vocab_size == len(set(FOX.split())) + 1
    tokens = torch.tensor([[number[w] for w in ("The", "fox", "is", END, "The", "fox")]])
    logits, state = contract.forward(tokens)
    assert logits.shape == (1, 6, contract.vocab_size)
    p = logits.exp().numpy()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-6)
    assert p[0, 0, number["quick"]] == p[0, 0, number["fox"]] == 0.5
    assert p[0, 1, number["is"]] == 1  # "The fox"
    assert p[0, 3, number["The"]] == 1  # a new sentence
    assert p[0, 5, number["is"]] == 1  # what was before it is forgotten
    first, middle = contract.forward(tokens[:, :2])
    second, last = contract.forward(tokens[:, 2:], middle)
    assert torch.equal(torch.cat((first, second), dim=1), logits)
    assert torch.equal(last, state)
    # "dog The" does not occur: its longest end that does is "The".
    unseen, _ = contract.forward(torch.tensor([[number["dog"], number["The"]]]))
    assert unseen[0, 1].exp()[number["quick"]] == 0.5
    # No part of the past occurs before another word: the words of the whole text.
    nothing = ConditionalFrequencies(
        (*model.words[:-1], "never", END),
        tuple(tuple(len(model.words) if n == len(model.words) - 1 else n for n in line) for line in model.sentences),
        len(model.words),
    )
    everything, _ = nothing.forward(torch.tensor([[len(model.words) - 1]]))
    assert everything[0, 0].exp()[number["The"]] == pytest.approx(2 / 20)


def test_documents_of_tokens_saved_and_opened_again(tmp_path):
    documents = [[5, 3, 5, 4], [3, 4]]
    model = ConditionalFrequencies.from_documents(documents, [f"<{index}>" for index in range(8)], end=0)
    model.save(tmp_path)
    again = ConditionalFrequencies.load(tmp_path)
    assert again == model
    assert again.probability("<4>", ["<5>"]) == 0.5
    p = again.forward(torch.tensor([[3, 0]]))[0].exp()[0]
    assert p[0].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0, 0]
    assert p[1, 5] == p[1, 3] == 0.5  # the beginnings of the two
    with pytest.raises(UserError, match="more than the exact model takes"):
        ConditionalFrequencies.from_documents([[1] * 200_001], ["a", "b"], end=0)
    np.save(tmp_path / "tokens.npy", np.array([9, 0]))
    with pytest.raises(UserError, match=r"tokens\.npy does not fit its config\.json"):
        ConditionalFrequencies.load(tmp_path)
