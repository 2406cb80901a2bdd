"""Functions that a model may call: how it is told of them, and how its calls are read.

The form is the one that most open models were trained on (Hermes, Qwen): tools are described in the system message as
JSON lines, and a call is

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>

Results go back as a user's turn with `<tool_response>`. Where a call is demanded, the opening tag stands at the end of
the prompt and what follows is constrained to `call_schema`; where the model may choose, the constraint begins when it
has written the tag itself. Either way the arguments follow the schema of the function.

    reader = CallReader(["add"], inside=False)
    [event for piece in pieces for event in reader.push(piece)] + reader.finish()
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parlance.serving.requests import Function, ToolCall

OPENING, CLOSING = "<tool_call>", "</tool_call>"
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The schema of a function that names none."""
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
"""What stands before the arguments of a call."""


@dataclass(frozen=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call of a function; its arguments follow."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """A part of the arguments of the call that began last: JSON text."""

    text: str


Event = Said | CallBegins | Arguments


def system_text(functions: Sequence[Function]) -> str:
    """What the system message says of the tools."""
    lines = []
    for function in functions:
        described = {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or NO_ARGUMENTS,
        }
        lines.append(json.dumps({"type": "function", "function": described}, ensure_ascii=False))
    return (
        "You can call these functions; each line between the tags describes one as JSON.\n<tools>\n"
        + "\n".join(lines)
        + f'\n</tools>\nTo call one, write {OPENING}\n{{"name": NAME, "arguments": OBJECT}}\n{CLOSING}'
    )


def call_text(calls: Sequence[ToolCall]) -> str:
    """Calls that the assistant made earlier, as it writes them."""
    out = []
    for call in calls:
        name = json.dumps(call.function.name, ensure_ascii=False)
        arguments = call.function.arguments.strip() or "{}"
        out.append(f'{OPENING}\n{{"name": {name}, "arguments": {arguments}}}\n{CLOSING}')
    return "\n".join(out)


def result_text(content: str) -> str:
    """What a function gave back."""
    return f"<tool_response>\n{content}\n</tool_response>"


def call_schema(functions: Sequence[Function]) -> dict[str, Any]:
    """JSON schema of one call of one of the functions.

    References inside a function's own schema (`#/$defs/...`) are made to start at this one's root.
    """
    forms = []
    for number, function in enumerate(functions):
        place = "#/properties/arguments" if len(functions) == 1 else f"#/anyOf/{number}/properties/arguments"
        forms.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": function.name},
                    "arguments": _moved(_object(function.parameters), place),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _object(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Arguments are an object, also where a schema does not say so."""
    if not parameters:
        return NO_ARGUMENTS
    return {"type": "object", **parameters}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references to its own root point to `root`."""
    if isinstance(schema, list):
        return [_moved(entry, root) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: root + value[1:]
        if name == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, root)
        for name, value in schema.items()
    }


class CallReader:
    """Divides what a model writes into text and calls, as soon as each character's part is certain."""

    def __init__(self, names: Collection[str], *, inside: bool) -> None:
        """`names` of the functions there are; `inside`: the opening tag was the end of the prompt."""
        self._names = frozenset(names)
        self._held = ""
        self._place = "head" if inside else "text"  # text | head | arguments | behind
        self._spoken = False
        self._depth, self._quoted, self._escaped = 0, False, False
        self.calls = 0
        """How many calls began."""

    @property
    def opened(self) -> bool:
        """Whether the tag was written last, and nothing but blanks behind it: the moment to constrain what follows."""
        return self._place == "head" and not self._held.strip()

    def push(self, text: str) -> list[Event]:
        """What is certain now."""
        self._held += text
        events: list[Event] = []
        while True:
            before = self._place, len(self._held)
            events += {"text": self._text, "head": self._head, "arguments": self._arguments, "behind": self._behind}[
                self._place
            ]()
            if (self._place, len(self._held)) == before:
                return events

    def finish(self) -> list[Event]:
        """What is left when the text ends: something that looked like a call and is none is text."""
        held, self._held = self._held, ""
        if self._place == "head":
            return [Said(OPENING + held)] if held.strip() else []
        return [Said(held)] if self._place == "text" and (held.strip() or self._spoken) else []

    def _text(self) -> list[Event]:
        start = self._held.find(OPENING)
        if start >= 0:
            said, self._held, self._place = self._held[:start], self._held[start + len(OPENING) :], "head"
            return [Said(said)] if said.strip() else []
        sure = len(self._held) - _beginning(self._held, OPENING)
        # Blanks may be those before a call, which nobody wants to see.
        if not self._held[:sure].strip() and not self._spoken:
            return []
        said, self._held = self._held[:sure], self._held[sure:]
        self._spoken = True
        return [Said(said)] if said else []

    def _head(self) -> list[Event]:
        match = _HEAD.match(self._held)
        if match is not None and (name := json.loads(match[1], strict=False)) in self._names:
            self._held, self._place, self.calls = self._held[match.end() :], "arguments", self.calls + 1
            self._depth, self._quoted, self._escaped = 0, False, False
            return [CallBegins(name)]
        end = self._held.find(CLOSING)
        if end < 0:
            return []
        body, self._held, self._place = self._held[:end], self._held[end + len(CLOSING) :], "text"
        found = _call(body)
        if found is not None and found[0] in self._names:
            self.calls += 1
            return [CallBegins(found[0]), Arguments(json.dumps(found[1], ensure_ascii=False))]
        self._spoken = True
        return [Said(OPENING + body + CLOSING)]

    def _arguments(self) -> list[Event]:
        for place, character in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped, self._quoted = character == "\\", character != '"'
            elif character == '"':
                self._quoted = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    part, self._held, self._place = self._held[: place + 1], self._held[place + 1 :], "behind"
                    return [Arguments(part)]
        part, self._held = self._held, ""
        return [Arguments(part)] if part else []

    def _behind(self) -> list[Event]:
        end = self._held.find(CLOSING)
        if end >= 0:
            self._held, self._place = self._held[end + len(CLOSING) :], "text"
        return []


def _beginning(text: str, tag: str) -> int:
    """How many of the last characters of `text` may be the beginning of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def _call(body: str) -> tuple[str, dict[str, Any]] | None:
    """A call whose fields stand in another order; None where it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    return (found["name"], arguments) if isinstance(arguments, dict) else None
