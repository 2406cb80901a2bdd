"""Texts being written: an engine's tokens become certain text with the log-probabilities of what is shown.

A `Choice` is one text: it holds back what may begin a stop string or is half a character, ends at a stop string, a stop
token, a limit or the deadline. A `Writing` is all choices of a request; they are written at once, and cancelling it
frees every place in the engine.

    writing = start(hosted, jobs, stop_strings=["\\n"], deadline=..., watch=watch)
    async for number, piece in writing.pieces(): ...
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from parlance.core.errors import UserError
from parlance.inference.constraints import Constraint
from parlance.inference.requests import EngineError, Request, Stream
from parlance.inference.sampler import Draw
from parlance.inference.sampling import SamplingConfig
from parlance.inference.scheduler import QueueFull
from parlance.inference.text_stream import TextStream
from parlance.serving.errors import ApiError
from parlance.serving.hosted import Hosted
from parlance.serving.watch import Watch

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Job:
    """What the engine is asked for one choice."""

    prompt: list[int]
    sampling: SamplingConfig
    constraint: Constraint | None = None
    score_prompt: bool = False
    """Whether the log-probabilities of the prompt's own tokens are wanted."""
    max_tokens: int | None = None
    """Most tokens to write, where that is not the sampling's number; 0: none."""
    later: Constraint | None = None
    """The form of what follows once `Choice.constrain` is called; None: any."""


@dataclass(frozen=True)
class Piece:
    """Text that is certain, and the tokens that it is made of."""

    text: str
    draws: tuple[Draw, ...]
    offsets: tuple[int, ...] = ()
    """Where in the choice's text each of the tokens begins, in characters."""


@dataclass
class Choice:
    """One text."""

    hosted: Hosted
    job: Job
    stream: Stream
    stop_strings: Sequence[str]
    deadline: float
    """In the clock of the event loop."""
    watch: Watch
    started: float
    finish: Finish | None = None
    """Why it ended; None while it goes on."""
    draws: list[Draw] = field(default_factory=list)
    """All tokens so far, those that are not shown yet too."""
    _constrained: bool = False

    @property
    def mean_log_prob(self) -> float:
        """Of its tokens; that of no token is 0."""
        return sum(draw.log_prob for draw in self.draws) / max(1, len(self.draws))

    def cancel(self) -> None:
        """Free its place in the engine."""
        self.stream.cancel()

    def _expire(self) -> None:
        """The time is over: what the engine has written until it hears of this is the text."""
        self.finish = "length"
        self.stream.cancel()

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were in memory already."""
        return min(self.stream.cached_tokens, len(self.job.prompt))

    def constrain(self) -> None:
        """From here on the text has the form `job.later`: what the engine wrote beyond what was read is dropped.

        The engine is asked anew to go on from here, most of which it has in memory. Where that is impossible (its queue
        is full), or was done before, the text goes on as it is.
        """
        left = self.job.sampling.max_tokens - len(self.draws)
        if self.job.later is None or self._constrained or left < 1:
            return
        self._constrained = True
        prompt = [*self.job.prompt, *(draw.token for draw in self.draws)]
        sampling = self.job.sampling.model_copy(update={"max_tokens": left})
        with suppress(QueueFull, UserError, EngineError):
            request = Request(prompt, sampling, self.hosted.model.stop, self.job.later)
            self.stream, old = self.hosted.engine.submit(request), self.stream
            old.cancel()

    async def _tokens(self) -> AsyncIterator[Draw]:
        """The engine's tokens; where it was asked anew, those of the new stream from then on."""
        stream = None
        while stream is not self.stream:
            stream = self.stream
            async for draw in stream:
                yield draw
                if stream is not self.stream:
                    break

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text piece by piece; the last may be empty. Raises ApiError where the engine failed."""
        tokenizer = self.hosted.model.tokenizer
        text = TextStream(tokenizer, self.stop_strings)
        waiting: list[tuple[int, Draw]] = []  # tokens not shown yet, with the byte where each begins
        begins = shown = characters = 0
        last = self.started
        timer = asyncio.get_running_loop().call_at(self.deadline, self._expire)
        try:
            async for draw in self._tokens():
                now = time.perf_counter()
                self.watch.token(self.hosted.name, now - last, first=not self.draws)
                last = now
                self.draws.append(draw)
                waiting.append((begins, draw))
                begins += len(tokenizer.continued_bytes(draw.token))
                certain = text.push(draw.token)
                if certain or text.stopped:
                    shown += len(certain.encode("utf-8", "replace"))
                    yield _piece(certain, characters, shown, [entry for entry in waiting if entry[0] < shown])
                    waiting = [entry for entry in waiting if entry[0] >= shown]
                    characters += len(certain)
                if text.stopped:
                    self.finish = "stop"
                    return
        except UserError as error:
            raise ApiError(400, str(error)) from error
        except EngineError as error:
            self.watch.stopped.add(self.hosted.name)
            raise ApiError(503, "the model has stopped; the server must be started again") from error
        finally:
            timer.cancel()
            self.stream.cancel()
        rest = text.finish()
        self.finish = self.finish or ("stop" if text.stopped or self.stream.ending == "stop" else "length")
        if rest or waiting:
            yield _piece(rest, characters, shown + len(rest.encode("utf-8", "replace")), waiting)


def _piece(text: str, characters: int, end: int, tokens: Sequence[tuple[int, Draw]]) -> Piece:
    """`text` begins at that character of the whole and ends at byte `end`; tokens are (first byte, token)."""
    data = text.encode("utf-8", "replace")
    inside = [max(0, first - (end - len(data))) for first, _ in tokens]
    offsets = [characters + len(data[:place].decode("utf-8", "ignore")) for place in inside]
    return Piece(text, tuple(draw for _, draw in tokens), tuple(offsets))


class Writing:
    """All choices of a request."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = list(choices)

    def cancel(self) -> None:
        """Free every place in the engine."""
        for choice in self.choices:
            choice.cancel()

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each once: choices of one prompt share it."""
        return sum(map(len, {id(choice.job.prompt): choice.job.prompt for choice in self.choices}.values()))

    @property
    def cached_tokens(self) -> int:
        """Tokens of prompts that were in memory already when the first choice of each began."""
        first = {id(choice.job.prompt): choice for choice in reversed(self.choices)}
        return sum(choice.cached_tokens for choice in first.values())

    @property
    def completion_tokens(self) -> int:
        """Of all choices."""
        return sum(len(choice.draws) for choice in self.choices)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """(number of the choice, piece) in the order in which they are written; None: this choice has ended."""
        if len(self.choices) == 1:
            async for piece in self.choices[0].pieces():
                yield 0, piece
            yield 0, None
            return
        queue: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def read(number: int, choice: Choice) -> None:
            try:
                async for piece in choice.pieces():
                    queue.put_nowait((number, piece))
                queue.put_nowait((number, None))
            except Exception as error:
                queue.put_nowait((number, error))

        tasks = [asyncio.ensure_future(read(number, choice)) for number, choice in enumerate(self.choices)]
        try:
            left = len(tasks)
            while left:
                number, found = await queue.get()
                if isinstance(found, BaseException):
                    raise found
                left -= found is None
                yield number, found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def start(hosted: Hosted, jobs: Sequence[Job], *, stop_strings: Sequence[str], seconds: float, watch: Watch) -> Writing:
    """Hand jobs to the engine: all, or none. Raises ApiError where its queue is full (429) or it refuses one (400)."""
    started, deadline = time.perf_counter(), asyncio.get_running_loop().time() + seconds
    choices: list[Choice] = []
    try:
        for job in jobs:
            stream = hosted.engine.submit(
                Request(
                    prompt=job.prompt,
                    sampling=job.sampling,
                    stop=hosted.model.stop,
                    constraint=job.constraint,
                    max_tokens=job.max_tokens,
                    prompt_log_probs=job.score_prompt,
                )
            )
            choices.append(Choice(hosted, job, stream, stop_strings, deadline, watch, started))
    except QueueFull as error:
        Writing(choices).cancel()
        raise ApiError(429, "the model has as many requests as it takes; try again soon", retry_after=1) from error
    except UserError as error:
        Writing(choices).cancel()
        raise ApiError(400, str(error)) from error
    except EngineError as error:
        Writing(choices).cancel()
        raise ApiError(503, "the model is not running; the server is stopping, or must be started again") from error
    return Writing(choices)
