"""Small tokenizers, trained once on text that a test machine always has."""

import inspect
import json
import textwrap

import pytest

from parlance.text.tokenizers import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """About 130 kB of Python source and English."""
    return [inspect.getsource(module) for module in (inspect, json, textwrap)]


@pytest.fixture(scope="session")
def bpe(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, "bpe", vocab_size=1024)


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return train_tokenizer([], "byte")
