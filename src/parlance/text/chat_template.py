"""Conversations as token ids: the ChatML form, with a mask of what the assistant said.

A message becomes `<|im_start|>role`, a newline, its stripped content, `<|im_end|>` and a newline. The assistant mask
covers the content and the `<|im_end|>` of assistant turns, and nothing else: training on it teaches the model to stop.
Contents are encoded as ordinary text, so a user who types `<|im_end|>` cannot end a turn. Rendering is
prefix-preserving: the ids of the first k messages begin the ids of all of them.

`CHAT_TEMPLATE` is the same form as a Jinja template; it is stored beside the tokenizer, where `transformers`,
vLLM and others find it. (Those recognise special tokens inside contents; only `encode_chat` does not.)

    ids, mask = encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parlance.core.errors import UserError

if TYPE_CHECKING:
    from parlance.text.tokenizers import Tokenizer

START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
ROLES = ("system", "user", "assistant")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] | trim + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Jinja source of the form; `{% generation %}` marks what the assistant mask covers."""

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant", "content": str}`; other keys are ignored."""


def check_messages(messages: Sequence[Message]) -> None:
    """Raise UserError unless each message has a known role and text, and only the first is a system message."""
    if not messages:
        raise UserError("the conversation has no messages; give at least one with a role and a content")
    for number, message in enumerate(messages, start=1):
        where = f"message {number} of the conversation"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise UserError(f"{where} is not an object with the fields `role` and `content`")
        if message["role"] not in ROLES:
            raise UserError(f"{where} has the role {message['role']!r}; roles are {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise UserError(f"the content of {where} is not a string")
        if message["role"] == "system" and number > 1:
            raise UserError(f"{where} is a system message; only the first one may be")


def render_chat(messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
    """The conversation as one string, to show to people. Raises UserError on malformed messages."""
    check_messages(messages)
    turns = [f"{START_OF_TURN}{m['role']}\n{m['content'].strip()}{END_OF_TURN}\n" for m in messages]
    return "".join(turns) + (f"{START_OF_TURN}assistant\n" if add_generation_prompt else "")


def encode_chat(
    tokenizer: "Tokenizer", messages: Sequence[Message], add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """(ids, assistant mask) of a conversation, both of the same length; the mask is False on the generation prompt.

    Headers, contents and ends are encoded one by one, so the ids before an answer do not depend on the answer.
    Raises UserError on malformed messages and for a tokenizer without the two turn tokens.
    """
    check_messages(messages)
    start, end = tokenizer.special_id(START_OF_TURN), tokenizer.end_of_turn
    newline = tokenizer.encode("\n")
    ids: list[int] = []
    mask: list[bool] = []
    for message in messages:
        header = [start, *tokenizer.encode(f"{message['role']}\n")]
        turn = [*tokenizer.encode(message["content"].strip()), end]
        ids += [*header, *turn, *newline]
        mask += [False] * len(header) + [message["role"] == "assistant"] * len(turn) + [False] * len(newline)
    if add_generation_prompt:
        header = [start, *tokenizer.encode("assistant\n")]
        ids += header
        mask += [False] * len(header)
    return ids, mask
