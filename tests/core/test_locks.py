"""One lock at a time, also while its file comes and goes."""

import errno
import fcntl
import os

from parlance.core import locks
from parlance.core.locks import FileLock


def test_one_at_a_time(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.take()
    assert first.take()
    assert not second.take()
    second.free()
    assert not second.take()
    first.free()
    assert list(tmp_path.iterdir()) == []
    assert second.take()
    assert not first.take()
    second.free()


def test_a_file_that_was_deleted_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Between opening and locking, the one that had the lock deletes the file and a third one makes another."""
    third, late, original = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock"), locks._locked
    calls = []

    def locked(file):
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / "lock").unlink()
            assert third.take()
        return original(file)

    monkeypatch.setattr(locks, "_locked", locked)
    assert not late.take()
    third.free()
    assert late.take()


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = FileLock(tmp_path / "lock")
    assert lock.take()
    lock.free()
    lock.free()
    assert list(tmp_path.iterdir()) == []
