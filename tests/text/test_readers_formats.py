"""Every format, plain and compressed: which documents it holds."""

import gzip
import json
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from reader_samples import ARTICLE, make_pdf, page, record, response

from parlance.core.errors import UserError
from parlance.text.documents import Document, ReadingReport
from parlance.text.readers import FileCorpus
from parlance.text.readers.encodings import encoding_of
from parlance.text.readers.html import decode_page
from parlance.text.readers.kinds import kind_of
from parlance.text.readers.records import DELIMITERS
from parlance.text.readers.streams import ByteStream
from parlance.text.readers.warc import split_response, unchunk, undo_transfer


def read(path: Path, **options: object) -> list[Document]:
    return list(FileCorpus([path], **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", ("text", "")),
        ("A.TXT", ("text", "")),
        ("a.tar.md", ("text", "")),
        ("x.warc.wet.gz", ("warc", "gz")),
        ("a.jsonl.zst", ("jsonl", "zst")),
        ("a.ndjson", ("jsonl", "")),
        ("main.rs", ("text", "")),
        ("page.HTM.gz", ("html", "gz")),
        ("a.pdf", ("pdf", "")),
        ("a.pdf.gz", None),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("a.docx", None),
        ("Makefile", None),
    ],
)
def test_kind_of(name: str, kind: tuple[str, str] | None) -> None:
    assert kind_of(Path(name)) == kind


@pytest.mark.parametrize("compression", ["gz", "zst", "gz members", "zst frames"])
def test_compressed_files_hold_the_same_documents(tmp_path: Path, compression: str) -> None:
    lines = [json.dumps({"text": f"line {number} é"}).encode() + b"\n" for number in range(3000)]
    data = b"".join(lines)
    pack = zstandard.ZstdCompressor().compress if compression.startswith("zst") else gzip.compress
    packed = pack(data) if " " not in compression else b"".join(pack(line) for line in lines)
    name = "a.jsonl." + compression.split()[0]
    (tmp_path / name).write_bytes(packed + (b"\0" * 512 if compression.startswith("gz") else b""))
    documents = read(tmp_path / name)
    assert [d.text for d in documents] == [f"line {number} é" for number in range(3000)]
    assert documents[-1].id == f"{name}:3000"


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text,metadata\r\nx,"one ""quoted""\nline, two",m\r\n,plain,\r\n\r\n,"",\r\n')
    assert read(path) == [
        Document("x", 'one "quoted"\nline, two', "a.csv"),
        Document("a.csv:2", "plain", "a.csv"),
        Document("a.csv:3", "", "a.csv"),
    ]
    assert next(d.text for d in read(path, text_field="id")) == "x"


@pytest.mark.parametrize(("name", "delimiter"), [(n, d) for n in DELIMITERS for d in dict.fromkeys(DELIMITERS[n])])
def test_delimiters(tmp_path: Path, name: str, delimiter: str) -> None:
    path = tmp_path / f"a{name}"
    path.write_text(f"number{delimiter}text\n1{delimiter}one\n")
    assert read(path) == [Document(f"a{name}:1", "one", f"a{name}")]


def test_text_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "text": 3}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["no"], "body": ["two"], "id": ["i"]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("body;text\nthree;no\n")
    documents = list(FileCorpus([tmp_path], text_field="body"))
    assert [(d.id.split("/")[-1], d.text) for d in documents] == [
        ("a.jsonl:1", "one"), ("i", "two"), ("c.csv:1", "three"),
    ]  # fmt: skip


def test_html(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    path.write_text(page("cat"))
    (document,) = read(path)
    assert document.text.count("cat") == 9
    assert "Home" not in document.text
    assert "<" not in document.text
    assert (document.id, document.source) == ("a.html", "a.html")
    (tmp_path / "b.html").write_text("<html><body></body></html>")
    corpus = FileCorpus([tmp_path])
    assert len(list(corpus)) == 1
    assert corpus.report.left_out == [(f"{tmp_path.name}/b.html", "no main text")]


@pytest.mark.parametrize(
    ("data", "declared", "encoding"),
    [
        ("Привет".encode(), "windows-1251", "utf-8"),
        ("Привет".encode("cp1251"), "windows-1251", "cp1251"),
        (b'<meta charset="koi8-r">' + "Привет".encode("koi8-r"), "", "koi8-r"),
        (b"caf\xe9 \x93", "ISO-8859-1", "cp1252"),
        ("\ufeffПривет".encode("utf-16-le"), "", "utf-16"),
        (b"caf\xe9", "no-such-thing", "cp1252"),
    ],
)
def test_encoding_of_pages(data: bytes, declared: str, encoding: str) -> None:
    text, found, replaced = decode_page(data, declared)
    assert found == encoding
    assert text == data.decode(encoding).removeprefix("\ufeff")
    assert replaced == 0


PROSE = {
    "cp1251": "Это обычный русский текст о погоде, который читают люди. Сегодня солнечно, а завтра будет дождь. " * 5,
    "cp932": "これは普通の日本語の文章です。今日は天気がとても良いので、散歩に行きましょう。" * 5,
    "cp1252": "Où est la bibliothèque ? L'été dernier, nous étions déjà à l'hôtel près de la forêt, là-bas. " * 5,
    "utf-16": "Plain English text with a mark. " * 5,
    "utf-32": "Plain English text with a mark. " * 5,
    "utf-16-le": "Plain English text without a mark. " * 5,
    "utf-16-be": "Plain English text without a mark. " * 5,
    "utf-8": "これは普通 и обычный",
}


@pytest.mark.parametrize("encoding", PROSE)
def test_encodings_of_text_files(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(PROSE[encoding].encode(encoding))
    corpus = FileCorpus([tmp_path / "a.txt"])
    assert [d.text for d in corpus] == [PROSE[encoding]]
    assert corpus.report.encodings == ({} if encoding == "utf-8" else {encoding: 1})
    assert corpus.report.replaced == 0


def test_utf8_with_damage_stays_utf8() -> None:
    assert encoding_of("é".encode() * 3 + b"\xff\xfe\xe9") == "utf-8"


def test_warc(tmp_path: Path) -> None:
    chunks = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in (page("elk").encode(), b""))
    packed = gzip.compress(page("gnu").encode())
    cyrillic = ARTICLE.format(f"<p>{PROSE['cp1251']}</p>").encode("cp1251")
    archive = [
        record("warcinfo", "", b"software: x\r\n", "application/warc-fields"),
        record("request", "http://a/", b"GET / HTTP/1.1\r\n\r\n", "application/http"),
        response("http://a/1", page("cat").encode()),
        response("http://a/2", chunks, "Content-Type: text/html\r\nTransfer-Encoding: chunked"),
        response("<http://a/3>", packed, "Content-Type: text/html\r\nContent-Encoding: gzip"),
        response("http://a/4", cyrillic, "Content-Type: text/html; charset=windows-1251"),
        response("http://a/5", page("dog").encode(), status="404 Not Found"),
        response("http://a/6", b"\x89PNG", "Content-Type: image/png"),
        record("conversion", "http://a/7", "Text of a page, schön.".encode(), "text/plain"),
        record("resource", "http://a/8", page("yak").encode(), "text/html"),
    ]
    plain, members = tmp_path / "a.warc", tmp_path / "b.warc.gz"
    plain.write_bytes(b"".join(archive))
    members.write_bytes(b"".join(gzip.compress(one) for one in archive))
    corpus = FileCorpus([plain])
    documents = list(corpus)
    assert [(d.id, d.metadata["url"]) for d in documents] == [
        ("a.warc:3", "http://a/1"),
        ("a.warc:4", "http://a/2"),
        ("a.warc:5", "http://a/3"),
        ("a.warc:6", "http://a/4"),
        ("a.warc:9", "http://a/7"),
        ("a.warc:10", "http://a/8"),
    ]
    for document, word in zip(documents, ("cat", "elk", "gnu", "погоде", "schön", "yak"), strict=True):
        assert word in document.text
        assert document.metadata["date"] == "2024-05-01T00:00:00Z"
    assert corpus.report.skipped == {"WARC response without success": 1, "WARC record that is not HTML": 1}
    assert corpus.report.encodings == {"cp1251": 1}
    assert [d.text for d in read(members)] == [d.text for d in documents]


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=6), st.sampled_from([b"\r\n", b"\n"]))
def test_unchunk(parts: list[bytes], end: bytes) -> None:
    body = b"".join(f"{len(part):X};x=1".encode() + end + part + end for part in parts) + b"0" + end + end
    assert unchunk(body) == b"".join(parts)


def test_transfer_encodings_that_are_only_declared() -> None:
    html = b"<html>body</html>"
    for headers in ({"transfer-encoding": "chunked"}, {"content-encoding": "gzip"}, {"content-encoding": "br"},
                    {"content-encoding": "deflate"}):  # fmt: skip
        assert undo_transfer(html, headers) == html
    assert undo_transfer(zlib.compress(html), {"content-encoding": "deflate"}) == html
    raw = zlib.compressobj(wbits=-15)
    assert undo_transfer(raw.compress(html) + raw.flush(), {"content-encoding": "deflate"}) == html
    assert split_response(b"HTTP/1.0 200 OK\nA: b\n c\n\nbody\n\n") == (200, {"a": "b c"}, b"body\n\n")
    assert split_response(b"HTTP/1.0")[0] == 0


def test_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf("First page", "Second page"))
    assert read(path) == [Document("a.pdf", "First page\n\nSecond page\n\n", "a.pdf")]


def test_globs(tmp_path: Path) -> None:
    for name in ("books/a/x.txt", "books/b/x.txt", "books/b/y.md", "books/.c/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "books/b/picture.png").write_bytes(b"png")

    def ids(pattern: str) -> list[str]:
        return [d.id for d in FileCorpus([tmp_path / pattern])]

    assert ids("books/*/x.txt") == ["books/a/x.txt", "books/b/x.txt"]
    assert ids("books/**/*.md") == ["books/b/y.md"]
    assert ids("books/*") == ["books/a/x.txt", "books/b/x.txt", "books/b/y.md"]
    assert ids("books/**") == ids("books/*")
    assert ids("books/b/[xy].*") == ["b/x.txt", "b/y.md"]
    with pytest.raises(UserError, match="no file matches"):
        FileCorpus([tmp_path / "books/*.csv"])
    (tmp_path / "books/a/[1].txt").write_text("a name, no pattern")
    assert [d.id for d in FileCorpus([tmp_path / "books/a/[1].txt"])] == ["[1].txt"]


@given(st.lists(st.binary(max_size=12)), st.integers(0, 9), st.integers(1, 12))
def test_lines_of_any_blocks(blocks: list[bytes], size: int, limit: int) -> None:
    data = b"".join(blocks).replace(b"\x01", b"\n")
    blocks = [block.replace(b"\x01", b"\n") for block in blocks if block]
    expected = [line + b"\n" for line in data.split(b"\n")]
    expected[-1] = expected[-1][:-1]
    expected = [line for line in expected if line]
    assert list(ByteStream(iter(blocks)).lines()) == expected
    short = [line if len(line.rstrip(b"\n")) <= limit else None for line in expected]
    assert list(ByteStream(iter(blocks)).lines(limit)) == short
    stream = ByteStream(iter(blocks))
    assert stream.peek(size) == data[:size]
    assert stream.skip(size) == min(size, len(data))
    assert stream.line(1 << 20) == (data[size:].split(b"\n")[0] + b"\n")[: len(data[size:])]


@pytest.mark.data
def test_real_archives(data_folder: Path) -> None:
    folder = data_folder / "warc_samples"
    found = {}
    for path in sorted(folder.glob("*.warc*")):
        corpus, report = FileCorpus([path], skip_bad=True), ReadingReport()
        texts = [d.text for shard in corpus.shards() for d in shard.read(report)]
        found[path.name.removesuffix(".gz")] = (len(texts), report.skipped["damaged file"])
        if path.name.startswith("example") and texts and "iana" not in path.name:
            assert "Example Domain" in texts[0] or "illustrative examples" in texts[0]
    assert found == {
        "example-bad-non-chunked.warc": (1, 0),
        "example-digest.warc": (0, 0),
        "example-iana.org-chunked.warc": (1, 0),
        "example-resource.warc": (1, 0),
        "example-space-in-target-uri.warc": (0, 0),
        "example-trunc.warc": (1, 1),
        "example-wget-bad-target-uri.warc": (1, 0),
        "example-wrong-chunks.warc": (1, 0),
        "example.warc": (1, 0),
        "sample-0000.warc": (22, 0),
        "sample-0001.warc": (15, 0),
    }


@pytest.mark.data
def test_real_pages(data_folder: Path) -> None:
    folder = data_folder / "html_article_extraction"
    truth = json.loads(gzip.decompress((folder / "ground-truth.json.gz").read_bytes()))
    for name in sorted(truth)[:5]:
        (document,) = read(folder / "html" / f"{name}.html.gz")
        wanted, got = set(truth[name]["articleBody"].split()), set(document.text.split())
        assert len(wanted & got) > 0.8 * max(len(wanted), len(got))
