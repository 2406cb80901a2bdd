import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text.documents import Document, decode_utf8, replace_surrogates, utf8_length
from parlance.text.readers import FileCorpus, plain_text


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_document_survives_json() -> None:
    document = Document("a", "text\n", "b", {"group": "g", "licence": "CC0"})
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document
    assert document.group == "g"
    assert Document("a", "", "b").group == "a"


def test_reads_a_folder_in_sorted_order_and_again(tmp_path: Path) -> None:
    root = tmp_path / "books"
    (root / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / ".git" / "x.txt").write_text("hidden")
    (root / "b" / "z.py").write_text("print()\n")
    (root / "a.txt").write_bytes("héllo".encode())
    (root / "c.md").write_text("# c")
    (root / "picture.png").write_bytes(b"\x89PNG")
    (root / "half.txt.partial").write_text("half")
    write_lines(
        root / "d.jsonl", {"text": "one"}, {"text": "two", "id": 7, "source": "web", "metadata": {"group": "g"}}
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p", "q"], "other": [1, 2]}), root / "e.parquet")

    corpus = FileCorpus([root])
    documents = list(corpus)
    assert documents == [
        Document("books/a.txt", "héllo", "books/a.txt"),
        Document("books/b/z.py", "print()\n", "books/b/z.py"),
        Document("books/c.md", "# c", "books/c.md"),
        Document("books/d.jsonl:1", "one", "books/d.jsonl"),
        Document("7", "two", "web", {"group": "g"}),
        Document("books/e.parquet:1", "p", "books/e.parquet"),
        Document("books/e.parquet:2", "q", "books/e.parquet"),
    ]
    first = corpus.report.to_json()
    assert first == {
        "files": 5,
        "documents": 7,
        "bytes": 6 + 8 + 3 + 3 + 3 + 2,
        "replaced": 0,
        "encodings": {},
        "skipped": {"hidden or partial": 2, "kind of file: .png": 1},
    }
    assert list(corpus) == documents
    assert corpus.report.to_json() == first


def test_roots_of_the_same_name_have_different_ids(tmp_path: Path) -> None:
    for parent in "ab":
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "x.txt").write_text(parent)
    assert [d.id for d in FileCorpus([tmp_path / "a" / "x.txt", tmp_path / "b" / "x.txt"])] == ["x.txt", "x.txt#2"]


def test_counts_undecodable_bytes_and_drops_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 \xef\xbf\xbd \xff")
    corpus = FileCorpus([tmp_path])
    assert [d.text for d in corpus] == ["caf\ufffd \ufffd \ufffd"]
    assert corpus.report.replaced == 2


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y \\ud83d\\ude00"}\n')
    corpus = FileCorpus([tmp_path / "a.jsonl"])
    assert [d.text for d in corpus] == ["x\ufffdy 😀"]
    assert corpus.report.replaced == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"content": "x"}', "no string in the field `text`"),
        ('{"text": null}', "no string in the field `text`"),
        ('{"text": "x", "metadata": 3}', "`metadata` is not an object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_records(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "good"}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 3: .*{reason}"):
        list(FileCorpus([path]))
    corpus = FileCorpus([path], skip_bad=True)
    assert [d.text for d in corpus] == ["good"]
    assert corpus.report.skipped == {"broken record": 1}


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["p"]}), path)
    with pytest.raises(UserError, match="no column `text`; its columns are body"):
        list(FileCorpus([path]))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p", None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 2"):
        list(FileCorpus([path]))
    path.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(FileCorpus([path]))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        FileCorpus([tmp_path / "missing"])
    with pytest.raises(UserError, match="no text was named"):
        FileCorpus([])
    (tmp_path / "x.docx").write_text("x")
    with pytest.raises(UserError, match="cannot read files of this kind"):
        FileCorpus([tmp_path / "x.docx"])
    with pytest.raises(UserError, match="there is no text in"):
        list(FileCorpus([tmp_path]))
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="there is no text in"):
        list(FileCorpus([tmp_path]))


def test_prepared_corpora_inside_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "card.json").write_text("{}")
    write_lines(tmp_path / "corpus" / "train.jsonl", {"text": "text"})
    corpus = FileCorpus([tmp_path])
    assert len(list(corpus)) == 1
    assert corpus.report.skipped == {"a corpus prepared by Parlance": 1}
    assert len(list(FileCorpus([tmp_path / "corpus"]))) == 1


@given(text=st.text(alphabet="aé☃😀\n", max_size=80), size=st.integers(5, 9))
def test_pieces_of_a_long_file_join_to_its_text(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("pieces") / "a.txt"
    path.write_bytes(("x" + text).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "PIECE_BYTES", size)
        corpus = FileCorpus([path])
        documents = list(corpus)
    assert "".join(d.text for d in documents) == "x" + text
    assert corpus.report.replaced == 0
    assert {d.group for d in documents} == {"a.txt"}
    assert all(utf8_length(d.text) <= size for d in documents)
    assert len({d.id for d in documents}) == len(documents)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for _ in range(2000):
            file.write(json.dumps({"text": "x" * 10_000}) + "\n")
    corpus = FileCorpus([path])
    tracemalloc.start()
    total = sum(len(d.text) for d in corpus)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 20_000_000
    assert peak < 2_000_000


@given(st.binary())
def test_decoding_agrees_with_python(data: bytes) -> None:
    text, replaced = decode_utf8(data)
    assert text == data.decode("utf-8-sig", errors="replace")
    assert (replaced == 0) == (text.encode() == data.removeprefix(b"\xef\xbb\xbf"))


@given(st.text(st.characters(exclude_categories=())))
def test_replaced_surrogates_can_be_encoded(text: str) -> None:
    clean, count = replace_surrogates(text)
    assert len(clean.encode()) == utf8_length(text)
    assert count == sum(a != b for a, b in zip(text, clean, strict=True))
