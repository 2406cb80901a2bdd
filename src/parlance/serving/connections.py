"""HTTP connections that cannot be held open for nothing: uvicorn's own, with two limits that it lacks.

- The head of a request must be there `header_seconds` after the connection was made, or after the answer before.
  (uvicorn limits only how long a connection may be silent after an answer: one byte a minute keeps it open.)
- There are at most `max_connections`; the next is closed at once, so that file descriptors never run out.

    uvicorn.Config(app, http=guarded_connections(ServingConfig()), ws="none")
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from parlance.serving.config import ServingConfig


def guarded_connections(limits: ServingConfig) -> type[H11Protocol]:
    """The protocol class for a server with these limits."""

    class Guarded(H11Protocol):
        """One connection."""

        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
                return
            self._expect_head()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            # First the clock: super() may find the next request in what was read already, which stops it.
            self._expect_head()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _expect_head(self) -> None:
            self._stop_waiting()
            self._head = self.loop.call_later(limits.header_seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                self.transport.abort()

    return Guarded
