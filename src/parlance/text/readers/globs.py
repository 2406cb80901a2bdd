"""Patterns instead of paths: `crawl/2024-*/*.warc.gz`.

base, matches = expand(Path("books/**/*.txt"))      # Path("books"), [Path("books/a.txt"), ...]
"""

import glob
from pathlib import Path


def is_glob(path: Path) -> bool:
    """Whether `path` is a pattern: it has a wildcard, and no file is really called so."""
    return glob.has_magic(str(path)) and not path.exists()


def expand(pattern: Path) -> tuple[Path, list[Path]] | None:
    """(the folder before the first wildcard, the files and folders that match, sorted), or None without a match.

    Nothing is named twice: what lies in a folder that matches is left to that folder; with `**`, which matches folders
    and all that is in them, only files count. Hidden files match only a pattern that names the dot.
    """
    plain = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:plain])
    found = sorted(Path(match) for match in glob.glob(str(pattern), recursive=True))  # noqa: PTH207
    if "**" in pattern.parts:
        found = [path for path in found if not path.is_dir()]
    folders = {path for path in found if path.is_dir()}
    found = [path for path in found if not folders.intersection(path.parents)]
    return (base, found) if found else None
