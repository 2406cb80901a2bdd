"""One process at a time: a lock on a file, which the system frees when its process ends, however it ends.

    lock = FileLock(Path("base/stage.lock"))
    if not lock.take(): raise UserError("another process is at work in base")
    lock.free()

A file that is left by a killed process is no lock. Where the system or the file system knows no such locks (Windows,
some network mounts), every process gets one.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import IO

from parlance.core.artifacts import os_errors


class FileLock:
    """A lock on `path`, which is made when it is taken and deleted when it is freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """Whether this process has the lock now; another one has it otherwise. Raises UserError (read-only folder)."""
        while self._file is None:
            with os_errors("write", self.path):
                file = self.path.open("a")
            if not _locked(file):
                file.close()
                return False
            if self._is_at_path(file):
                self._file = file
            else:  # whoever had it deleted it between the two lines above
                file.close()
        return True

    def free(self) -> None:
        """Let others have the lock."""
        if self._file is not None:
            file, self._file = self._file, None
            with file, contextlib.suppress(OSError):  # a file that stays is no lock
                if self._is_at_path(file):
                    self.path.unlink()

    def _is_at_path(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def _locked(file: IO[str]) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True
