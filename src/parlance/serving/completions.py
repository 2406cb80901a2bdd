"""`POST /v1/completions`: the continuation of one or several prompts, whole or as it is written.

With `echo` the answer begins with the prompt; with `logprobs` too, the prompt's own tokens are scored, which is how
evaluation harnesses read likelihoods (`max_tokens` 0 or 1). The first token of a text has none: nothing predicts it.
"""

import codecs
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from parlance.inference.sampler import Draw
from parlance.serving.errors import ApiError, json_bytes
from parlance.serving.events import unless_gone
from parlance.serving.hosted import Hosted
from parlance.serving.logprobs import completion_columns
from parlance.serving.requests import CompletionRequest
from parlance.serving.service import FINGERPRINT, Service, identity, now, usage_of
from parlance.serving.settings import check_limits, first_seed, sampling_of
from parlance.serving.writing import Choice, Job, Writing, start

DEFAULT_TOKENS = 16
"""How many tokens a request gets that does not say."""


async def complete(service: Service, request: Request, body: CompletionRequest) -> Response:
    """Answer a request. Raises ApiError."""
    hosted = service.hosted(request.scope, body.model)
    _check(service, body)
    jobs = await unless_gone(request, service.apart(lambda: _jobs(service, hosted, body)))
    writing = start(
        hosted, jobs, stop_strings=body.stop_strings(), seconds=service.config.max_seconds, watch=service.watch
    )
    reply = _Reply(service, hosted, body, writing)
    if body.stream:
        return service.stream(reply.chunks(), writing)
    try:
        answer = await unless_gone(request, reply.whole())
    finally:
        writing.cancel()
    return Response(json_bytes(answer), media_type="application/json")


def _check(service: Service, body: CompletionRequest) -> None:
    check_limits(body, service.config)
    if body.suffix:
        raise ApiError(400, "suffix: these models only continue a text; leave it out", param="suffix")
    if (body.logprobs or 0) > service.config.max_top_logprobs:
        raise ApiError(400, f"logprobs: at most {service.config.max_top_logprobs} are allowed", param="logprobs")
    best_of, n = body.best_of or body.n or 1, body.n or 1
    if best_of < n:
        raise ApiError(400, f"best_of: {best_of} is less than n ({n})", param="best_of")
    if body.stream and best_of > n:
        raise ApiError(400, "best_of: the best is known only at the end; leave out stream", param="best_of")
    prompts = len(body.prompt) if isinstance(body.prompt, list) and not _is_ids(body.prompt) else 1
    if not prompts:
        raise ApiError(400, "prompt: the list is empty; give at least one prompt", param="prompt")
    if prompts * best_of > service.config.max_choices:
        raise ApiError(
            400,
            f"{prompts} prompts with {best_of} choices are more than the {service.config.max_choices} texts allowed",
            param="n" if best_of > 1 else "prompt",
        )


def _is_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def _jobs(service: Service, hosted: Hosted, body: CompletionRequest) -> list[Job]:
    """What the engine is asked: all choices of the first prompt, then those of the next."""
    jobs = []
    seed = first_seed(body)
    for prompt in _prompts(service, hosted, body):
        service.checked_prompt(hosted, prompt, "prompt")
        asked = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        if hosted.context_length is not None and body.max_tokens is None:
            asked = max(1, min(asked, hosted.context_length - len(prompt)))
        room = service.room(hosted, prompt, asked, "prompt")
        for number in range(body.best_of or body.n or 1):
            sampling = sampling_of(
                body,
                max_tokens=max(1, room),
                seed=(seed + number) % 2**62,
                alternatives=body.logprobs or 0,
                vocab_size=hosted.vocab_size,
            )
            scored = bool(body.echo) and body.logprobs is not None
            jobs.append(Job(prompt, sampling, score_prompt=scored, max_tokens=room))
    return jobs


def _prompts(service: Service, hosted: Hosted, body: CompletionRequest) -> list[list[int]]:
    """The ids of every prompt; texts get the tokens that stand before a whole text."""
    before, _ = hosted.model.tokenizer.surrounding
    given = body.prompt
    if given is None or given == "":  # a text from its beginning
        return [before or [hosted.model.tokenizer.end_of_text]]
    listed: list[Any] = [given] if isinstance(given, str) or _is_ids(given) else given
    return [
        [*before, *service.encoded(hosted, prompt, "prompt")] if isinstance(prompt, str) else list(prompt)
        for prompt in listed
    ]


class _Reply:
    """The answer to one request in both forms."""

    def __init__(self, service: Service, hosted: Hosted, body: CompletionRequest, writing: Writing) -> None:
        self._service, self._hosted, self._body, self._writing = service, hosted, body, writing
        self._id, self._created = identity("cmpl-"), now()
        self._prompt_texts: dict[int, str] = {}

    async def whole(self) -> dict[str, Any]:
        """The `text_completion`."""
        texts = ["" for _ in self._writing.choices]
        logs: list[list[dict[str, list[Any]]]] = [[] for _ in texts]
        async for number, piece in self._writing.pieces():
            if piece is not None:
                texts[number] += piece.text
                logs[number].append(self._columns(number, piece.draws, piece.offsets))
        self._count()
        kept = self._kept()
        choices = []
        for index, number in enumerate(kept):
            prompt = self._prompt_columns(number)
            columns = [*([prompt] if prompt else []), *logs[number]]
            choices.append(
                {
                    "index": index,
                    "text": self._prompt_text(number) + texts[number],
                    "logprobs": _joined(columns) if self._body.logprobs is not None else None,
                    "finish_reason": self._writing.choices[number].finish,
                }
            )
        return self._frame() | {"choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The same in parts."""
        begun = [not self._body.echo for _ in self._writing.choices]
        counted = False
        async for number, piece in self._writing.pieces():
            if not counted:
                self._count()
                counted = True
            if not begun[number]:
                begun[number] = True
                yield self._chunk(number, self._prompt_text(number), self._prompt_columns(number))
            if piece is None:
                yield self._chunk(number, "", None, self._writing.choices[number].finish)
            else:
                yield self._chunk(number, piece.text, self._columns(number, piece.draws, piece.offsets))
        if self._with_usage:
            yield self._frame() | {"choices": [], "usage": self._usage()}

    def _kept(self) -> list[int]:
        """Which choices are given: of each prompt the `n` best, in the order in which they were written."""
        each, n = self._body.best_of or self._body.n or 1, self._body.n or 1
        kept = []
        for first in range(0, len(self._writing.choices), each):
            ranked = sorted(
                range(first, first + each), key=lambda number: (-self._writing.choices[number].mean_log_prob, number)
            )
            kept += sorted(ranked[:n])
        return kept

    def _count(self) -> None:
        self._service.watch.prompt(self._hosted.name, self._writing.prompt_tokens, self._writing.cached_tokens)

    def _prompt_text(self, number: int) -> str:
        """What `echo` shows."""
        if not self._body.echo:
            return ""
        if number not in self._prompt_texts:
            tokenizer = self._hosted.model.tokenizer
            tokens = self._writing.choices[number].job.prompt
            before, _ = tokenizer.surrounding
            shown = tokens[len(before) :] if tokens[: len(before)] == before else tokens
            self._prompt_texts[number] = tokenizer.decode(shown)
        return self._prompt_texts[number]

    def _prompt_columns(self, number: int) -> dict[str, list[Any]] | None:
        """Log-probabilities of the prompt's own tokens."""
        if not self._body.echo or self._body.logprobs is None:
            return None
        choice: Choice = self._writing.choices[number]
        tokenizer, tokens = self._hosted.model.tokenizer, choice.job.prompt
        draws: list[Draw | None] = [None, *choice.stream.prompt_draws]
        decoder, offsets, place = codecs.getincrementaldecoder("utf-8")("replace"), [], 0
        for token in tokens:
            offsets.append(place)
            place += len(decoder.decode(tokenizer.continued_bytes(token)))
        return completion_columns(draws, offsets, tokens, tokenizer, self._body.logprobs)

    def _columns(self, number: int, draws: Any, offsets: Any) -> dict[str, list[Any]]:
        if self._body.logprobs is None:
            return {}
        behind = len(self._prompt_text(number))
        return completion_columns(
            draws,
            [offset + behind for offset in offsets],
            [draw.token for draw in draws],
            self._hosted.model.tokenizer,
            self._body.logprobs,
        )

    def _frame(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._hosted.name,
            "system_fingerprint": FINGERPRINT,
        }

    def _chunk(self, number: int, text: str, columns: Any, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": number, "text": text, "logprobs": columns or None, "finish_reason": reason}
        frame = self._frame() | {"choices": [choice]}
        return frame | {"usage": None} if self._with_usage else frame

    @property
    def _with_usage(self) -> bool:
        return self._body.stream_options is not None and bool(self._body.stream_options.include_usage)

    def _usage(self) -> dict[str, Any]:
        writing = self._writing
        return usage_of(writing.prompt_tokens, writing.completion_tokens, writing.cached_tokens)


def _joined(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}
