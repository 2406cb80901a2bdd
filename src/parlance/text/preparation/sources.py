"""What a user names as sources -> corpora by name.

named_corpora(["web=crawl/", "books=shelf/", "notes.txt"], skip_bad=False)
"""

from collections.abc import Sequence
from pathlib import Path

from parlance.text.documents import Corpus
from parlance.text.readers import FileCorpus
from parlance.text.standard_library import StandardLibraryCorpus


def named_corpora(sources: Sequence[str], *, skip_bad: bool, text_field: str = "text") -> dict[str, Corpus]:
    """The sources by name, in the order of their first mention; those without a name are one called "".

    NAME=PATH is a named source, unless a file of exactly that name exists. No sources: the Python standard library.
    Raises UserError for what does not exist or cannot be read.
    """
    paths: dict[str, list[Path]] = {}
    for source in sources:
        name, separator, path = source.partition("=")
        named = bool(separator) and name.isidentifier() and not Path(source).exists()
        paths.setdefault(name if named else "", []).append(Path(path if named else source))
    if not paths:
        return {"": StandardLibraryCorpus()}
    return {name: FileCorpus(group, skip_bad=skip_bad, text_field=text_field) for name, group in paths.items()}
