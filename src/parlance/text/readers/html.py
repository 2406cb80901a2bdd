"""The main text of web pages, without menus, advertisements and comments.

    main_text("<html>...</html>", favour_precision=True)

The extraction is trafilatura's (Barbaresi 2021, doi:10.18653/v1/2021.acl-demo.15), measured by
benchmarks/main_text.py. The encoding:
UTF-8 where the bytes are, else what the server or the page declares, else a guess. Pages that are too large,
too deep or made of too many elements are not parsed: a hostile page can neither stop the reading nor fill the memory.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from parlance.text.documents import Document
from parlance.text.readers.encodings import encoding_of
from parlance.text.readers.problems import BadInput, Problems
from parlance.text.readers.shards import Part, ReadingOptions
from parlance.text.readers.streams import open_stream

PAGE_BYTES = 8 << 20
"""Larger pages are not read (Common Crawl cuts at 5 MiB)."""
DEPTH = 250
"""Pages with more elements inside each other are not read."""
DEEP = 50
DEEP_ELEMENTS = 5_000
"""Pages with more elements that are inside `DEEP` others are not read."""
ELEMENTS = 100_000
"""Pages with more tags are not read."""
NO_TEXT = "no main text"
"""The heading under which pages without text are counted."""

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_TAG = re.compile(r"<[a-zA-Z]")
# Browsers read these labels as the larger encodings (WHATWG Encoding Standard, section 4.2).
_LARGER = {"iso8859-1": "cp1252", "ascii": "cp1252", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
           "euc_kr": "cp949", "iso8859-9": "cp1254", "tis-620": "cp874"}  # fmt: skip


def read_html(part: Part, options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """The page as one document."""
    stream = open_stream(Path(part.path), part.compression)
    data = stream.read(PAGE_BYTES + 1)
    page, encoding, replaced = decode_page(data)
    text = main_text(page, favour_precision=options.favour_precision)
    problems.report.replaced += replaced
    if encoding != "utf-8":
        problems.report.encodings[encoding] += 1
    if text:
        yield Document(part.name, text, part.name)
    else:
        problems.report.skip(NO_TEXT, part.name)
    stream.check()


def decode_page(data: bytes, declared: str = "") -> tuple[str, str, int]:
    """(text, encoding, wrong bytes replaced by U+FFFD) of a page; `declared`: what the server said its encoding is.

    Raises BadInput for a page that is too large, and for binary data.
    """
    if len(data) > PAGE_BYTES:
        raise BadInput("page too large", f"is a page of more than {PAGE_BYTES >> 20} MiB")
    encoding = encoding_of(data, guess=False)
    if encoding == "utf-8" and not _is_utf8(data):
        meta = _META_CHARSET.search(data[:4096])
        names = (declared, meta[1].decode("ascii") if meta else "")
        encoding = next((known for name in names if (known := _known(name))), "") or encoding_of(data)
    text = data.decode(encoding, errors="replace").removeprefix("\ufeff")
    zeros = text.count("\0")
    if zeros > 16 + len(text) // 1000:
        raise BadInput("binary data", "holds binary data (NUL bytes)")
    replaced = text.count("\ufffd") - (data.count(b"\xef\xbf\xbd") if encoding == "utf-8" else 0)
    return text.replace("\0", "\ufffd") if zeros else text, encoding, replaced + zeros


def main_text(page: str, *, favour_precision: bool) -> str:
    """The main text of a page, empty where it has none. Raises BadInput for pages too deep or too large."""
    if not page or page.isspace():
        return ""
    if sum(1 for _ in _TAG.finditer(page)) > ELEMENTS:
        raise BadInput("page with too many elements", f"is a page of more than {ELEMENTS} elements")
    import logging

    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it reports every page without text as an error
    tree = trafilatura.load_html(page)
    if tree is None:
        return ""
    if tree.xpath("boolean(" + "/*" * (DEPTH + 1) + ")"):
        raise BadInput("page too deep", f"is a page of more than {DEPTH} elements inside each other")
    if tree.xpath("count(" + "/*" * DEEP + "//*)") > DEEP_ELEMENTS:  # the extraction's time grows with depth x number
        raise BadInput("page too deep", f"is a page of more than {DEEP_ELEMENTS} elements inside {DEEP} others")
    text = trafilatura.extract(
        tree,
        favor_precision=favour_precision,
        include_comments=False,
        include_tables=True,
        deduplicate=False,
        with_metadata=False,
    )
    return text or ""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        # A few wrong bytes do not make it another encoding.
        text = data.decode("utf-8", errors="replace")
        wrong = text.count("\ufffd")
        return sum(1 for character in text if character > "\x7f") - wrong >= wrong
    return True


def _known(name: str) -> str:
    """Python's name of the encoding that a page declares, or "" where there is none or it cannot be true."""
    try:
        known = codecs.lookup(name.strip().strip("\"'")).name if name else ""
    except (LookupError, ValueError):
        return ""
    if known.startswith(
        ("utf", "base64", "bz2", "hex", "quopri", "rot", "uu", "zlib", "idna", "punycode", "raw", "unic")
    ):
        return ""
    return _LARGER.get(known, known)
