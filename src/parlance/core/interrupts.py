"""Ctrl-C and SIGTERM ask a long job to stop at its next safe point; a second Ctrl-C stops it at once.

with stop_requests() as stop:
    for step in steps:
        ...
        if stop.requested: save(); raise Interrupted("...")
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether somebody has asked this process to stop."""

    requested: bool = False


_current: StopRequest | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Install the handlers for the length of the block (main thread only); nested blocks share one request."""
    global _current
    if _current is not None or threading.current_thread() is not threading.main_thread():
        yield _current or StopRequest()
        return
    request = _current = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.requested = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        _current = None
        for number, handler in previous.items():
            signal.signal(number, handler)
