"""Answers that end when the client leaves: streams of server-sent events, and single answers that take long.

An event is `data: {json}` and an empty line; the last is `data: [DONE]`. A stream in which nothing happens gets a
comment (`: ping`) now and then. When the client is gone, what computes the answer is cancelled at once.

    return EventStream(events, close=writing.cancel, ping_seconds=15, seconds=600)
    value = await unless_gone(request, compute())
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from parlance.serving.errors import ApiError, json_bytes

T = TypeVar("T")
_LOG = logging.getLogger("parlance.serving")


class ClientGone(ApiError):  # noqa: N818  (it is nobody's error)
    """The client left; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(499, "the client left")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _ended(gone)
        await _ended(task)


class EventStream(Response):
    """A response of events."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[Any, None], *, close: Callable[[], None], ping_seconds: float, seconds: float
    ) -> None:
        """`events`: JSON values; `close` frees what makes them, and is called however the stream ends, which is after
        `seconds` at most: a client that does not read would keep it for ever."""
        self._events, self._close, self._ping, self._seconds = events, close, ping_seconds, seconds
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(
        self, _scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        work = asyncio.ensure_future(self._send(send))
        gone = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({work, gone}, timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            self._close()
            await _ended(gone)
            await _ended(work)

    async def _send(self, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last = time.monotonic()

        async def put(data: bytes) -> None:
            nonlocal last
            last = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def ping() -> None:
            while True:
                await asyncio.sleep(max(0.05, last + self._ping - time.monotonic()))
                if time.monotonic() - last >= self._ping:
                    await put(b": ping\n\n")

        pings = asyncio.ensure_future(ping())
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    await put(b"data: " + json_bytes(event) + b"\n\n")
        except ApiError as error:
            await put(b"data: " + json_bytes(error.body()) + b"\n\n")
        except Exception as error:
            _LOG.error("a stream broke: %s", type(error).__name__)
            told = ApiError(500, "the server failed while it wrote; its log says where")
            await put(b"data: " + json_bytes(told.body()) + b"\n\n")
        finally:
            await _ended(pings)
        await put(b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel a task and wait until it is over."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
