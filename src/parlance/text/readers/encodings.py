"""Which encoding bytes are in, and the same bytes as UTF-8.

UTF-8 comes first. A byte-order mark decides; without one, zeros at every second place mean UTF-16. Bytes that are not
UTF-8, and hold fewer UTF-8 sequences than others, are given to charset-normalizer, which chooses among the usual
encodings of the world's scripts. Files in another encoding than UTF-8 are counted in `ReadingReport.encodings`.

    encoding_of(b"caf\\xe9 au lait")     # "cp1252"
"""

import codecs
from collections.abc import Iterator

from parlance.text.documents import ReadingReport
from parlance.text.readers.streams import ByteStream

HEAD_BYTES = 1 << 20
"""How much of a file decides its encoding."""
CANDIDATES: list[str] = (  # noqa: SIM905
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 koi8_r iso8859_2 cp874"
    " cp932 euc_jp gb18030 big5 cp949"
).split()
LEAST_SAMPLE = 24
"""With fewer bytes above ASCII than this there is nothing to tell encodings by: cp1252, the most usual."""

LATIN_SHARE = 0.3
"""Where fewer of the letters are above ASCII, the text is in the Latin script."""
_USUAL = {  # the letters of western, and of eastern central Europe
    "cp1252": frozenset("àâäáãåæçèéêëìíîïñòóôöõøœùúûüßÿ’‘“”–—…«»°"),
    "cp1250": frozenset("ąćęłńóśźżáčďéěíňřšťúůýžăâîşţőűöüđ’‘“”–—…„"),
    "iso8859_2": frozenset("ąćęłńóśźżáčďéěíňřšťúůýžăâîşţőűöüđ"),
}

_MARKS = (  # the mark of UTF-32-LE begins with that of UTF-16-LE
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes, *, guess: bool = True) -> str:
    """The encoding of a file that begins with `head`; without `guess`, anything that has no mark is UTF-8."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if not guess:
        return "utf-8"
    if b"\0" in head:
        return _utf16_without_mark(head[:4096]) or "utf-8"
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head, final=len(head) < HEAD_BYTES)
    if "\ufffd" not in text:
        return "utf-8"
    wrong = text.count("\ufffd")
    if sum(1 for character in text if character > "\x7f") - wrong >= wrong:
        return "utf-8"  # UTF-8 with some damage
    return _guess(head)


def as_utf8(stream: ByteStream, report: ReadingReport, *, guess: bool = True) -> ByteStream:
    """The text of `stream` in UTF-8; what is UTF-8 already passes unchanged, wrong bytes too."""
    encoding = encoding_of(stream.peek(HEAD_BYTES if guess else 4), guess=guess)
    if encoding == "utf-8":
        return stream
    report.encodings[encoding] += 1
    return ByteStream(_recoded(stream, encoding))


def _recoded(stream: ByteStream, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while data := stream.block():
        if text := decoder.decode(data):
            yield text.encode("utf-8", errors="replace")
    if rest := decoder.decode(b"", final=True):
        yield rest.encode("utf-8")
    stream.check()


def _utf16_without_mark(head: bytes) -> str | None:
    """Latin letters in UTF-16 have zeros at every second place."""
    even, odd, half = head[::2].count(0), head[1::2].count(0), len(head) // 2
    if odd > 0.4 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def _guess(head: bytes) -> str:
    """What charset-normalizer takes the bytes for; it looks at parts of them only."""
    above = sum(1 for byte in head[:65536] if byte > 0x7F)
    if above < LEAST_SAMPLE:
        return "cp1252"
    letters = sum(1 for byte in head[:65536] if byte > 0x7F or chr(byte).isalpha())
    if above < LATIN_SHARE * letters:
        # Latin letters with accents: each encoding is judged by how many become letters that are usual in text.
        counts = {name: _usual(head[:65536].decode(name, errors="replace"), usual) for name, usual in _USUAL.items()}
        return max(counts, key=lambda name: counts[name])
    from charset_normalizer import from_bytes

    best = from_bytes(head[:65536], cp_isolation=CANDIDATES).best()
    return str(best.encoding) if best else "cp1252"


def _usual(text: str, usual: frozenset[str]) -> int:
    return sum(1 for character in text.lower() if character in usual)
