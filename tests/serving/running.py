"""A server in a thread, the plainest of clients, and a model whose answers can be worked out."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any

import torch

from parlance.inference.engine import open_engine
from parlance.inference.model import Model
from parlance.serving.app import make_app
from parlance.serving.config import ServingConfig
from parlance.serving.hosted import Hosted, close_models
from parlance.serving.keys import Keys
from parlance.serving.server import bound_socket, make_server
from parlance.text.tokenizers import Tokenizer


class Letters:
    """A bigram table as a language model: the logits behind a token are its row."""

    def __init__(self, tokenizer: Tokenizer, context_length: int | None = None) -> None:
        self.vocab_size, self.context_length = tokenizer.vocab_size, context_length
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(self.vocab_size, self.vocab_size, generator=generator)
        for letter in range(256):
            follower = letter + 1 if ord("a") <= letter < ord("z") else ord("a")
            self.table[letter, follower] = 12.0

    def forward(self, tokens: torch.Tensor, _state: Any = None) -> tuple[torch.Tensor, Any]:
        return self.table[tokens], tokens[:, -1:]


class Server:
    """A running server and the plainest of clients."""

    def __init__(self, port: int, models: dict[str, Hosted]) -> None:
        self.port, self.models = port, models
        self.url = f"http://127.0.0.1:{port}"

    def call(
        self, path: str, body: Any = None, *, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, body, headers); a body that is bytes is sent as it is."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {"content-type": "application/json"} if data is not None else {}
            connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
            answer = connection.getresponse()
            text = answer.read()
            known = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(text) if text and "json" in known.get("content-type", "") else text, known
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """The value of a metric, as `name{labels}`."""
        lines = self.call("/metrics")[1].decode().splitlines()
        return sum(float(found.rsplit(" ", 1)[1]) for found in lines if found.rsplit(" ", 1)[0] == line)

    def idle(self) -> bool:
        """Whether no engine has anything to do, nor memory in use by texts."""
        counts = [entry.engine.metrics() for entry in self.models.values()]
        return all(count.running == count.waiting == 0 for count in counts)


@contextmanager
def running(
    models: dict[str, Model],
    config: ServingConfig | None = None,
    *,
    keys: Keys | None = None,
    hosts: frozenset[str] | None = None,
    **engine: Any,
) -> Iterator[Server]:
    """A server of these models for the length of the block."""
    config = config or ServingConfig(drain_seconds=1)
    with ExitStack() as stack:
        hosted = {name: Hosted(name, model, open_engine(model, **engine)) for name, model in models.items()}
        stack.callback(close_models, hosted, drain=False)
        listener = stack.enter_context(bound_socket("127.0.0.1", 0))
        server = make_server(make_app(hosted, config, keys=keys, hosts=hosts), config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()

        stack.callback(stop)
        yield Server(listener.getsockname()[1], hosted)
