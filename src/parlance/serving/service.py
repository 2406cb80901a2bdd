"""What every route shares: the models, the limits, the counts, and work that is too long for the event loop."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

from parlance.core.errors import UserError
from parlance.serving.config import ServingConfig
from parlance.serving.errors import ApiError
from parlance.serving.events import EventStream
from parlance.serving.gate import CALLER, NOTE
from parlance.serving.hosted import Hosted, chosen
from parlance.serving.watch import Watch
from parlance.serving.writing import Writing

T = TypeVar("T")
FINGERPRINT = f"parlance-{version('parlance')}"


@dataclass
class Service:
    """One server's state."""

    models: Mapping[str, Hosted]
    config: ServingConfig
    watch: Watch
    _preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    def hosted(self, scope: Any, name: str | None) -> Hosted:
        """The model of a request. Raises ApiError."""
        found = chosen(self.models, name, scope[CALLER])
        scope[NOTE].append(f"model={found.name}")
        return found

    async def apart(self, work: Callable[[], T]) -> T:
        """The result of `work` in another thread, two at a time, so that streams go on meanwhile: long texts take
        a while to become tokens, and schemas to become constraints."""
        async with self._preparing:
            return await asyncio.to_thread(work)

    def checked_prompt(self, hosted: Hosted, tokens: list[int], param: str) -> None:
        """Raises ApiError where a prompt is empty, too long, or holds what is no token."""
        if not tokens:
            raise ApiError(400, f"{param}: the prompt is empty; give at least one character", param=param)
        if len(tokens) > self.config.max_prompt_tokens:
            raise ApiError(
                400,
                f"{param}: {len(tokens)} tokens are more than the {self.config.max_prompt_tokens} allowed",
                param=param,
            )
        self.checked_ids(hosted, tokens, param)

    def checked_ids(self, hosted: Hosted, tokens: Sequence[int], param: str) -> None:
        """Raises ApiError where something is no token of a model."""
        if max(tokens) >= hosted.vocab_size:
            raise ApiError(
                400, f"{param}: {max(tokens)} is no token; this model has 0 to {hosted.vocab_size - 1}", param=param
            )

    def room(self, hosted: Hosted, prompt: list[int], asked: int | None, param: str) -> int:
        """How many tokens may follow a prompt: `asked`, or (None) as many as fit. Raises ApiError where they do not."""
        if asked is not None and asked > self.config.max_tokens:
            raise ApiError(
                400, f"max_tokens: {asked} is more than the {self.config.max_tokens} allowed", param="max_tokens"
            )
        context = hosted.context_length
        if context is None:
            return self.config.max_tokens if asked is None else asked
        left = context - len(prompt)
        if left < (1 if asked is None else asked):
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens"
                + ("" if asked is None else f" and {asked} shall follow")
                + f", but this model's context holds {context}; shorten the one or the other",
                code="context_length_exceeded",
                param=param,
            )
        return min(left, self.config.max_tokens) if asked is None else asked

    def encoded(self, hosted: Hosted, text: str, param: str) -> list[int]:
        """The tokens of a text. Raises ApiError where they can never fit, or the vocabulary lacks something."""
        self.check_length(hosted, len(text), param)
        try:
            return hosted.model.tokenizer.encode(text)
        except UserError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from error

    def check_length(self, hosted: Hosted, characters: int, param: str) -> None:
        """Raises ApiError where a text is so long that its tokens can never fit, before any are made."""
        most = min(hosted.context_length or self.config.max_prompt_tokens, self.config.max_prompt_tokens)
        longest = max(1, int(hosted.model.tokenizer.token_byte_lengths.max()))
        # A normalising tokenizer may shorten a text, but not to a quarter.
        if characters > 4 * most * longest:
            raise ApiError(
                400,
                f"{param}: {characters} characters are more than this model's context of {most} tokens can hold",
                code="context_length_exceeded",
                param=param,
            )

    def stream(self, events: AsyncGenerator[Any, None], writing: Writing) -> EventStream:
        """A stream of events with the server's times; however it ends, what writes it is cancelled."""
        seconds = self.config.max_seconds + self.config.header_seconds
        return EventStream(events, close=writing.cancel, ping_seconds=self.config.ping_seconds, seconds=seconds)

    def whole_text(self, hosted: Hosted, text: str, param: str) -> list[int]:
        """The tokens of a text with those that stand around a whole one."""
        before, after = hosted.model.tokenizer.surrounding
        return [*before, *self.encoded(hosted, text, param), *after]


def identity(prefix: str) -> str:
    """A fresh id that begins with `prefix`."""
    return prefix + secrets.token_hex(12)


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def usage_of(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """The counts of an answer."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
