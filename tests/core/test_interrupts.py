"""A signal asks for an orderly stop; a second Ctrl-C stops at once; the old handlers come back."""

import os
import signal
import threading

import pytest

from parlance.core.interrupts import stop_requests


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_request_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with stop_requests() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
    assert signal.getsignal(number) is before
    with stop_requests() as stop:
        assert not stop.requested


def test_a_second_ctrl_c_stops_at_once():
    with stop_requests():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_sigterm_changes_nothing():
    with stop_requests() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.requested


def test_nested_blocks_share_the_request():
    with stop_requests() as outer:
        with stop_requests() as inner:
            send(signal.SIGTERM)
            assert inner.requested
        assert outer.requested
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_another_thread_runs_without_handlers():
    seen = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop.requested)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before
