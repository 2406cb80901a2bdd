"""Files that appear whole or not at all, and the readers of the formats Parlance writes.

Every write goes to a temporary sibling, is flushed to disk, and is renamed into place (a rename is atomic on
one file system), so a process killed at any moment leaves either the old content or the new, never a part. One gap is
left: a folder that replaces an older one is moved in two renames, and a kill between them leaves only the old folder's
copy beside it, named `NAME.old.partial`.
Operating-system failures (full disk, read-only folder) become one-sentence `UserError`s.

    write_json(Path("runs/demo/summary.json"), {"loss": 1.5})
    with atomic_directory(Path("runs/demo/corpus")) as folder:
        write_text(folder / "train.jsonl", "...")
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from parlance.core.errors import UserError

PARTIAL = ".partial"
"""Suffix of files and folders that are still being written; leftovers of a killed process may be deleted."""
PREPARING = ".preparing"
"""Suffix of the folder beside a corpus in which it is made; `--resume` goes on there."""


@contextmanager
def os_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into the one sentence a user needs."""
    try:
        yield
    except OSError as error:
        # The system's words: libraries put their own around them.
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno is None and reason.endswith("written"):
            # How numpy reports a short write: "1000 requested and 512 written", without the cause.
            reason = f"no space left on device? ({reason})"
        raise UserError(f"cannot {action} {path}: {reason[0].lower()}{reason[1:]}") from error


def ensure_directory(path: Path) -> Path:
    """Create `path` and its parents where missing; raises UserError where that is impossible."""
    with os_errors("create folder", path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically and durably: `write` fills it. Raises UserError (full disk, no permission, ...)."""
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + PARTIAL)
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably. Raises UserError (full disk, no permission, ...)."""
    write_file(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically. Lone surrogates (undecodable bytes) are replaced."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line. A kill may cut the line short; readers pass `skip_bad`."""
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError naming the file where it is missing or broken."""
    with os_errors("read", path):
        data = path.read_bytes()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def read_jsonl(path: Path, *, skip_bad: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file; empty lines are passed over.

    A line that is not a JSON object raises UserError with file and line number; with `skip_bad` it yields
    (line number, {}) so that the caller can count it.
    """
    with os_errors("read", path):
        file = path.open("rb")
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("it holds another value")
            except (ValueError, RecursionError) as error:
                if not skip_bad:
                    raise UserError(
                        f"{path}, line {number}: not a JSON object ({error}); mend the line, or pass --skip-bad"
                        " to leave such lines out"
                    ) from error
                record = {}
            yield number, record


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends well; an existing `path` is replaced.

    On an error the temporary folder is removed and `path` is as it was.
    """
    temporary = path.with_name(path.name + PARTIAL)
    with os_errors("create folder", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        with os_errors("write in", path):
            yield temporary
        with os_errors("write", path):
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                # A rename cannot replace a folder that has content: move the old one aside first.
                old = path.with_name(path.name + ".old" + PARTIAL)
                shutil.rmtree(old, ignore_errors=True)
                path.replace(old)
                try:
                    temporary.replace(path)
                except BaseException:
                    old.replace(path)
                    raise
                shutil.rmtree(old)
            else:
                temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with os_errors("read", path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
