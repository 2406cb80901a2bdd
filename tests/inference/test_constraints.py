"""Forms: masks against brute force, and whatever random logits write against the form itself."""

import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.inference.constraints import Constraint, choice, json_schema, regular_expression
from parlance.inference.generation import draws
from parlance.inference.sampler import Sampler
from parlance.inference.sampling import SamplingConfig
from parlance.text.tokenizers import Tokenizer, train_tokenizer

LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789 {}[]":,.-_'
BYTES = train_tokenizer([], "byte")
CHARACTERS = train_tokenizer([LETTERS], "char", 80)
PAIRS = train_tokenizer(['{"name": "abc", "count": 12, "tags": ["x", "y"]} true false null ' * 30], "bpe", 300)
WORDS = train_tokenizer(["yes no maybe the cat is here"], "word", 40)
TOKENIZERS = {"byte": BYTES, "char": CHARACTERS, "bpe": PAIRS}

SCHEMAS: list[dict[str, object]] = [
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "count": {"type": "integer", "minimum": 0}},
        "required": ["name", "count"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "bc", 3, None]}, "minItems": 1, "maxItems": 4},
    {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": -5, "maximum": 5}]},
    {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "value": {"const": 1}},
        "required": ["value"],
        "additionalProperties": False,
    },
    {"type": "string", "pattern": "^[a-f]{2,4}(-[0-9])?$"},
]
EXPRESSIONS = ["(yes|no)( [a-c]+){0,3}", "[0-9]{3}-[0-9]{4}", "a*b?", "x|y|zz", r"\{[^{}]{0,5}\}"]


def write(form: Constraint, tokenizer: Tokenizer, seed: int, most: int = 400) -> str | None:
    """A text by random logits; None where it is not complete after `most` tokens."""
    rng = np.random.default_rng(seed)
    sampler = Sampler(SamplingConfig(temperature=2.0, seed=seed), [0], vocab_size=tokenizer.vocab_size, constraint=form)
    tokens = sampler.forced()
    while not sampler.finished:
        if len(tokens) >= most:
            return None
        tokens.append(sampler.draw(rng.normal(size=tokenizer.vocab_size).astype(np.float32)).token)
        tokens += sampler.forced()
    return tokenizer.decode(tokens)


@settings(deadline=None, max_examples=60)
@given(schema=st.sampled_from(SCHEMAS), kind=st.sampled_from(sorted(TOKENIZERS)), seed=st.integers(0, 10**6))
def test_whatever_is_written_parses_and_validates(schema, kind, seed):
    jsonschema = pytest.importorskip("jsonschema")
    text = write(json_schema(schema, TOKENIZERS[kind]), TOKENIZERS[kind], seed)
    if text is not None:
        jsonschema.validate(json.loads(text), schema)


@settings(deadline=None, max_examples=60)
@given(pattern=st.sampled_from(EXPRESSIONS), kind=st.sampled_from(sorted(TOKENIZERS)), seed=st.integers(0, 10**6))
def test_whatever_is_written_matches(pattern, kind, seed):
    text = write(regular_expression(pattern, TOKENIZERS[kind]), TOKENIZERS[kind], seed)
    assert text is None or re.fullmatch(pattern, text)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_every_choice_is_written_and_nothing_else(kind):
    options = ["yes", "yes no", "no", '"a"']
    form: Callable[[], Constraint] = lambda: choice(options, TOKENIZERS[kind])  # noqa: E731
    assert {write(form(), TOKENIZERS[kind], seed) for seed in range(60)} == set(options)


def test_the_mask_is_that_of_brute_force():
    """On a vocabulary of few characters: a token may follow where some text of the form begins so."""
    tokenizer = train_tokenizer(["abc"], "char", 20)
    letters = {tokenizer.token_bytes(index).decode(): index for index in range(tokenizer.vocab_size)}
    texts = [""] + [a for n in range(1, 6) for a in _texts("abc", n)]
    for pattern in ("a(b|c)*a?", "(ab|ba){1,2}", "a{2}|b{3}", "[^a]*"):
        fitting = [text for text in texts if re.fullmatch(pattern, text)]
        for begun in [text for text in texts if len(text) <= 3]:
            if not any(text.startswith(begun) for text in fitting):
                continue
            form = regular_expression(pattern, tokenizer)
            for letter in begun:
                form.accept(letters[letter])
            following = {text[len(begun)] for text in fitting if text.startswith(begun) and len(text) > len(begun)}
            expected = {letters[letter] for letter in following}
            if begun in fitting:
                expected.add(tokenizer.end_of_text)
            if form.finished:
                assert not following
            else:
                assert set(np.flatnonzero(form.allowed()).tolist()) == expected, (pattern, begun)


def _texts(letters: str, length: int) -> list[str]:
    return [""] if length == 0 else [text + letter for text in _texts(letters, length - 1) for letter in letters]


def test_what_must_follow_is_not_computed(tiny_transformer):
    schema = {"enum": ["a constant of many letters"]}
    model = tiny_transformer()
    passes = 0
    hidden = model.hidden

    def counting(*arguments, **named):
        nonlocal passes
        passes += 1
        return hidden(*arguments, **named)

    model.hidden = counting
    drawn = list(draws(model, [1, 2], SamplingConfig(), (256,), constraint=json_schema(schema, BYTES)))
    assert BYTES.decode([draw.token for draw in drawn]) == '"a constant of many letters"'
    assert passes <= 1


def test_a_text_ends_where_its_form_does_and_not_before(tiny_transformer):
    model = tiny_transformer()
    for seed in range(5):
        form = choice(["ab", "abcd"], BYTES)
        tokens = [draw.token for draw in draws(model, [65], SamplingConfig(seed=seed), (256,), 260, constraint=form)]
        assert BYTES.decode(tokens) in ("ab", "abcd")
        assert form.finished


def test_guesses_and_forms_go_together(tiny_transformer):
    from parlance.inference.speculative import PromptLookup

    model, prompt = tiny_transformer(), BYTES.encode("abcabcabc")
    config = SamplingConfig(temperature=0.0, max_tokens=40)
    texts = [
        [draw.token for draw in draws(model, prompt, config, (256,), constraint=form, drafter=drafter)]
        for form, drafter in (
            (regular_expression("(abc|cab| ){0,9}", BYTES), None),
            (regular_expression("(abc|cab| ){0,9}", BYTES), PromptLookup()),
        )
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (False, "false allows nothing"),
        ({"enum": []}, "unsatisfiable"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "unsatisfiable"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "unsatisfiable"),
        ({"$ref": "#"}, "nothing has this form"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "too complex"),
        ({"type": "foo"}, "invalid type"),
        ({"not": {}}, "unimplemented keys"),
        ({"type": "string", "pattern": "^((a{100}){100}){100}$"}, "too complex"),
        ({"$ref": "http://example.com/x.json"}, "not present"),
        ([1], "give a JSON object"),
        ({"enum": ["x" * 300_000]}, "too many"),
        ({"enum": [{1, 2}]}, "no JSON"),
    ],
)
def test_schemas_that_cannot_be_are_refused(schema, reason):
    with pytest.raises(UserError, match=reason):
        json_schema(schema, BYTES)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "unclosed group"),
        ("a(?=b)", "look-around"),
        (r"(a)\1", "regular expression"),
        ("((a{100}){100}){100}", "too complex"),
        ("(a?){500}a{500}", "too complex"),
        ("(" * 2000 + "a" + ")" * 2000, "regular expression"),
        ("a" * 300_000, "too many"),
    ],
)
@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_expressions_that_explode_are_refused(pattern, reason, kind):
    with pytest.raises(UserError, match=reason):
        regular_expression(pattern, TOKENIZERS[kind])


def test_a_vocabulary_that_cannot_write_the_form_is_refused():
    message = "vocabulary cannot write"
    with pytest.raises(UserError, match=message):
        json_schema(SCHEMAS[0], WORDS)
    with pytest.raises(UserError, match=f"{message} 'é'"):
        choice(["yes", "é"], CHARACTERS)
    with pytest.raises(UserError, match="nothing has this form"):
        regular_expression("é+", CHARACTERS)
    with pytest.raises(UserError, match=message):
        regular_expression("yes, no", WORDS)
    with pytest.raises(UserError, match="at least one"):
        choice([], BYTES)
    # What is left of a form is written all the same.
    assert {write(regular_expression("é|yes|a€b", CHARACTERS), CHARACTERS, seed) for seed in range(5)} == {"yes"}
    assert write(choice([" no cat"], WORDS), WORDS, 0) == " no cat"


def test_a_token_that_may_not_follow_is_an_error():
    form = choice(["yes"], BYTES)
    with pytest.raises(ValueError, match="may not follow"):
        form.accept(ord("n"))


def test_the_generator_of_a_form_never_meets_an_empty_mask():
    """Every prefix of every text that random logits write has something that may follow."""
    for seed in range(20):
        form = json_schema({}, PAIRS)
        rng = np.random.default_rng(seed)
        for _ in range(60):
            form.forced()
            if form.finished:
                break
            ids = np.flatnonzero(form.allowed())
            form.accept(int(rng.choice(ids)))
    assert torch.from_numpy(json_schema({}, PAIRS).allowed()).dtype is torch.bool
