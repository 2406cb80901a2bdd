"""Connections that leave, stall, or come by the thousand: nothing they held stays held."""

import gc
import json
import socket
import threading
import time

import pytest
from running import running

from parlance.inference.model import Model
from parlance.serving.config import ServingConfig


def until(condition, seconds: float = 10.0) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def raw_request(path: str, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def opened(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


LONG = {"model": "letters", "prompt": "a", "max_tokens": 8000, "temperature": 1}


@pytest.mark.parametrize("body", [LONG | {"stream": True, "n": 3}, LONG | {"n": 3}], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_its_places_at_once(server, body):
    for _ in range(3):
        with opened(server) as client:
            client.sendall(raw_request("/v1/completions", body))
            assert until(lambda: server.models["letters"].engine.metrics().running == 3)
        # 8000 tokens would take many seconds: they are not written.
        assert until(server.idle, 2.0)
    assert until(lambda: server.metric("parlance_open_requests") == 1)  # this one


def test_a_stream_may_be_closed_behind_any_byte(server):
    """Behind every chunk and in the midst of some: the engine has nothing left to do each time."""
    body = {"model": "tiny", "prompt": "ab", "max_tokens": 400, "stream": True, "temperature": 1, "seed": 1}
    before = server.models["tiny"].engine.metrics()
    for size in (0, 1, 100, 150, 300, 400, 500, 700, 900, 1200, 1500, 2000):
        with opened(server) as client:
            client.sendall(raw_request("/v1/completions", body))
            received = 0
            while received < size:
                received += len(client.recv(min(4096, size - received)))
        assert until(server.idle, 5.0)
    after = server.models["tiny"].engine.metrics()
    assert after.cancelled - before.cancelled >= 10
    assert after.failed == before.failed


def test_a_client_that_leaves_before_its_body_is_there_costs_nothing(server):
    for part in (
        b"",
        b"POST /v1/comp",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{",
    ):
        with opened(server) as client:
            client.sendall(part)
    assert until(server.idle)
    assert server.call("/health")[0] == 200


def test_slow_heads_and_bodies_are_cut(letters):
    config = ServingConfig(header_seconds=0.5, body_seconds=0.5, drain_seconds=1)
    with running({"letters": letters}, config) as server:
        with opened(server) as head:
            ended = []

            def drip() -> None:
                try:
                    while True:  # a byte now and then would keep other servers waiting for ever
                        head.sendall(b"x")
                        time.sleep(0.1)
                except OSError:
                    ended.append(True)

            dripping = threading.Thread(target=drip)
            dripping.start()
            assert server.call("/health")[0] == 200
            dripping.join(timeout=8)
            assert ended == [True]
        with opened(server) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{")
            assert b"408" in client.recv(4096).split(b"\r\n")[0]
        with opened(server) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            received = b""
            while part := idle.recv(4096):  # ends: it is closed after a while of silence
                received += part
            assert b"200 OK" in received


def test_a_thousand_idle_connections_keep_nobody_out(letters):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1000
    if hard != resource.RLIM_INFINITY and hard < 2 * wanted + 200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * wanted + 200), hard))
    try:
        with running({"letters": letters}, ServingConfig(max_connections=wanted + 5, drain_seconds=1)) as server:
            clients = [opened(server) for _ in range(wanted)]
            try:
                for client in clients[::10]:
                    client.sendall(b"POST /v1/completions HTTP/1.1\r\n")
                body = {"model": "letters", "prompt": "a", "max_tokens": 3, "temperature": 0}
                assert server.call("/v1/completions", body)[1]["choices"][0]["text"] == "bcd"
                more = [opened(server) for _ in range(20)]  # beyond the limit: closed at once
                closed = 0
                for client in more:
                    client.settimeout(0.2)
                    try:
                        closed += client.recv(1) == b""
                    except ConnectionError:
                        closed += 1
                    except TimeoutError:
                        pass
                    client.close()
                assert closed >= 15
            finally:
                for client in clients:
                    client.close()
            assert until(lambda: server.call("/health")[0] == 200)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_queue_says_when_to_come_again(letters):
    with running({"letters": letters}, most_running=1, most_waiting=2) as server:
        engine = server.models["letters"].engine
        with opened(server) as first, opened(server) as second, opened(server) as third:
            first.sendall(raw_request("/v1/completions", LONG | {"stream": True}))
            assert until(lambda: engine.metrics().running == 1)
            second.sendall(raw_request("/v1/completions", LONG | {"stream": True}))
            assert until(lambda: engine.metrics().waiting == 1)
            # Of several choices all are taken or none: there is room for one of these two.
            assert server.call("/v1/completions", LONG | {"n": 2})[0] == 429
            assert until(lambda: engine.metrics().cancelled == 1)
            third.sendall(raw_request("/v1/completions", LONG | {"stream": True}))
            assert until(lambda: engine.metrics().waiting == 2)
            status, answer, headers = server.call("/v1/completions", LONG)
            assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
            assert int(headers["retry-after"]) >= 1
        assert until(server.idle)
        assert server.call("/v1/completions", LONG | {"max_tokens": 2})[0] == 200


def test_a_server_with_enough_to_do_refuses_more(letters):
    with running({"letters": letters}, ServingConfig(max_requests=1, drain_seconds=1)) as server:
        with opened(server) as client:
            client.sendall(raw_request("/v1/completions", LONG))
            assert until(lambda: not server.idle())
            status, _, headers = server.call("/tokenize", {"prompt": "a"})
            assert (status, headers["retry-after"]) == (429, "1")
            assert server.call("/health")[0] == server.call("/metrics")[0] == 200  # who watches is let in
        assert until(lambda: server.call("/tokenize", {"prompt": "a"})[0] == 200)


def test_a_request_ends_with_its_time(letters):
    with running({"letters": letters}, ServingConfig(max_seconds=0.3, drain_seconds=1)) as server:
        status, answer, _ = server.call("/v1/completions", LONG)
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
        assert 0 < answer["usage"]["completion_tokens"] < 8000
        assert until(server.idle, 2.0)


class Sleeper:
    """A language model that takes its time."""

    vocab_size, context_length = 260, None

    def forward(self, tokens, state=None):
        import torch

        time.sleep(0.4)
        return torch.zeros(*tokens.shape, 260), state


def test_a_stream_that_waits_is_pinged(letters):
    slow = Model(Sleeper(), letters.tokenizer, letters.folder)
    with running({"slow": slow}, ServingConfig(ping_seconds=0.1, drain_seconds=1)) as server, opened(server) as client:
        client.sendall(raw_request("/v1/completions", {"prompt": "a", "max_tokens": 1, "stream": True}))
        text = b""
        while b"[DONE]" not in text:
            text += client.recv(4096)
        assert text.count(b": ping\n\n") >= 2
        assert b"text/event-stream" in text


class Breaker(Sleeper):
    """A language model that breaks at its third token."""

    def forward(self, tokens, state=0):
        import torch

        if state == 3:
            raise RuntimeError("a secret thing broke")
        return torch.zeros(*tokens.shape, 260), (state or 0) + 1


def test_what_breaks_inside_is_told_without_its_secrets(letters):
    broken = Model(Breaker(), letters.tokenizer, letters.folder)
    with running({"broken": broken, "letters": letters}) as server:
        body = {"model": "broken", "prompt": "a", "max_tokens": 9, "logit_bias": {"256": -100}}
        status, answer, _ = server.call("/v1/completions", body)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        streamed = server.call("/v1/completions", body | {"stream": True})[1].decode()
        assert '"type":"server_error"' in streamed
        assert streamed.endswith("data: [DONE]\n\n")
        assert "secret" not in str(answer) + streamed
        assert server.call("/v1/completions", {"model": "letters", "prompt": "a", "max_tokens": 2})[0] == 200
        assert server.idle()


def test_events_have_the_form_of_the_specification(server):
    body = {"model": "letters", "prompt": "a", "max_tokens": 3, "temperature": 0, "stream": True}
    status, text, headers = server.call("/v1/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *events, done, rest = text.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["b", "c", "d", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]


def test_nothing_of_an_answer_is_kept(server):
    """Neither of whole answers nor of streams, whether they were read or not, is anything left in memory."""
    from parlance.serving.writing import Choice

    body = LONG | {"max_tokens": 20, "stop": ["zzz"], "logprobs": 2}
    for settings in ({}, {"stream": True}, {"stream": True, "n": 3}, {"n": 3, "best_of": 4}):
        assert server.call("/v1/completions", body | settings)[0] == 200
        with opened(server) as client:
            client.sendall(raw_request("/v1/completions", LONG | settings))
            assert until(lambda: not server.idle())
    assert until(server.idle)

    def kept() -> int:
        gc.collect()
        return sum(type(thing) is Choice for thing in gc.get_objects())

    assert until(lambda: kept() == 0)
