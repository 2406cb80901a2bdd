"""From a conversation to tokens.

Models of Parlance speak ChatML: `parlance.text.chat_template`, where no content can end a turn. A model from elsewhere
brings a template of its own beside its tokenizer (Jinja, run in a sandbox); names of special tokens in contents stay
text there too: they are broken up before the template sees them and mended after.

    conversation_tokens(tokenizer, messages, functions=[], calling=False)
"""

import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from parlance.core.errors import UserError
from parlance.serving.errors import ApiError
from parlance.serving.requests import Function, Message
from parlance.serving.tools import NO_ARGUMENTS, OPENING, call_text, result_text, system_text
from parlance.text.chat_template import CHAT_TEMPLATE, END_OF_TURN, START_OF_TURN, encode_chat
from parlance.text.tokenizers import Tokenizer


def conversation_tokens(
    tokenizer: Tokenizer, messages: Sequence[Message], functions: Sequence[Function], *, calling: bool
) -> list[int]:
    """The prompt for the assistant's next turn; `calling`: it begins with the tag of a tool call.

    Raises ApiError where a message is malformed, and where the model has no form for conversations.
    """
    if not messages:
        raise ApiError(400, "messages: the conversation is empty; give at least one message", param="messages")
    template = _template(tokenizer)
    if template is not None and template != CHAT_TEMPLATE:
        ids = _templated(tokenizer, template, messages, functions)
    elif {START_OF_TURN, END_OF_TURN} <= tokenizer.special_tokens.keys():
        ids = []
        turns = plain_turns(messages, functions)
        # Turn by turn: ids of a conversation are those of its turns, and so a system message may stand anywhere.
        for number, turn in enumerate(turns, start=1):
            ids += encode_chat(tokenizer, [turn], add_generation_prompt=number == len(turns))[0]
    else:
        raise ApiError(400, "this model has no form for conversations; use /v1/completions", param="messages")
    return ids + tokenizer.encode(f"{OPENING}\n") if calling else ids


def plain_turns(messages: Sequence[Message], functions: Sequence[Function]) -> list[dict[str, str]]:
    """The conversation with three roles: tools in the system message, calls and results as text."""
    turns: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        content = text_of(message, f"messages[{number}]")
        if message.role == "tool":
            turns.append({"role": "user", "content": result_text(content)})
        elif message.role == "assistant" and message.tool_calls:
            parts = [content] if content else []
            turns.append({"role": "assistant", "content": "\n".join([*parts, call_text(message.tool_calls)])})
        else:
            role = "system" if message.role == "developer" else message.role
            turns.append({"role": role, "content": content})
    if functions:
        told = system_text(functions)
        if turns[0]["role"] == "system":
            turns[0] = {"role": "system", "content": f"{turns[0]['content'].strip()}\n\n{told}"}
        else:
            turns.insert(0, {"role": "system", "content": told})
    return turns


def text_of(message: Message, place: str) -> str:
    """The text of a message. Raises ApiError for parts that are no text, and for none where there must be some."""
    if message.content is None:
        if message.role == "assistant":
            return ""
        raise ApiError(400, f"{place}.content is missing; give a text", param=f"{place}.content")
    if isinstance(message.content, str):
        return message.content
    for number, part in enumerate(message.content):
        if part.type not in ("text", "refusal") or part.text is None:
            where = f"{place}.content[{number}]"
            raise ApiError(400, f"{where} is not a text; these models read nothing else", param=where)
    return "".join(part.text or "" for part in message.content)


def _template(tokenizer: Tokenizer) -> str | None:
    """The template beside a tokenizer: one, or the one called `default` of several."""
    found = tokenizer.config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _templated(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], functions: Sequence[Function]
) -> list[int]:
    """The ids of a conversation in the form of a foreign template."""
    import jinja2

    turns: list[dict[str, Any]]
    if functions and "tools" not in template:
        turns, tools = [dict(turn) for turn in plain_turns(messages, functions)], None
    else:
        turns, tools = _full_turns(messages), [_described(function) for function in functions] or None
    breaker = _unused_character(str(turns) + str(tools))
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    inside = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (value := tokenizer.config.get(name)) is not None
    }
    try:
        text = _compiled(template).render(
            messages=_broken(turns, inside, breaker),
            tools=_broken(tools, inside, breaker),
            add_generation_prompt=True,
            **special,
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise ApiError(
            400, f"the model's chat template cannot write this conversation: {str(error)[:200]}", param="messages"
        ) from error
    ids: list[int] = []
    for part in re.split(f"({inside.pattern})", text) if names else [text]:
        known = tokenizer.special_tokens.get(part)
        ids += tokenizer.encode(part.replace(breaker, "")) if known is None else [known]
    return ids


def _full_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation as templates expect it."""
    turns = []
    for number, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": text_of(message, f"messages[{number}]")}
        if message.tool_calls:
            turn["tool_calls"] = [
                {"id": call.id, "type": "function", "function": _called(call.function.name, call.function.arguments)}
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _called(name: str, arguments: str) -> dict[str, Any]:
    """A call with its arguments as an object, which is what templates write as JSON."""
    import json

    try:
        return {"name": name, "arguments": json.loads(arguments)}
    except (ValueError, RecursionError):
        return {"name": name, "arguments": arguments}


def _described(function: Function) -> dict[str, Any]:
    described = {
        "name": function.name,
        "description": function.description or "",
        "parameters": function.parameters or NO_ARGUMENTS,
    }
    return {"type": "function", "function": described}


def _unused_character(text: str) -> str:
    """A character for private use that the text does not have."""
    return next((chr(code) for code in range(0xF0000, 0xFFFFD) if chr(code) not in text), "\U000f0000")


def _broken(value: Any, names: re.Pattern[str], breaker: str) -> Any:
    """`value` with every name of a special token in its texts broken by `breaker` behind the first character."""
    if isinstance(value, str):
        return names.sub(lambda match: match[0][0] + breaker + match[0][1:], value)
    if isinstance(value, list):
        return [_broken(entry, names, breaker) for entry in value]
    if isinstance(value, dict):
        return {key: _broken(entry, names, breaker) for key, entry in value.items()}
    return value


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    """A template in a sandbox, with what the templates of models use. Raises ApiError where it is none."""
    import json

    import jinja2
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what training counts; here it is only its content."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own form)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise UserError(f"the model's chat template is not Jinja that can be read: {error}") from error
