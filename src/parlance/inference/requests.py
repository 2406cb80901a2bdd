"""What is asked of an engine, and the stream in which the answer comes, token by token.

stream = engine.submit(Request(prompt=[1, 2, 3], sampling=SamplingConfig(max_tokens=20), stop=frozenset({0})))
for draw in stream: ...                     # waits for each token; `async for` does so without blocking the loop
stream.ending, stream.cached_tokens
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from parlance.inference.sampler import Draw
from parlance.inference.sampling import SamplingConfig

if TYPE_CHECKING:
    from parlance.inference.constraints import Constraint

Ending = Literal["stop", "max_tokens", "context", "cancelled"]
"""Why a text ended: a stop token was drawn or a prescribed form is complete; `max_tokens` are written; the model's
context, or the memory, is full; or nobody wants the rest."""


class EngineError(Exception):
    """The engine has stopped, so this text will not be finished."""


@dataclass(frozen=True)
class Request:
    """One text to be continued."""

    prompt: Sequence[int]
    """At least one token."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    stop: frozenset[int] = frozenset()
    """Tokens that end the text; they are not given out."""
    constraint: "Constraint | None" = None
    """The form that the text must have; used by this request alone."""
    max_tokens: int | None = None
    """Most tokens to write, where that is not the sampling's number; 0: the prompt is read and nothing written."""
    prompt_log_probs: bool = False
    """Whether log p of the prompt's own tokens is wanted: the whole prompt is computed then, nothing of it shared."""

    @property
    def most(self) -> int:
        """Most tokens to write."""
        return self.sampling.max_tokens if self.max_tokens is None else self.max_tokens


class Stream(Iterator[Draw], AsyncIterator[Draw]):
    """The tokens of one text as they are drawn, for one reader in any thread or event loop.

    Leave it early by `cancel()`, or use it as a context manager, which does that: the text's memory is then free after
    the step that runs. Raises what went wrong with this text, or EngineError where the engine has stopped.
    """

    def __init__(self, request: Request, cancel: Callable[["Stream"], None]) -> None:
        self.request = request
        self.ending: Ending | None = None
        """Why the text ended; None while it goes on."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in memory already; known with the first token."""
        self.prompt_draws: list[Draw] = []
        """The prompt's tokens from the second on, where their log p is wanted; all of them by the first token."""
        self.queue_seconds: float | None = None
        """How long the text waited before its prompt was read; None while it waits."""
        self.first_token_seconds: float | None = None
        """How long it took from the request to the first token; None before it."""
        self._cancel = cancel
        self._changed = threading.Condition()
        self._draws: deque[Draw] = deque()
        self._error: BaseException | None = None
        self._finished = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def cancel(self) -> None:
        """Nobody wants the rest. From any thread, any number of times."""
        self._cancel(self)

    def __next__(self) -> Draw:
        with self._changed:
            while not self._draws and not self._finished:
                self._changed.wait()
            return self._taken(StopIteration())

    async def __anext__(self) -> Draw:
        while True:
            with self._changed:
                if self._draws or self._finished:
                    return self._taken(StopAsyncIteration())
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = loop, future
            await future

    def __aiter__(self) -> Self:
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _taken(self, end: Exception) -> Draw:
        """The next token; raises `end`, or what went wrong, where there is none."""
        if self._draws:
            return self._draws.popleft()
        if self._error is not None:
            raise self._error
        raise end

    # --- the engine's side ---

    def put(self, draws: Iterable[Draw]) -> None:
        """Give tokens to the reader."""
        with self._changed:
            self._draws.extend(draws)
            self._wake()

    def end(self, ending: Ending | None, error: BaseException | None = None) -> None:
        """Nothing follows: because of `ending`, or of an error, which the reader gets after the tokens before it."""
        with self._changed:
            if not self._finished:
                self.ending, self._error, self._finished = ending, error, True
                self._wake()

    @property
    def finished(self) -> bool:
        """Whether nothing follows; tokens may still be there to be read."""
        return self._finished

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, future = self._waiter
            self._waiter = None
            with suppress(RuntimeError):  # the loop is closed: nobody reads
                loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
