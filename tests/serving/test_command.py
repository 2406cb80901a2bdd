"""`parlance serve`: what it refuses, and a whole life of it: start, a model whose folder is deleted, SIGTERM."""

import builtins
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest
import torch

from parlance.cli.main import main
from parlance.core.errors import UserError
from parlance.models.checkpoints import save_model
from parlance.serving.hosted import named_folders
from parlance.serving.server import bound_socket, is_loopback


@pytest.fixture(autouse=True)
def _threads():
    """Commands set the number of threads; other tests count on theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tiny_transformer, tiny_tokenizer, tmp_path) -> Path:
    save_model(tmp_path / "base", tiny_transformer(context_length=4096), end_of_text=256, pad=257)
    tiny_tokenizer.save(tmp_path / "base")
    return tmp_path / "base"


def test_a_stream_outlives_the_model_folder_and_sigterm(folder):
    command = [sys.executable, "-m", "parlance", "serve", f"demo={folder}", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = ""
            while " answers for " not in line:
                line = process.stderr.readline()
                assert line, "the server ended"
            port = int(re.search(r"http://127\.0\.0\.1:(\d+) answers for demo", line)[1])
            shutil.rmtree(folder)
            connection = HTTPConnection("127.0.0.1", port, timeout=30)
            body = {"prompt": "a secret", "max_tokens": 2000, "stream": True, "logit_bias": {"256": -100, "259": -100}}
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            first = answer.readline()
            process.send_signal(signal.SIGTERM)
            text = first + answer.read()
            assert text.endswith(b"data: [DONE]\n\n")
            assert b'"finish_reason":"length"' in text
            connection.close()
            assert process.wait(timeout=20) == 0
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            log = process.stderr.read()
        finally:
            process.kill()
    assert "secret" not in log
    assert "/v1/completions 200" in log
    assert "model=demo" in log


def test_what_the_command_refuses(folder, capsys, monkeypatch):
    monkeypatch.delenv("PARLANCE_API_KEYS", raising=False)

    def said(*words: str) -> str:
        assert main(["serve", *words]) == 2
        return capsys.readouterr().err

    assert "--no-keys" in said(str(folder), "--host", "0.0.0.0")
    assert "another name" in said(str(folder), str(folder), "--port", "0")
    assert "holds no model" in said(str(folder / "absent"), "--port", "0")
    assert "no list" in said(str(folder), "--keys", str(folder / "config.json"))
    assert "max_tokens" in said(str(folder), "--set", "max_tokens=0")
    with bound_socket("127.0.0.1", 0) as taken:
        assert "--port" in said(str(folder), "--port", str(taken.getsockname()[1]))
    load = builtins.__import__

    def without_fastapi(name, *rest):
        if name == "fastapi":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    assert "pip install 'parlance[serve]'" in said(str(folder))


def test_names_of_models(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert list(named_folders([str(tmp_path / "x"), "y=anywhere", str(tmp_path / "a=b")])) == ["x", "y", "a=b"]
    for wrong in (["=x"], ["x="], ["n=x", "n=y"]):
        with pytest.raises(UserError):
            named_folders(wrong)


def test_what_is_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "example.com", "10.0.0.1")))
