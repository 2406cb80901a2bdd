"""The text of PDF files, page after page, as pypdf finds it. Scanned pages have none; nothing is recognised.

for document in read_pdf(part, options, problems): ...
"""

import logging
from collections.abc import Iterator
from pathlib import Path

from parlance.text.documents import Document, cannot_read
from parlance.text.readers.html import NO_TEXT
from parlance.text.readers.plain_text import pieces
from parlance.text.readers.problems import BadInput, Problems
from parlance.text.readers.shards import Part, ReadingOptions
from parlance.text.readers.streams import DAMAGED, ByteStream


def read_pdf(part: Part, _options: ReadingOptions, problems: Problems) -> Iterator[Document]:
    """The text of the pages as one document, or as pieces where it is long."""
    stream = ByteStream(_pages(Path(part.path)))
    if stream.peek(1):
        yield from pieces(stream, part.name, problems)
    elif not stream.damage:
        problems.report.skip(NO_TEXT, part.name)
    stream.check()


def _pages(path: Path) -> Iterator[bytes]:
    """The text of each page with something on it, an empty line behind it."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every irregularity it gets over
    try:
        file = path.open("rb")
    except OSError as error:
        raise cannot_read(path, error) from error
    try:
        with file:
            reader = pypdf.PdfReader(file)
            if reader.is_encrypted and not reader.decrypt(""):
                raise BadInput("encrypted PDF", "is a PDF that needs a password")
            for page in reader.pages:
                text = page.extract_text().strip().replace("\0", "\ufffd")
                if text:
                    yield f"{text}\n\n".encode(errors="replace")
    except BadInput:
        raise
    except Exception as error:  # a broken file makes pypdf raise nearly anything, KeyError and RecursionError included
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(DAMAGED, f"is not a readable PDF ({reason})") from error
