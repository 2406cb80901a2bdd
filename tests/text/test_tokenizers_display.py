"""Tokens in HTML and their compression: nothing gets out of its place, and the figures are those counted by hand."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.tokenizers import Tokenizer, train_tokenizer
from parlance.text.tokenizers.compression import compare_compression, named_texts
from parlance.text.tokenizers.display import tokens_html, tokens_page, visible


class Reader(HTMLParser):
    """Collects the elements of a page, and the text and hints of its spans."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "span":
            self.spans.append((dict(attrs)["title"] or "", ""))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1] == "span" and self.spans:
            hint, text = self.spans[-1]
            self.spans[-1] = (hint, text + data)


def test_visible() -> None:
    assert visible(b" a\n\tb\r") == "·a↵→b␍"
    assert visible(b"\xe6\x97") == r"\xe6\x97"
    assert visible("é日😀".encode()) == "é日😀"
    assert visible("\x1b[2J\u202e\u200b\u2028\xa0\ufeff".encode()) == r"\x1b[2J\u202e\u200b\u2028\xa0\ufeff"


@given(st.lists(st.binary(min_size=1, max_size=6) | st.text(min_size=1).map(lambda t: t.encode("utf-8", "replace"))))
@example([b"<script>alert(1)</script>", b"</span></div>", b'" onmouseover="x', b"&lt;", b"'", b"<!--"])
def test_hostile_tokens_stay_text(tokens: list[bytes]) -> None:
    numbered = list(enumerate(tokens))
    reader = Reader()
    reader.feed(tokens_html(numbered))
    assert reader.elements == ["style", "div"] + ["span"] * len(tokens)
    assert reader.attributes <= {"class", "dir", "title"}
    for (token, data), (hint, shown) in zip(numbered, reader.spans, strict=True):
        assert hint.split("\n")[0] == f"id {token}"
        assert bytes.fromhex(hint.split(":")[1]) == data
        assert shown.replace("↵\n", "↵") == visible(data)


def test_a_page_needs_nothing_else() -> None:
    page = tokens_page([(1, b"a"), (2, b" b\n")], "<b>Mine</b>")
    assert html.escape("<b>Mine</b>") in page
    assert "<b>" not in page
    assert "2 tokens, 4 bytes, 2.00 bytes a token" in page
    assert not any(word in page for word in ("http", "src=", "href=", "<script", "@import", "url("))
    assert "0 tokens, 0 bytes" in tokens_page([], "x")


def test_compression_counts() -> None:
    byte, word = train_tokenizer([], "byte"), train_tokenizer(["one two two\n"], "word", 8)
    texts = [("a", "one two"), ("b", "three four\n"), ("a", "é")]
    table = compare_compression({"byte": byte, "word": word}, iter(texts))
    figures = {(r.text, r.tokenizer): (r.documents, r.bytes, r.words, r.tokens, r.unknown) for r in table.rows}
    # " two", then the two that come first by spelling among "\n", "one": "\n" and "one"; 8 - 5 = 3 words.
    assert figures == {
        ("a", "byte"): (2, 9, 3, 9, 0),
        ("a", "word"): (2, 9, 3, 3, 1),
        ("b", "byte"): (1, 11, 2, 11, 0),
        ("b", "word"): (1, 11, 2, 3, 2),
    }
    assert [(r.text, r.tokenizer) for r in table.rows] == list(figures)
    assert (table.rows[1].bytes_per_token, table.rows[1].tokens_per_word) == (3.0, 1.0)
    used = set("one two three four\né".encode())
    assert (table.ordinary, table.dead) == ({"byte": 256, "word": 3}, {"byte": 256 - len(used), "word": 0})
    with pytest.raises(UserError, match="no text to compare"):
        compare_compression({"byte": byte}, [("x", "")])


def test_compression_in_batches_is_compression_at_once(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(str(i % 2), "def f(x):\n    return x\n" * i) for i in range(9)]
    whole = compare_compression({"bpe": bpe}, texts)
    monkeypatch.setattr("parlance.text.tokenizers.compression.BATCH_BYTES", 1)
    assert compare_compression({"bpe": bpe}, texts) == whole


def test_texts_of_a_corpus_by_language(tmp_path: Path) -> None:
    rows = [("en", "A text."), ("fr", "Un texte."), (None, "?")]
    lines = [
        json.dumps({"id": str(i), "text": text, "metadata": {} if name is None else {"language": name}})
        for i, (name, text) in enumerate(rows)
    ]
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "test.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "x.txt").write_bytes(b"\xffa")
    assert list(named_texts([tmp_path / "corpus", tmp_path / "x.txt"])) == [
        ("corpus: en", "A text."),
        ("corpus: fr", "Un texte."),
        ("corpus", "?"),
        ("x.txt", "\ufffda"),
    ]
    with pytest.raises(UserError, match="cannot read"):
        list(named_texts([tmp_path / "nothing"]))
