"""Models and a server that the tests of the server share.

`letters` is a bigram table over bytes: behind a letter the next one of the alphabet is likeliest, so that greedy text
is known, and every log-probability can be read from the table. `tiny` is a random Transformer, for the paged engine.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from running import Letters, Server, running

from parlance.inference.model import Model
from parlance.text.tokenizers import train_tokenizer


@pytest.fixture(scope="session")
def letters() -> Model:
    tokenizer = train_tokenizer([], "byte")
    return Model(Letters(tokenizer), tokenizer, Path("letters"))


@pytest.fixture(scope="session")
def short_letters() -> Model:
    """The same with a context of 64 tokens."""
    tokenizer = train_tokenizer([], "byte")
    return Model(Letters(tokenizer, 64), tokenizer, Path("short"))


@pytest.fixture(scope="session")
def tiny(tiny_transformer, tiny_tokenizer) -> Model:
    return Model(tiny_transformer(context_length=1024), tiny_tokenizer, Path("tiny"))


@pytest.fixture(scope="session")
def server(letters: Model, short_letters: Model, tiny: Model) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    with running({"letters": letters, "short": short_letters, "tiny": tiny}) as started:
        yield started
