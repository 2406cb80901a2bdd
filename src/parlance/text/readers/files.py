"""From files and folders to documents: `FileCorpus`.

corpus = FileCorpus([Path("books"), Path("notes.jsonl"), Path("crawl/*.warc.gz")])
for document in corpus: ...
print(corpus.report)
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from parlance.core.artifacts import PARTIAL, PREPARING
from parlance.core.errors import UserError
from parlance.core.progress import Progress
from parlance.text.documents import Document, ReadingReport, cannot_read
from parlance.text.readers.dividing import divide, pack
from parlance.text.readers.globs import expand, is_glob
from parlance.text.readers.kinds import COMPRESSIONS, SUFFIXES, kind_of, suffix_of
from parlance.text.readers.shards import Part, ReadingOptions, Shard, read_part

SHARD_BYTES = 16 << 20
"""Stored bytes of a shard, about."""


class FileCorpus:
    """All documents of the named files, folders and patterns, in the order named, folders in sorted order.

    Hidden and partial (half-written) files, links to folders, and folders that Parlance itself prepared are passed
    over in folders; files of other kinds are skipped and counted. `report` describes the last complete pass.

    Ids are paths relative to the named folder (with its name in front), so that they do not depend on where the corpus
    lies; a record has ":" and its number from 1 (line, row or WARC record) behind the path, unless it brings an `id`. A
    pattern (`*`, `?`, `[...]`, `**` for any folders) stands for the folder before its first wildcard.

    Raises UserError at once for a missing path or a named file of an unknown kind, and while iterating for
    unreadable files, for bad input (unless `skip_bad`, then it is counted) and for no text at all.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        skip_bad: bool = False,
        text_field: str = "text",
        favour_precision: bool = True,
    ) -> None:
        """`text_field`: what holds the text in JSON lines, CSV and Parquet. `favour_precision`: see `html`."""
        if not paths:
            raise UserError("no text was named; name a file or a folder")
        for path in paths:
            if is_glob(path):
                if not expand(path):
                    raise UserError(f"no file matches {path}; check the pattern")
            elif not path.exists():
                raise UserError(f"{path} does not exist; check the path")
            elif not path.is_dir() and kind_of(path) is None:
                raise UserError(f"{path}: cannot read files of this kind; the kinds are {kinds()}")
        self.paths = tuple(paths)
        self.options = ReadingOptions(skip_bad=skip_bad, text_field=text_field, favour_precision=favour_precision)
        self.report = ReadingReport()

    def __iter__(self) -> Iterator[Document]:
        self.report = report = ReadingReport()
        has_text = False
        with Progress("read", unit="documents") as progress:
            for part in self._parts(report):
                for document in read_part(part, self.options, report):
                    has_text = has_text or not (not document.text or document.text.isspace())
                    progress.update(1)
                    yield document
        if not has_text:
            where = ", ".join(str(path) for path in self.paths[:3])
            raise UserError(f"there is no text in {where}; Parlance reads {kinds()} files")

    def shards(self, target_bytes: int = SHARD_BYTES) -> list[Shard]:
        """The corpus in shards of about `target_bytes` stored bytes each; sets `report` to what was left out.

        Large JSON lines, Parquet and plain text files are divided; compressed, CSV, HTML, WARC and PDF files stay
        whole. The documents of all shards are those of the corpus; their reports, merged into `report`, its report.
        """
        self.report = ReadingReport()
        whole = (replace(part, path=str(Path(part.path).absolute())) for part in self._parts(self.report))
        return pack((piece for part in whole for piece in divide(part, target_bytes)), target_bytes, self.options)

    def _parts(self, report: ReadingReport) -> Iterator[Part]:
        """Every file to read, whole. Roots of the same name are told apart by "#2", "#3", ..."""
        seen: dict[str, int] = {}
        for path in self.paths:
            base, found = (expand(path) if is_glob(path) else None) or (None, [])
            root = (base or path).resolve().name or "root"
            seen[root] = seen.get(root, 0) + 1
            name = root if seen[root] == 1 else f"{root}#{seen[root]}"
            if base is not None:
                for match in found:
                    inner = f"{name}/{match.relative_to(base).as_posix()}"
                    if match.is_dir():
                        yield from _walk(match, inner, report)
                    else:
                        yield from _file(match, inner, report)
            elif path.is_dir():
                yield from _walk(path, name, report)
            else:
                yield from _file(path, name, report)


def kinds() -> str:
    """The kinds of files, for messages."""
    shown = [suffix for suffix in SUFFIXES if suffix in _SHOWN]
    return f"{', '.join(shown)}, source code, and most of them with {' or '.join(COMPRESSIONS)} behind"


_SHOWN = {".txt", ".md", ".jsonl", ".csv", ".tsv", ".parquet", ".html", ".warc", ".wet", ".pdf"}


def _walk(folder: Path, name: str, report: ReadingReport) -> Iterator[Part]:
    """The readable files below `folder`, sorted by name, a folder's content in its place."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan)
    except OSError as error:
        raise cannot_read(folder, error) from error
    for entry, is_folder in entries:
        path, inner = folder / entry, f"{name}/{entry}"
        if entry.startswith(".") or entry.endswith(PARTIAL):
            report.skip("hidden or partial", inner)
        elif is_folder and entry.endswith(PREPARING) and (path / "plan.json").exists():
            continue  # a corpus that is being made of these very files
        elif is_folder:
            if (path / "card.json").exists() and (path / "train.jsonl").exists():
                report.skip("a corpus prepared by Parlance", inner)
            else:
                yield from _walk(path, inner, report)
        else:
            yield from _file(path, inner, report)


def _file(path: Path, name: str, report: ReadingReport) -> Iterator[Part]:
    kind = kind_of(path)
    if kind is None:
        report.skip(f"kind of file: {suffix_of(path) or 'no extension'}", name)
    elif not path.is_file():
        report.skip("not a regular file", name)
    else:
        yield Part(str(path), name, *kind)
