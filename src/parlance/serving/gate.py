"""What stands between the socket and the application: who calls, how often, how much, for how long.

An ASGI application around another. Every request passes, in this order: is the host ours, is the key known, has the
caller requests left, has the server room, is the body small and there in time. What is refused is told in the shape of
`errors`; so is what breaks inside. The body is read whole before the application sees the request: a client that sends
slowly holds a connection and no place. The log has one line a request: never its body, never a key.

    app = Gate(inner, ServingConfig(), keys=None, hosts=frozenset({"127.0.0.1", "localhost"}), watch=Watch())
"""

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from parlance.serving.config import ServingConfig
from parlance.serving.errors import ApiError, json_bytes
from parlance.serving.keys import Caller, Keys
from parlance.serving.watch import Watch

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/openapi.json"})
"""What needs no key: says nothing about models or callers."""
CALLER = "parlance.caller"
"""Where in the scope the application finds the `Caller`; None where no keys are asked for."""
NOTE = "parlance.note"
"""Where it leaves what the log shall say about the request."""
_LOG = logging.getLogger("parlance.serving")


class Gate:
    """See the module."""

    def __init__(
        self, app: Application, config: ServingConfig, *, keys: Keys | None, hosts: frozenset[str] | None, watch: Watch
    ) -> None:
        """`hosts`: names under which the server may be addressed; None: any. A web page that makes its own name point
        to this machine would otherwise reach a server that asks for no key."""
        self._app, self._config, self._keys, self._hosts, self._watch = app, config, keys, hosts, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        inner = dict(scope)
        inner[NOTE] = []
        try:
            await self._answer(inner, receive, noting)
        except ApiError as error:
            await _tell(noting, error)
        except asyncio.CancelledError:  # the server stops, and has waited long enough
            if not status:
                await _tell(noting, ApiError(503, "the server is stopping"))
        except Exception as error:
            # The message of an exception may quote a prompt; where it happened does not.
            detail = str(error) if self._config.log_prompts else "message not shown"
            where = "".join(traceback.format_tb(error.__traceback__)[-6:])
            _LOG.error("%s: %s\n%s", type(error).__name__, detail, where)
            if not status:
                await _tell(noting, ApiError(500, "the server failed at this request; its log says where"))
        finally:
            seconds = time.perf_counter() - started
            self._watch.answered(scope["path"], status or 499, seconds)
            _LOG.info(
                "%s %s %s %.0f ms%s",
                scope["method"],
                scope["path"].encode("ascii", "backslashreplace").decode()[:100],
                status or "left",
                seconds * 1000,
                "".join(f" {note}" for note in inner[NOTE]),
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(reversed(scope["headers"]))
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            raise ApiError(403, "this server does not answer under that host name; call it as localhost")
        if scope["method"] == "OPTIONS":
            start = {"type": "http.response.start", "status": 204, "headers": [(b"allow", b"GET, HEAD, POST, OPTIONS")]}
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        if scope["method"] == "HEAD":
            scope["method"] = "GET"  # the server below sends no body where the request was HEAD
        scope[CALLER] = self._caller(scope, headers)
        if scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        body = await self._body(headers, receive)
        if scope["method"] == "POST" and self._watch.open_requests >= self._config.max_requests:
            raise ApiError(429, "the server has as many requests as it takes; try again soon", retry_after=1)
        if self._config.log_prompts and body:
            _LOG.info("body: %s", body[:10_000].decode("utf-8", "backslashreplace"))
        with self._watch.open_request():
            await self._app(scope, _replayed(body, receive), send)

    def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller | None:
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return None
        kind, _, secret = headers.get(b"authorization", b"").partition(b" ")
        caller = self._keys.find(secret.strip()) if kind.lower() == b"bearer" else None
        if caller is None:
            raise ApiError(
                401, "the API key is missing or unknown; send `Authorization: Bearer KEY`", code="invalid_api_key"
            )
        scope[NOTE].append(f"key={caller.name}")
        wait = caller.wait()
        if wait:
            raise ApiError(
                429,
                f"this key has used its requests for now; try again in {int(wait) + 1} s",
                code="rate_limit_exceeded",
                retry_after=int(wait) + 1,
            )
        return caller

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; the 413 of a larger one comes after some of it is read, so that the client hears it."""
        most = self._config.max_request_bytes
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._config.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client left before its request was whole")
                    size += len(message.get("body", b""))
                    if size <= most:
                        parts.append(message.get("body", b""))
                    if not message.get("more_body", False) or size > 4 * most:
                        break
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {self._config.body_seconds:g} s") from error
        if size > most or _announced(headers) > most:
            raise ApiError(413, f"the body is larger than the {most} bytes that a request may have")
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body is read: the body once, then what comes (that the client left)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _tell(send: Send, error: ApiError) -> None:
    """Answer with an error; where the body was not read, the connection cannot be used again."""
    body = json_bytes(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (401, 403, 408, 413):
        headers.append((b"connection", b"close"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _host_name(header: bytes) -> str:
    """The name in a Host header, without the port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def _announced(headers: dict[bytes, bytes]) -> int:
    digits = headers.get(b"content-length", b"0")
    return int(digits) if digits.isdigit() and len(digits) < 20 else 0
