"""What `generate`, `score` and `chat` say on standard error of the text they were given and of the one they gave."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from parlance.cli.main import main
from parlance.models.checkpoints import save_model
from parlance.text.tokenizers import train_tokenizer

FULL = "the text ends here because the model's context is full (--overflow slide goes on)\n"


@pytest.fixture
def folder(tiny_transformer, tmp_path: Path) -> Path:
    """A model of characters that knows few of them, with a context of 64."""
    tokenizer = train_tokenizer(["abcdefghij \n:?"], "char", 30)
    model = tiny_transformer(vocab_size=tokenizer.vocab_size)
    with torch.no_grad():
        model.lm_head.weight[list(tokenizer.special_tokens.values())] = 0  # greedily it never ends
    save_model(tmp_path, model, end_of_text=tokenizer.end_of_text, pad=tokenizer.pad)
    tokenizer.save(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[str, str]:
    """Standard output and standard error of a command that must succeed."""
    assert main([str(word) for word in words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_unknown_characters_of_a_prompt_are_counted(folder, capsys):
    known = said(capsys, "generate", folder, "abc", "--max-tokens", "2")
    assert known[1] == ""
    unknown = said(capsys, "generate", folder, "aXbYc", "--max-tokens", "2")
    assert unknown[1] == "not in the vocabulary, read as <unk>: 2 tokens of the prompt\n"


def test_a_text_that_a_full_context_cuts_says_so(folder, capsys):
    out, err = said(capsys, "generate", folder, "abc", "--max-tokens", "500", "--temperature", "0", "--json")
    assert json.loads(out)["ended"] == "context"
    assert err == FULL
    slid = said(capsys, "generate", folder, "abc", "--max-tokens", "70", "--temperature", "0", "--overflow", "slide")
    assert slid[1] == ""


def test_unknown_characters_of_a_scored_text_are_counted(folder, capsys, tmp_path):
    (tmp_path / "text.txt").write_text("abXc")
    out, err = said(capsys, "score", folder, tmp_path / "text.txt", "--json")
    figures = json.loads(out)
    assert (figures["tokens"], figures["bytes"], figures["unknown"]) == (4, 3, 1)
    assert err == "not in the vocabulary, read as <unk>: one token of the text\n"


def test_a_piped_message_is_treated_alike(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"abZ")))
    _, err = said(capsys, "chat", folder, "--max-tokens", "500", "--temperature", "0")
    assert err.startswith("not in the vocabulary, read as <unk>: ")
    assert err.endswith(FULL)
