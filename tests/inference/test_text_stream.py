"""Text that is certain: against cutting the whole text, however it is divided into tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.inference.text_stream import TextStream
from parlance.text.tokenizers import train_tokenizer

BYTES = train_tokenizer([], "byte")
PAIRS = train_tokenizer(["abababcabc aab abc " * 20], "bpe", 275)


def written(text: str, stop: list[str], tokenizer=BYTES) -> tuple[list[str], bool]:
    stream = TextStream(tokenizer, stop)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    return [*pieces, stream.finish()], stream.stopped


def cut(text: str, stop: list[str]) -> str:
    """Where characters come one by one: up to the first stop string that is complete."""
    for end in range(1, len(text) + 1):
        found = [len(string) for string in stop if text[:end].endswith(string)]
        if found:
            return text[: end - max(found)]
    return text


@settings(deadline=None, max_examples=200)
@given(
    text=st.text("abcé ", max_size=30),
    stop=st.lists(st.text("abcé ", min_size=1, max_size=5), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(text, stop):
    for tokenizer in (BYTES, PAIRS):
        pieces, stopped = written(text, stop, tokenizer)
        assert "".join(pieces) == cut(text, stop)
        assert stopped == any(string in text for string in stop)


@settings(deadline=None, max_examples=100)
@given(text=st.text("abc", max_size=20), stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_that_was_shown_is_taken_back_and_nothing_certain_is_held(text, stop):
    stream = TextStream(BYTES, stop)
    shown = ""
    for end, token in enumerate(BYTES.encode(text), start=1):
        shown += stream.push(token)
        if stream.stopped:
            break
        held = text[len(shown) : end]
        assert text[:end].startswith(shown)
        assert held == "" or any(string.startswith(held) for string in stop)


def test_a_stop_string_may_lie_across_tokens_and_characters():
    assert written("one\n\ntwo", ["\n\n"]) == (["o", "n", "e", "", "", "", "", "", ""], True)
    assert "".join(written("10€, 20€", ["€,"])[0]) == "10"


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=12))
def test_bytes_that_are_no_text_come_out_as_when_decoded_at_once(data):
    stream = TextStream(BYTES)
    pieces = [stream.push(byte) for byte in data]
    assert "".join([*pieces, stream.finish()]) == data.decode("utf-8", errors="replace")


def test_characters_come_whole():
    stream = TextStream(BYTES)
    assert [stream.push(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert [TextStream(BYTES).push(token) for token in (BYTES.end_of_text,)] == [""]


@pytest.mark.parametrize("stop", [[], ["x"]])
def test_a_cut_character_is_shown_as_such(stop):
    stream = TextStream(BYTES, stop)
    assert stream.push(0xE2) + stream.push(0x82) == ""
    assert stream.finish() == "�"
    assert not stream.stopped
