"""Shards: whatever their size, and wherever they are read, the same documents with the same ids and counts."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core.errors import UserError
from parlance.text import documents
from parlance.text.documents import Document, ReadingReport, ShardedCorpus
from parlance.text.readers import FileCorpus, Shard, dividing, plain_text
from parlance.text.shards import open_shard
from parlance.text.standard_library import StandardLibraryCorpus


def read_apart(corpus: ShardedCorpus, target: int) -> tuple[list[Document], ReadingReport]:
    """The documents of all shards, each read through its JSON form with a report of its own, and the merged report."""
    shards = corpus.shards(target)
    report = corpus.report
    found: list[Document] = []
    for shard in shards:
        mine = ReadingReport()
        found += open_shard(json.loads(json.dumps(shard.to_json() | {"origin": "x"})), mine)
        report.merge(ReadingReport.from_json(json.loads(json.dumps(mine.to_json(full=True)))))
    return found, report


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all divisible kinds and others, with bad records, and files that are left out."""
    root = tmp_path_factory.mktemp("root")
    for number in range(30):
        (root / f"small-{number:02}.txt").write_text(f"small {number}\n" * number)
    (root / "picture.png").write_bytes(b"png")
    lines = [
        json.dumps({"text": f"{n} " * (n % 40)}) if n % 17 else ["", "  ", "{", '{"x": 1}'][n % 4] for n in range(600)
    ]
    (root / "lines.jsonl").write_text("\n".join(lines))
    (root / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (root / "mark.jsonl").write_bytes('{"text": "sixteen"}\n'.encode("utf-16") * 1 + b"")
    rows = {
        "text": [f"row {n}" if n % 50 else None for n in range(700)],
        "id": [f"id {n}" if n % 3 else None for n in range(700)],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), root / "rows.parquet", row_group_size=90)
    (root / "table.csv").write_text("text\n" + "".join(f"field {n}\n" for n in range(400)))
    (root / "long.txt").write_text("".join(f"line {n} é\n" * (n % 5) for n in range(2000)) + "x" * 9000 + "é" * 3000)
    (root / "latin.txt").write_bytes(b"caf\xe9\n" * 3000)
    (root / "empty.txt").write_text("")
    (root / "bad.warc").write_text("no archive")
    return root


@pytest.mark.parametrize("target", [1, 700, 5000, 20_000, 1 << 30])
def test_shards_hold_the_corpus(folder: Path, target: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_text, "PIECE_BYTES", 1000)
    monkeypatch.setattr(dividing, "FILE_COST", 100)
    monkeypatch.setattr(dividing, "SCAN_BYTES", 333)
    corpus = FileCorpus([folder, folder / "lines.jsonl"], skip_bad=True)
    expected = list(corpus)
    report = corpus.report.to_json(full=True)
    found, merged = read_apart(corpus, target)
    assert found == expected
    merged_json = merged.to_json(full=True)
    assert sorted(merged_json.pop("left_out")) == sorted(report.pop("left_out"))
    assert merged_json == report
    shards = corpus.shards(target)
    assert [shard.index for shard in shards] == list(range(len(shards)))
    stored = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".png")
    assert sum(s.bytes for s in shards) == pytest.approx(stored + (folder / "lines.jsonl").stat().st_size, rel=0.05)
    if target == 5000:
        divided = {part.name.split("/")[-1] for shard in shards for part in shard.parts if part.divided}
        assert divided == {"lines.jsonl", "long.txt", "rows.parquet"}
        assert max(len(shard.parts) for shard in shards) > 5
    if target == 1 << 30:
        assert len(shards) == 1


@given(
    text=st.lists(st.sampled_from(["", "a", "é\n", "\n", "\n\n", "word", "😀"]), max_size=60).map("".join),
    target=st.integers(1, 60),
    piece=st.integers(5, 12),
    scan=st.integers(1, 30),
)
@settings(deadline=None)
def test_any_division(tmp_path_factory: pytest.TempPathFactory, text: str, target: int, piece: int, scan: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.txt").write_bytes(f"x{text}".encode())
    (folder / "b.jsonl").write_bytes("\n".join(json.dumps({"text": c}) if c != "\n" else "" for c in text).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_text, "PIECE_BYTES", piece)
        patch.setattr(dividing, "SCAN_BYTES", scan)
        patch.setattr(dividing, "FILE_COST", 1)
        corpus = FileCorpus([folder])
        assert read_apart(corpus, target)[0] == list(corpus)
        for shard in corpus.shards(target):
            assert Shard.from_json(shard.to_json()) == shard
        if len(text) > 3 * target:
            assert len(corpus.shards(target)) > 1


def test_files_below_the_target_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 50)
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    (shard,) = FileCorpus([tmp_path]).shards(1 << 20)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        list(shard.read(ReadingReport()))


def test_another_process_reads_the_same(tmp_path: Path, folder: Path) -> None:
    corpus = FileCorpus([folder / "lines.jsonl"], skip_bad=True)
    shard = corpus.shards(2000)[3]
    (tmp_path / "shard.json").write_text(json.dumps(shard.to_json()))
    program = """
import json
from parlance.text.documents import ReadingReport
from parlance.text.shards import open_shard
documents = open_shard(json.load(open("shard.json")), ReadingReport())
print(json.dumps([document.to_json() for document in documents]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [d.to_json() for d in shard.read(ReadingReport())]


def test_standard_library(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.py").write_text("x = 1\n")
    for number in range(20):
        (tmp_path / f"m{number:02}.py").write_text("def f():\n    return 1\n" * number)
    (tmp_path / "m05.py").write_text("def f(:\n")
    corpus = StandardLibraryCorpus(tmp_path)
    assert isinstance(corpus, ShardedCorpus)
    expected, report = list(corpus), corpus.report.to_json()
    found, merged = read_apart(corpus, 1000)
    assert found == expected
    assert merged.to_json() == report
    assert len(corpus.shards(1000)) > 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no source files"):
        StandardLibraryCorpus(tmp_path / "empty").shards(1000)


def test_shards_of_another_version_are_refused(folder: Path) -> None:
    record = FileCorpus([folder]).shards()[0].to_json()
    for change in ({"kind": "?"}, {"parts": [{"x": 1}]}, {"options": {"x": 1}}):
        with pytest.raises(UserError, match="another version"):
            open_shard(record | change, ReadingReport())


def test_reports_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LEFT_OUT_LIMIT", 3)
    first, second = ReadingReport(files=1, replaced=2), ReadingReport(files=2, documents=3, bytes=4)
    first.skip("a", "x")
    first.skip("b", "y")
    second.skip("b", "z")
    second.skip("b", "w")
    second.encodings["cp1252"] += 1
    first.merge(second)
    assert first.to_json(full=True) == {
        "files": 3, "documents": 3, "bytes": 4, "replaced": 2, "encodings": {"cp1252": 1},
        "skipped": {"a": 1, "b": 3}, "left_out": [["x", "a"], ["y", "b"], ["z", "b"]],
    }  # fmt: skip
    assert ReadingReport.from_json(first.to_json(full=True)) == first
