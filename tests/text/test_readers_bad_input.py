"""Every kind of damage: one sentence, or counted, listed and skipped, with what came before it."""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_samples import make_pdf, page, response

from parlance.core.errors import UserError
from parlance.text.readers import FileCorpus, html, records, warc
from parlance.text.readers.problems import BadInput
from parlance.text.readers.streams import ByteStream, _gunzip, _unzstd


def refused(path: Path, match: str, reason: str, kept: int) -> None:
    """`path` is an error that says `match`; with `skip_bad` it counts as `reason` once, and `kept` documents stay."""
    with pytest.raises(UserError, match=match) as caught:
        list(FileCorpus([path]))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    good = path.with_name("good.txt")
    good.write_text("good")
    corpus = FileCorpus([path, good], skip_bad=True)
    assert len(list(corpus)) == kept + 1
    assert corpus.report.skipped == {reason: 1}
    assert corpus.report.left_out[0][0].split(":")[0].split("#")[0] == path.name


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstandard.ZstdCompressor().compress)])
def test_truncated_compression(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    generator = random.Random(0)
    lines = [json.dumps({"text": generator.randbytes(30_000).hex()}).encode() + b"\n" for _ in range(100)]
    packed = pack(b"".join(lines))
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    corpus = FileCorpus([path], skip_bad=True)
    kept = len(list(corpus))
    assert 40 < kept <= 50
    refused(path, "ends in the middle", "damaged file", kept)
    path.write_bytes(packed[:-1])
    kept = len(list(FileCorpus([path], skip_bad=True)))
    assert kept > 90
    refused(path, "ends in the middle", "damaged file", kept)
    path.write_bytes(b"plain text, not compressed at all")
    refused(path, "is no (gzip|zstandard) data", "damaged file", 0)
    path.write_bytes(b"")
    refused(path, "ends in the middle", "damaged file", 0)


def test_damaged_compression(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(random.Random(0).randbytes(100_000).hex().encode()))
    packed[60_000] ^= 255
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed)
    refused(path, "holds damaged gzip data", "damaged file", 0)


@given(st.lists(st.binary(max_size=60), max_size=4), st.data())
@settings(max_examples=50)
def test_compression_cut_anywhere(parts: list[bytes], data: st.DataObject) -> None:
    compressor = zlib.compressobj(wbits=31)
    packed = compressor.compress(b"".join(parts)) + compressor.flush()
    frame = zstandard.ZstdCompressor().compress(b"".join(parts))
    for unpack, whole in ((_gunzip, packed), (_unzstd, frame)):
        cut = data.draw(st.integers(0, len(whole) - 1))
        stream = ByteStream(unpack(iter([whole[:cut]])))
        assert b"".join(parts).startswith(stream.read(1000))
        with pytest.raises(BadInput):
            stream.check()
        stream = ByteStream(unpack(bytes([byte]) for byte in whole + whole))
        assert stream.read(1000) == b"".join(parts) * 2
        stream.check()


def test_a_compression_bomb_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "a.html.gz"
    path.write_bytes(gzip.compress(b"<p>" + bytes(50 << 20), 1))
    refused(path, "more than 8 MiB", "page too large", 0)


@pytest.mark.parametrize("cut", [5, 60, 300])
def test_archive_cut_in_the_middle(tmp_path: Path, cut: int) -> None:
    one = response("http://a/1", page("cat").encode())
    path = tmp_path / "a.warc"
    path.write_bytes(one + one + one[:cut])
    refused(path, "WARC", "damaged file", 2)
    path = tmp_path / "b.warc.gz"
    path.write_bytes(gzip.compress(one) + gzip.compress(one) + gzip.compress(one)[:cut])
    refused(path, "ends in the middle", "damaged file", 2)


def test_broken_archives(tmp_path: Path) -> None:
    one = response("http://a/1", page("cat").encode())
    path = tmp_path / "a.warc"
    path.write_bytes(one + b"no record\r\n" + one)
    refused(path, "no WARC file from record 2", "damaged file", 1)
    path.write_bytes(one + one.replace(b"Content-Length", b"Length"))
    refused(path, "has no length", "damaged file", 1)
    path.write_bytes(one + b"WARC/1.0\r\n" + b"X: " + b"y" * 100_000)
    refused(path, "WARC", "damaged file", 1)
    packed = response("http://a/1", b"\x1f\x8b broken", "Content-Type: text/html\r\nContent-Encoding: gzip")
    path.write_bytes(one + packed + one)
    refused(path, "record 2: holds damaged compressed data", "damaged compression", 2)
    path.write_bytes(one + response("http://a/1", bytes(warc.BODY_BYTES)) + one)
    refused(path, "record 2: is a record of", "page too large", 2)


def test_html_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<p>" + "word " * (html.PAGE_BYTES // 5 + 1))
    refused(path, "more than 8 MiB", "page too large", 0)
    path.write_text("<p>" * (html.ELEMENTS + 1))
    refused(path, "more than 100000 elements", "page with too many elements", 0)
    path.write_text(("<div>" * 200 + "words here" + "</div>" * 200) * 400)
    refused(path, "more than 5000 elements inside 50 others", "page too deep", 0)
    for tag in ("div", "b", "table><tr><td", "ul><li", "x-y"):
        path.write_text(f"<{tag}>" * 20_000 + "text")
        corpus = FileCorpus([path, path.with_name("good.txt")], skip_bad=True)
        assert "good" in [d.text for d in corpus]


def test_text_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 1_000_000)
    documents = list(FileCorpus([tmp_path / "a.txt"]))
    assert [len(d.text) for d in documents] == [(1 << 20) - 1] * 4 + [5_000_004 - (4 << 20)]


def test_long_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = records.ByteStream.lines
    monkeypatch.setattr(records.ByteStream, "lines", lambda stream: lines(stream, 1000))
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "' + "x" * 1000 + '"}\n{"text": "three"}\n')
    refused(path, "line 2: longer than", "record too long", 2)


@pytest.mark.parametrize("name", ["a.txt", "a.html"])
def test_binary_data(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(range(256)) + bytes(1000))
    refused(path, r"binary data \(NUL bytes\)", "binary data", 0)


def test_nul_bytes_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (1 << 20) + b"y" * 100 + b"\0" + b"z" * (1 << 20))
    refused(path, "piece 2: binary data", "binary data", 2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\0"}\n')
    refused(path, "line 2: not valid JSON", "broken record", 1)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\na\n\0\n")
    refused(path, "row 2: binary data", "broken record", 1)


def test_broken_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,one\n2\n3,three\n4,fo,ur\n"[:-8])
    refused(path, "row 2: has 1 fields, the header 2", "broken record", 2)
    path.write_text("id,body\n1,one\n")
    refused(path, "has no column `text`; its columns are id, body", "no column `text`", 0)
    path.write_text("")
    refused(path, r"no column `text`; its columns are \(none\)", "no column `text`", 0)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["word " * 1000 + str(n) for n in range(3000)]})
    pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="zstd")
    data = bytearray(path.read_bytes())
    start = pyarrow.parquet.read_metadata(path).row_group(2).column(0).data_page_offset
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    refused(path, "not a readable Parquet file", "damaged file", 2000)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match="row 1: there is no string in the field `text`"):
        list(FileCorpus([path]))
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)
    refused(path, "has no column `text`; its columns are body", "no column `text`", 0)


def test_broken_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(b"%PDF-1.4 and no more")
    refused(path, "not a readable PDF", "damaged file", 0)
    path.write_bytes(b"")
    refused(path, "not a readable PDF", "damaged file", 0)


@given(st.binary(max_size=200), st.integers(0, 800))
@settings(max_examples=15, deadline=None)
def test_any_bytes_are_documents_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    contents = {
        "a.html": page("cat").encode(),
        "a.warc": response("http://a/", page("cat").encode()),
        "a.warc.gz": gzip.compress(response("http://a/", page("cat").encode())),
        "a.jsonl": b'{"text": "one"}\n' * 40,
        "a.csv": b'text,id\n"one",two\n' * 40,
        "a.pdf": make_pdf("One page"),
        "a.txt.zst": zstandard.ZstdCompressor().compress(b"text " * 300),
    }
    (folder / "good.txt").write_text("good")
    for name, content in contents.items():
        place = min(place, len(content))
        (folder / name).write_bytes(content[:place] + noise + content[place:])
    texts = [d.text for d in FileCorpus([folder], skip_bad=True)]
    assert texts[-1] == "good"
    for name in contents:
        try:
            assert list(FileCorpus([folder / name])) is not None
        except UserError as error:
            message = str(error)
        else:
            message = ""
        assert "\n" not in message
