"""Demonstrations: conversations that end with the answer we want, as a person (or a program) wrote it.

A file is JSON lines; each line has one of these shapes:

    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    {"prompt": "Hi", "completion": "Hello."}
    {"instruction": "Translate to French.", "input": "Good day.", "output": "Bonjour."}       (`input` may be absent)

Strings of the second and third shape become one user turn and one assistant turn; instruction and input are joined
by an empty line. An optional object `metadata` is kept; other fields are ignored.

    demonstrations = read_demonstrations(Path("demonstrations.jsonl"))
    demonstrations[0].messages[-1]["content"]

Not done here: rendering with a chat template, tokenising, leaving out what does not fit a context.
The second shape is the "prompt-completion" format of TRL; the third is the one of Alpaca (Taori et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parlance.core.artifacts import read_jsonl, write_jsonl
from parlance.core.errors import UserError
from parlance.core.progress import say
from parlance.text.chat_template import check_messages

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": str}`."""


@dataclass(frozen=True)
class Demonstration:
    """One conversation that ends with the assistant's answer."""

    messages: list[Message]
    """At least one user turn; the last turn is the assistant's and not empty."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON values, for example an id."""

    @classmethod
    def of(cls, prompt: str, completion: str, metadata: dict[str, Any] | None = None) -> "Demonstration":
        """One user turn and one assistant turn."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return cls(turns, metadata or {})


def parse_demonstration(record: dict[str, Any]) -> Demonstration:
    """The demonstration in one JSON object. Raises UserError saying what is wrong with it."""
    if "messages" in record:
        turns = record["messages"]
        if not isinstance(turns, list):
            raise UserError("`messages` is not a list")
        check_messages(turns)
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    elif "completion" in record:
        messages = Demonstration.of(_text(record, "prompt"), _text(record, "completion")).messages
    elif "output" in record:
        instruction, extra = _text(record, "instruction"), _text(record, "input", "")
        prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
        messages = Demonstration.of(prompt, _text(record, "output")).messages
    else:
        raise UserError(
            "no demonstration here; give `messages`, or `prompt` and `completion`, or `instruction` and `output`"
        )
    if messages[-1]["role"] != "assistant":
        raise UserError("the last message is not the assistant's")
    if not any(message["role"] == "user" for message in messages):
        raise UserError("the conversation has no user message")
    if not messages[-1]["content"].strip():
        raise UserError("the assistant's answer is empty")
    metadata = record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError("`metadata` is not an object")
    return Demonstration(messages, metadata)


def read_demonstrations(path: Path, skip_bad: bool = False) -> list[Demonstration]:
    """Read a JSON-lines file of demonstrations.

    A bad line raises UserError with file, line and reason; with `skip_bad` such lines are left out, and their number
    and the first reason are told on standard error. A file without any demonstration raises UserError.
    """
    demonstrations: list[Demonstration] = []
    problems: list[str] = []
    for number, record in read_jsonl(path, skip_bad=skip_bad):
        try:
            demonstrations.append(parse_demonstration(record))
        except UserError as error:
            problems.append(f"{path}, line {number}: {error}")
            if not skip_bad:
                raise UserError(f"{problems[0]}; mend the line, or pass --skip-bad to leave such lines out") from error
    if problems:
        say(f"left out {len(problems)} of {len(problems) + len(demonstrations)} demonstrations; first: {problems[0]}")
    if not demonstrations:
        raise UserError(f"{path} has no usable demonstrations; write at least one JSON object a line")
    return demonstrations


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    """Write demonstrations in the `messages` shape, atomically; `read_demonstrations` gives them back."""
    write_jsonl(path, [{"messages": item.messages, "metadata": item.metadata} for item in demonstrations])


def _text(record: dict[str, Any], name: str, default: str | None = None) -> str:
    value = record.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"`{name}` is {'missing' if value is None else 'not a string'}")
    return value
