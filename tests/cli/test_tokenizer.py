"""`parlance tokenizer`: train every kind, import, show in colours, as a page and as JSON, compare."""

import base64
import inspect
import io
import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from parlance.cli.main import main
from parlance.cli.tokens_output import print_tokens
from parlance.text.tokenizers import Tokenizer, train_tokenizer


def run(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> tuple[str, str]:
    """(standard output, standard error) of a command."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def result(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    return dict(json.loads(run(capsys, *words, "--json")[0]))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `parlance corpus prepare` leaves, as far as tokenizers read it."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, module in (("train", textwrap), ("test", inspect)):
        row = {"id": split, "text": inspect.getsource(module), "metadata": {"language": "en"}}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiktoken file of the 256 bytes and "ab"."""
    file = tmp_path_factory.mktemp("ranks") / "x.tiktoken"
    tokens = [*(bytes([value]) for value in range(256)), b"ab"]
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return file


@pytest.mark.parametrize(
    ("kind", "size"), [("bpe", 300), ("byte", 260), ("char", 95 + 5), ("word", 200), ("bpe --pattern gpt4", 300)]
)
def test_train(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, size: int) -> None:
    out = tmp_path / "t"
    facts = result(
        capsys, "tokenizer", "train", corpus, "--kind", *kind.split(), "--vocab-size", str(size), "--out", out
    )
    assert facts["kind"] == kind.split()[0] == Tokenizer.load(out).kind
    assert facts["vocab_size"] <= size
    assert {path.name for path in out.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--kind", "char", "--vocab-size", "20"], "different characters, which with 5 special tokens make"),
        (["--kind", "bpe", "--vocab-size", "259"], "a vocabulary of 259 is too small"),
        (["--kind", "word", "--vocab-size", "5"], "a vocabulary of 5 is too small"),
        (["--kind", "word", "--pattern", "gpt2"], "--pattern is where bpe cuts; --kind word has no use for it"),
        (["--kind", "subword"], "--kind"),
    ],
)
def test_what_cannot_be_trained(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    _, error = run(capsys, "tokenizer", "train", corpus, *options, "--out", tmp_path / "t", code=2)
    assert reason in error.splitlines()[-1]
    assert not (tmp_path / "t" / "tokenizer.json").exists()


def test_a_vocabulary_larger_than_the_text(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tokenizer", "train", corpus, "--vocab-size", "90000", "--out", tmp_path / "t"]
    out, error = run(capsys, *words, "--json")
    assert f"{json.loads(out)['vocab_size']} tokens instead of the 90000 asked for" in error


def test_import(ranks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, error = run(capsys, "tokenizer", "import", ranks, "--out", tmp_path / "a", code=2)
    assert "say with --pattern where it cuts" in error
    words = ["tokenizer", "import", ranks, "--pattern", "gpt2"]
    facts = result(capsys, *words, "--out", tmp_path / "a")
    assert (facts["kind"], facts["vocab_size"], facts["special_tokens"]) == ("bpe", 258, ["<|endoftext|> 257"])
    assert result(capsys, *words, "--chat-template", "chatml", "--out", tmp_path / "b")["vocab_size"] == 260
    assert result(capsys, "tokenizer", "show", tmp_path / "a", "abc")["tokens"][0]["id"] == 256


def test_show(byte_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = result(capsys, "tokenizer", "show", byte_folder, "é")
    assert shown == {
        "tokens": [{"id": 195, "text": "\ufffd", "bytes": "c3"}, {"id": 169, "text": "\ufffd", "bytes": "a9"}],
        "count": 2,
        "bytes": 2,
    }
    page = tmp_path / "t.html"
    facts = result(capsys, "tokenizer", "show", byte_folder, "<b>", "--html", page)
    assert facts == {"tokens": 3, "out": str(page)}
    assert "<b>" not in page.read_text()
    assert "&lt;" in page.read_text()


@pytest.fixture
def byte_folder(tmp_path: Path) -> Path:
    train_tokenizer((), "byte").save(tmp_path / "bytes")
    return tmp_path / "bytes"


def shown(tokens: list[tuple[int, bytes]], *, ids: bool = False, terminal: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=60, color_system="standard", legacy_windows=False)
    print_tokens(tokens, json=False, ids=ids, console=console)
    return stream.getvalue()


def test_show_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [(5, b"a b"), (6, b"\n"), (7, b"\x1b[2J"), (8, b"[red]")]
    plain = shown(tokens)
    assert "\x1b[30;46ma·b\x1b[0m\x1b[30;43m↵\x1b[0m" in plain, "neighbours have different backgrounds"
    assert r"\x1b[2J" in plain
    assert "[red]" in plain
    assert "4 tokens, 13 bytes, 3.25 bytes a token" in plain
    table = shown(tokens, ids=True).splitlines()
    assert "a·b" in table[1]
    assert table[1].split()[-4:] == ["5", "61", "20", "62"]
    assert shown(tokens, terminal=False) == ""
    assert capsys.readouterr().out.splitlines()[0] == "    0       5  'a b'"


def test_compare(corpus: Path, byte_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_tokenizer([inspect.getsource(textwrap)], "word", 100).save(tmp_path / "words")
    (tmp_path / "x.txt").write_text("one two\n")
    words = ["tokenizer", "compare", byte_folder, tmp_path / "words", "--text", tmp_path / "x.txt", "--text", corpus]
    facts = result(capsys, *words)
    assert facts["tokenizers"]["bytes"]["vocab_size"] == 260
    assert facts["tokenizers"]["bytes"]["dead_tokens"] > 100
    rows = {(row["text"], row["tokenizer"]): row for row in facts["texts"]}
    assert {text for text, _ in rows} == {"x.txt", f"{corpus.name}: en"}
    assert (rows["x.txt", "bytes"]["bytes_per_token"], rows["x.txt", "bytes"]["tokens_to_first"]) == (1.0, 1.0)
    assert rows["x.txt", "words"]["tokens_to_first"] == rows["x.txt", "words"]["tokens"] / 8
    table, _ = run(capsys, *words)
    assert "bytes/token" in table
    assert "never occur here" in table
    again, _ = run(capsys, "tokenizer", "compare", byte_folder, byte_folder.parent / "." / "bytes", *words[4:])
    assert str(byte_folder) in again.replace("\n", "") or "bytes" in again
