"""Which files are read, and as what: the kind of a file by its suffixes.

    kind_of(Path("dump/page.html.gz"))    # ("html", "gz")

Suffixes are compared without regard to case. Configuration (.json, .yaml, .toml, .ini) is no text to learn from here.
"""

from pathlib import Path

_TEXT = (
    ".txt .text .md .markdown .rst .adoc .org .tex"
    " .py .pyi .pyx .c .h .cc .cpp .cxx .hh .hpp .cu .cuh .java .kt .kts .scala .groovy .clj .cs .fs .vb"
    " .js .jsx .mjs .ts .tsx .vue .css .scss .php .rb .pl .pm .lua .tcl .go .rs .swift .m .mm .d .nim .zig .dart"
    " .hs .ml .mli .erl .ex .exs .elm .lisp .el .scm .rkt .jl .r .f .f90 .f95 .pas .adb .ads .asm .s"
    " .sh .bash .zsh .fish .ps1 .bat .sql .proto .cmake .mk .v .sv .vhd"
)
TEXT_SUFFIXES = tuple(_TEXT.split())
"""Read as they are: plain text, markup made for reading, source code."""
SUFFIXES = (*TEXT_SUFFIXES, *".jsonl .ndjson .csv .tsv .parquet .html .htm .xhtml .warc .wet .pdf".split())  # noqa: SIM905
"""All that are read."""
COMPRESSIONS = {".gz": "gz", ".zst": "zst"}
"""Suffixes that may follow one of `SUFFIXES`, except .parquet and .pdf."""

_KINDS = {
    **dict.fromkeys(TEXT_SUFFIXES, "text"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
    ".parquet": "parquet",
    ".pdf": "pdf",
}


def kind_of(path: Path) -> tuple[str, str] | None:
    """(kind, compression: "", "gz" or "zst") of a file, or None where Parlance does not read such files."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    compression = COMPRESSIONS.get(last, "")
    kind = _KINDS.get(before if compression else last)
    if kind is None or (compression and kind in ("parquet", "pdf")):
        return None
    return kind, compression


def suffix_of(path: Path) -> str:
    """What to call the kind of a file that is not read: its last suffix, with the one before a compression's."""
    *_, before, last = ("", "", *(suffix.lower() for suffix in path.suffixes))
    return before + last if last in COMPRESSIONS else last
