"""The conversation of `parlance chat`: its memory, its keys, its commands; with a model whose answers are known."""

from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parlance.cli.conversation import Conversation, converse, read_message
from parlance.cli.output import printable
from parlance.core.errors import UserError
from parlance.inference.generation import Ending
from parlance.inference.model import Continuation
from parlance.inference.sampler import Draw
from parlance.inference.sampling import SamplingConfig
from parlance.inference.text_stream import TextStream
from parlance.text.chat_template import encode_chat
from parlance.text.tokenizers import train_tokenizer


class Echo:
    """Answers with the last message, a character at a time; stops like the real one where the context is full."""

    def __init__(self, context_length: int | None) -> None:
        self.language_model = SimpleNamespace(context_length=context_length)
        self.tokenizer = train_tokenizer((), "byte")
        self.folder = Path("echo")
        self.seen: list[list[dict[str, str]]] = []
        self.seeds: list[int] = []
        self.interrupt_after: int | None = None
        self.full_after: int | None = None

    def chat_stream(self, messages: list[dict[str, str]], sampling: SamplingConfig) -> Continuation:
        return Continuation(self.drawn(messages, sampling), TextStream(self.tokenizer))

    def drawn(self, messages: list[dict[str, str]], sampling: SamplingConfig) -> Generator[Draw, None, Ending]:
        self.seen.append([dict(message) for message in messages])
        self.seeds.append(sampling.seed)
        context = self.language_model.context_length
        if context is not None and len(encode_chat(self.tokenizer, messages, add_generation_prompt=True)[0]) >= context:
            raise UserError("the prompt is too long; shorten it")
        for number, character in enumerate(messages[-1]["content"]):
            if number == self.interrupt_after:
                raise KeyboardInterrupt
            if number == self.full_after:
                return "context"
            for token in self.tokenizer.encode(character):
                yield Draw(token, 0.0)
        return "stop"


def talk(context_length: int | None = None) -> tuple[Conversation, Echo]:
    model = Echo(context_length)
    return Conversation(model, SamplingConfig(max_tokens=40, seed=7)), model  # type: ignore[arg-type]


def test_turns_are_remembered_and_forgotten() -> None:
    conversation, model = talk()
    assert "".join(conversation.answer("one")) == "one"
    assert "".join(conversation.answer("two")) == "two"
    assert [message["content"] for message in model.seen[1]] == ["one", "one", "two"]
    assert [message["role"] for message in model.seen[1]] == ["user", "assistant", "user"]
    assert model.seeds == [7, 8], "a question that is asked again may be answered differently"
    conversation.reset()
    list(conversation.answer("three"))
    assert [message["content"] for message in model.seen[2]] == ["three"]


def test_the_oldest_turns_make_room() -> None:
    conversation, model = talk(context_length=160)
    for text in ("a" * 20, "b" * 20, "c" * 20):
        assert "".join(conversation.answer(text)) == text
    used = [len(encode_chat(model.tokenizer, seen, add_generation_prompt=True)[0]) for seen in model.seen]
    assert all(count + 40 <= 160 for count in used)
    assert [seen[0]["content"][0] for seen in model.seen] == ["a", "a", "b"]
    assert all(seen[0]["role"] == "user" for seen in model.seen)


def test_a_message_that_never_fits_is_forgotten() -> None:
    conversation, model = talk(context_length=100)
    list(conversation.answer("short"))
    with pytest.raises(UserError, match="shorten it"):
        list(conversation.answer("x" * 200))
    list(conversation.answer("again"))
    assert [message["content"] for message in model.seen[-1]] == ["again"]


def test_a_stopped_answer_is_remembered_as_far_as_it_went() -> None:
    conversation, _ = talk()
    pieces = conversation.answer("abcdef")
    assert next(pieces) + next(pieces) == "ab"
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "ab"}


def typed(monkeypatch: pytest.MonkeyPatch, *lines: Any) -> None:
    """What `input` gives, one after the other; an exception class is raised."""
    queue = iter(lines)

    def read(_: str) -> str:
        line = next(queue)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["def f(x):", "    return x", ""], "def f(x):\n    return x"),
        (["", "  ", "after empty lines", ""], "after empty lines"),
        (["no empty line", EOFError], "no empty line"),
        ([EOFError], None),
        (["/reset"], "/reset"),
        (["text", "/quit", ""], "text\n/quit"),
        (["thrown away", KeyboardInterrupt, "kept", ""], "kept"),
    ],
)
def test_messages_end_with_an_empty_line(
    lines: list[Any], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, *lines)
    assert read_message() == message


def test_a_session(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation, model = talk(context_length=100)
    typed(monkeypatch, "hello", "", "/help", "/reset", "x" * 200, "", "bye", "", "/quit", "never read")
    converse(conversation)
    out = capsys.readouterr().out
    assert out.count("Ctrl-C stops an answer") == 2, "at the start and for /help"
    assert "hello\n" in out
    assert "(the prompt is too long; shorten it)" in out
    assert [message["content"] for message in model.seen[-1]] == ["bye"]


def test_control_c_stops_the_answer_and_not_the_program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation, model = talk()
    model.interrupt_after = 3
    typed(monkeypatch, "abcdef", "", "xy", "", EOFError)
    converse(conversation)
    out = capsys.readouterr().out
    assert "abc\n(stopped)" in out
    assert "xy\n" in out
    assert conversation.messages[1]["content"] == "abc"


def test_an_answer_that_a_full_context_cuts_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conversation, model = talk()
    typed(monkeypatch, "abcdef", "", EOFError)
    model.full_after = 3
    converse(conversation)
    assert "abc\n(cut: the model's context is full)" in capsys.readouterr().out
    model.full_after = None
    typed(monkeypatch, "abcdef", "", EOFError)
    converse(conversation)
    assert "full" not in capsys.readouterr().out


def test_no_model_can_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\nd\x07\x9b") == "a\\x1b[2Jb\tc\nd\\x07\\x9b"
