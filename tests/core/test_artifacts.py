"""Files appear whole or not at all, and what is wrong with a file is said in one sentence."""

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlance.core import artifacts
from parlance.core.artifacts import (
    append_jsonl,
    atomic_directory,
    ensure_directory,
    read_json,
    read_jsonl,
    sha256,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from parlance.core.errors import UserError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # JSON has no lone surrogates.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=4),
    max_leaves=10,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- single files ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(value=json_values)
def test_json_comes_back_as_it_was(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "deep" / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")


def test_text_with_a_lone_surrogate_is_written(tmp_path):
    write_text(tmp_path / "a.txt", "x\ud800y")
    assert (tmp_path / "a.txt").read_bytes() == b"x?y"


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full_disk(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts.os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write .*a\.json: no space left on device"):
        write_json(path, {"new": 2})
    assert contents(tmp_path) == {"a.json": b'{\n  "old": 1\n}\n'}


def test_a_write_below_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "file" / "b", b"")
    with pytest.raises(UserError, match="cannot create folder"):
        ensure_directory(tmp_path / "file" / "folder")


def test_reading_what_is_missing_or_broken_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.json: no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad\.json is not valid JSON"):
        read_json(tmp_path / "bad.json")


def test_sha256_is_the_published_one(tmp_path):
    write_bytes(tmp_path / "abc", b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- JSON lines ------------------------------------------------------------------------------------------------------


def test_json_lines_round_trip_and_append(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}, {"b": "é\u2028"}])
    append_jsonl(path, {"c": None})
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (2, {"b": "é\u2028"}), (3, {"c": None})]


@pytest.mark.parametrize("bad", [b"{", b"[1]", b"3", b'{"a": "\xff"}'])
def test_a_bad_line_names_file_and_line(bad, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + bad + b'\n{"b": 2}')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: .*--skip-bad"):
        list(read_jsonl(path))
    assert list(read_jsonl(path, skip_bad=True)) == [(1, {"a": 1}), (3, {}), (4, {"b": 2})]


def test_a_missing_file_of_lines_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        list(read_jsonl(tmp_path / "none.jsonl"))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "out" / "folder"
    with atomic_directory(target) as folder:
        write_text(folder / "sub" / "a.txt", "a")
        assert not target.exists()
    assert contents(tmp_path / "out") == {"folder/sub/a.txt": b"a"}


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        with atomic_directory(target) as folder:
            write_text(folder / name, name)
    assert contents(tmp_path) == {"folder/new": b"new"}


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_a_failing_block_leaves_the_old_folder(error, tmp_path):
    target = tmp_path / "folder"
    with atomic_directory(target) as folder:
        write_text(folder / "old", "old")

    def replace() -> None:
        with atomic_directory(target) as folder:
            write_text(folder / "new", "new")
            raise error

    with pytest.raises(type(error)):
        replace()
    assert contents(tmp_path) == {"folder/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_operating_system_error_in_the_block_becomes_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot write in .*folder: no space"), atomic_directory(tmp_path / "folder"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    with atomic_directory(target) as folder:
        write_text(folder / "old", "old")
    rename = Path.replace

    def failing(self: Path, goal: Path) -> Path:
        if self.name == "folder.partial":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, goal)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UserError, match="permission denied"), atomic_directory(target) as folder:
        (folder / "new").write_text("new")
    assert contents(tmp_path) == {"folder/old": b"old"}


def test_what_a_killed_process_left_is_replaced(tmp_path):
    leftover = tmp_path / "folder.partial"
    leftover.mkdir()
    (leftover / "half").write_text("half")
    with atomic_directory(tmp_path / "folder") as folder:
        write_text(folder / "whole", "whole")
    assert contents(tmp_path) == {"folder/whole": b"whole"}


def test_json_is_plain_text(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, 2]}
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")
