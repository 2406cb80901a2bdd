"""A conversation with a model in a terminal: its memory, its commands, its keys.

The memory is as long as the model's context: the oldest turns are forgotten when there is no room for an answer.
"""

from collections.abc import Generator
from contextlib import closing, suppress

from parlance.cli.output import stream
from parlance.core.errors import UserError
from parlance.inference.model import Continuation, Model
from parlance.inference.sampling import SamplingConfig
from parlance.text.chat_template import encode_chat

HELP = """\
End a message with an empty line (or Ctrl-D on it); a pasted function may have many lines, but no empty one.
/reset   forget the conversation
/help    show this
/quit    leave (so does Ctrl-D at the start of a message)
Ctrl-C stops an answer, not the program."""


class Conversation:
    """The turns so far, and how answers are drawn."""

    def __init__(self, model: Model, sampling: SamplingConfig) -> None:
        self.model, self.sampling = model, sampling
        self.messages: list[dict[str, str]] = []
        self.answers = 0
        self.last: Continuation | None = None
        """The answer that is being given, or was given last."""

    def reset(self) -> None:
        """Forget all turns."""
        self.messages.clear()

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to `text` piece by piece; what was yielded is remembered, also where the caller stops early.

        Raises UserError where `text` alone does not fit the context; it is then forgotten.
        """
        self.messages.append({"role": "user", "content": text})
        self._make_room()
        # Another seed for every answer, so that a question that is asked again can be answered differently.
        sampling = self.sampling.model_copy(update={"seed": self.sampling.seed + self.answers})
        said = ""
        try:
            self.last = self.model.chat_stream(self.messages, sampling)
            for piece in self.last:
                said += piece
                yield piece
        except UserError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": said})
            self.answers += 1

    def _make_room(self) -> None:
        """Forget the oldest exchanges until a quarter of the context (or `max_tokens`) is left for the answer."""
        context = self.model.language_model.context_length
        if context is None:
            return
        reserve = min(self.sampling.max_tokens, context // 4)
        while len(self.messages) > 1 and self._length() + reserve > context:
            del self.messages[:2]

    def _length(self) -> int:
        return len(encode_chat(self.model.tokenizer, self.messages, add_generation_prompt=True)[0])


def converse(conversation: Conversation) -> None:
    """Read messages from the terminal and answer them until the user leaves."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it gives `input` editing keys and a history
    print(f"{conversation.model.folder}\n{HELP}\n")
    while (message := read_message()) is not None:
        command = message.strip()
        if command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
            print("(forgotten)\n")
        elif command == "/help":
            print(HELP + "\n")
        else:
            try:
                with closing(conversation.answer(message)) as pieces:
                    stream(pieces)
                if conversation.last is not None and conversation.last.ended == "context":
                    print("(cut: the model's context is full)")
                print()
            except KeyboardInterrupt:
                print("(stopped)\n")
            except UserError as error:
                print(f"({error})\n")


def read_message() -> str | None:
    """The lines up to an empty one or Ctrl-D, or a command alone; None where the user is done."""
    lines: list[str] = []
    while True:
        try:
            line = input(". " if lines else "> ")
        except EOFError:
            print()
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
            lines.clear()
            continue
        if not lines and line.strip() in ("/quit", "/reset", "/help"):
            return line
        if line.strip():
            lines.append(line)
        elif lines:
            return "\n".join(lines)
