"""`POST /v1/chat/completions`: the assistant's next turn, whole or as it is written.

Rules of the stream: the first delta of each choice has the role; then text, or tool calls whose first delta has id and
name; the last has the reason why it ended. All chunks share id and time. With `include_usage` one more counts.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from parlance.inference.constraints import Constraint
from parlance.serving.errors import ApiError, json_bytes
from parlance.serving.events import unless_gone
from parlance.serving.hosted import Hosted
from parlance.serving.logprobs import chat_entries
from parlance.serving.prompts import conversation_tokens
from parlance.serving.requests import ChatRequest, Function
from parlance.serving.service import FINGERPRINT, Service, identity, now, usage_of
from parlance.serving.settings import (
    call_constraint,
    check_limits,
    demanded_functions,
    first_seed,
    form_constraint,
    offered_functions,
    sampling_of,
)
from parlance.serving.tools import CallBegins, CallReader, Event, Said
from parlance.serving.writing import Choice, Job, Writing, start


async def chat(service: Service, request: Request, body: ChatRequest) -> Response:
    """Answer a conversation. Raises ApiError."""
    hosted = service.hosted(request.scope, body.model)
    _check(service, body)
    functions = offered_functions(body, service.config)
    demanded = demanded_functions(body, functions)
    jobs = await unless_gone(request, service.apart(lambda: _jobs(service, hosted, body, functions, demanded)))
    writing = start(
        hosted, jobs, stop_strings=body.stop_strings(), seconds=service.config.max_seconds, watch=service.watch
    )
    reply = _Reply(hosted, body, writing, functions, forced=bool(demanded))
    if body.stream:
        return service.stream(_counted(service, hosted, writing, reply.chunks()), writing)
    try:
        answer = await unless_gone(request, reply.whole())
    finally:
        writing.cancel()
    service.watch.prompt(hosted.name, writing.prompt_tokens, writing.cached_tokens)
    return Response(json_bytes(answer), media_type="application/json")


def _check(service: Service, body: ChatRequest) -> None:
    check_limits(body, service.config)
    if len(body.messages) > service.config.max_messages:
        raise ApiError(400, f"messages: at most {service.config.max_messages} messages are allowed", param="messages")
    if (body.n or 1) > service.config.max_choices:
        raise ApiError(400, f"n: at most {service.config.max_choices} choices are allowed", param="n")
    if (body.top_logprobs or 0) > service.config.max_top_logprobs:
        raise ApiError(
            400, f"top_logprobs: at most {service.config.max_top_logprobs} are allowed", param="top_logprobs"
        )
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: set logprobs to true as well", param="top_logprobs")


def _jobs(
    service: Service, hosted: Hosted, body: ChatRequest, functions: list[Function], demanded: list[Function]
) -> list[Job]:
    """What the engine is asked, one job a choice."""
    tokenizer = hosted.model.tokenizer
    length = sum(len(m.content) if isinstance(m.content, str) else 0 for m in body.messages)
    service.check_length(hosted, length, "messages")
    prompt = conversation_tokens(tokenizer, body.messages, functions, calling=bool(demanded))
    service.checked_prompt(hosted, prompt, "messages")
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    room = service.room(hosted, prompt, asked, "messages")
    seed, jobs = first_seed(body), []
    free = functions if not demanded and body.response_format is None else []
    for number in range(body.n or 1):
        constraint = (
            call_constraint(demanded, hosted.model) if demanded else form_constraint(body.response_format, hosted.model)
        )
        sampling = sampling_of(
            body,
            max_tokens=room,
            seed=(seed + number) % 2**62,
            alternatives=(body.top_logprobs or 0) if body.logprobs else 0,
            vocab_size=hosted.vocab_size,
        )
        jobs.append(Job(prompt, sampling, constraint, later=_call_form(free, hosted)))
    return jobs


def _call_form(functions: list[Function], hosted: Hosted) -> Constraint | None:
    """The form of a call that the model may make; None where a schema is beyond what can be prescribed (the call is
    then only read)."""
    with suppress(ApiError):
        return call_constraint(functions, hosted.model) if functions else None
    return None


async def _counted(
    service: Service, hosted: Hosted, writing: Writing, chunks: AsyncGenerator[dict[str, Any], None]
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks; the prompt is counted at their end, when it is known what of it was in memory."""
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
    service.watch.prompt(hosted.name, writing.prompt_tokens, writing.cached_tokens)


class _Reply:
    """The answer to one request in both forms."""

    def __init__(
        self, hosted: Hosted, body: ChatRequest, writing: Writing, functions: list[Function], *, forced: bool
    ) -> None:
        self._hosted, self._body, self._writing = hosted, body, writing
        names = [function.name for function in functions]
        self._readers = [CallReader(names, inside=forced) if names else None for _ in writing.choices]
        self._id, self._created = identity("chatcmpl-"), now()

    async def whole(self) -> dict[str, Any]:
        """The `chat.completion`."""
        texts: list[str] = ["" for _ in self._readers]
        calls: list[list[dict[str, Any]]] = [[] for _ in self._readers]
        entries: list[list[dict[str, Any]]] = [[] for _ in self._readers]
        async for number, piece in self._writing.pieces():
            if piece is not None:
                entries[number] += self._entries(piece.draws)
            for event in self._events(number, None if piece is None else piece.text):
                if isinstance(event, Said):
                    texts[number] += event.text
                elif isinstance(event, CallBegins):
                    function = {"name": event.name, "arguments": ""}
                    calls[number].append({"id": identity("call_"), "type": "function", "function": function})
                else:
                    calls[number][-1]["function"]["arguments"] += event.text
        choices = []
        for number, choice in enumerate(self._writing.choices):
            message: dict[str, Any] = {"role": "assistant", "content": texts[number], "refusal": None}
            if calls[number]:
                message |= {"content": texts[number] or None, "tool_calls": calls[number]}
            choices.append(
                {
                    "index": number,
                    "message": message,
                    "logprobs": {"content": entries[number], "refusal": None} if self._body.logprobs else None,
                    "finish_reason": self._reason(number, choice),
                }
            )
        return self._frame("chat.completion") | {"choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The `chat.completion.chunk`s."""
        for number in range(len(self._readers)):
            yield self._chunk(number, {"role": "assistant", "content": ""})
        count = [-1] * len(self._readers)
        async for number, piece in self._writing.pieces():
            entries = [] if piece is None else self._entries(piece.draws)
            for event in self._events(number, None if piece is None else piece.text):
                if isinstance(event, Said):
                    delta: dict[str, Any] = {"content": event.text}
                elif isinstance(event, CallBegins):
                    count[number] += 1
                    function = {"name": event.name, "arguments": ""}
                    call = {"index": count[number], "id": identity("call_"), "type": "function", "function": function}
                    delta = {"tool_calls": [call]}
                else:
                    delta = {"tool_calls": [{"index": count[number], "function": {"arguments": event.text}}]}
                yield self._chunk(number, delta, entries)
                entries = []
            if entries:
                yield self._chunk(number, {"content": ""}, entries)
            if piece is None:
                yield self._chunk(number, {}, reason=self._reason(number, self._writing.choices[number]))
        if self._with_usage:
            yield self._frame("chat.completion.chunk") | {"choices": [], "usage": self._usage()}

    @property
    def _with_usage(self) -> bool:
        return self._body.stream_options is not None and bool(self._body.stream_options.include_usage)

    def _events(self, number: int, text: str | None) -> list[Event]:
        """What a piece of a choice says; None: its end."""
        reader = self._readers[number]
        if reader is None:
            return [Said(text)] if text else []
        if text is None:
            return reader.finish()
        events = reader.push(text)
        if reader.opened:
            self._writing.choices[number].constrain()
        return events

    def _entries(self, draws: Any) -> list[dict[str, Any]]:
        if not self._body.logprobs:
            return []
        return chat_entries(draws, self._hosted.model.tokenizer, self._body.top_logprobs or 0)

    def _reason(self, number: int, choice: Choice) -> str:
        reader = self._readers[number]
        called = reader is not None and reader.calls > 0
        return "tool_calls" if called and choice.finish == "stop" else choice.finish or "stop"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._hosted.name,
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(
        self, number: int, delta: dict[str, Any], entries: Any = (), reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = {"content": list(entries), "refusal": None} if self._body.logprobs and entries else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        frame = self._frame("chat.completion.chunk") | {"choices": [choice]}
        return frame | {"usage": None} if self._with_usage else frame

    def _usage(self) -> dict[str, Any]:
        writing = self._writing
        return usage_of(writing.prompt_tokens, writing.completion_tokens, writing.cached_tokens)
