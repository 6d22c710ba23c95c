"""One writer at a time: a lock file beside the state, held for as long as the state is open for writing.

The lock is the operating system's, on an open file: it goes when the process goes, however that happens, so there
is nothing stale to clean up after kill -9. The text inside only says who holds it. It keeps a second run from doing
the same work again; that the file stays whole does not depend on it, since every write is an SQLite transaction.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import sys
from pathlib import Path

from state.errors import StateError, StateLocked, from_os

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["WriterLock", "open_locked"]

_OPTIONS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class WriterLock:
    """The right to write to the state at `path`. Raises `StateLocked` at once when another process has it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self._file = self._acquire(path)
        except OSError as error:
            raise from_os(error, path) from error

    def _acquire(self, state: Path) -> int:
        while True:
            file = os.open(self.path, _OPTIONS, 0o666)  # not inherited by programs that we start
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise StateError(f"{self.path} is in the way: it is not a plain file.", "Remove it.")
                if not _try_lock(file):
                    raise StateLocked(
                        f"The state file {state} is being written by another run{_holder(file)}.",
                        "Wait for it to finish, or stop it; nothing that it has measured is lost.",
                    )
                if _is_at(self.path, status):
                    _sign(file)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # its last holder deleted it between our opening and locking it: take the new one

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        if self._file < 0:
            return
        file, self._file = self._file, -1
        if sys.platform == "win32":
            os.close(file)  # an open file cannot be deleted there; once closed, it is not ours to wait for
            with contextlib.suppress(OSError):
                self.path.unlink()
        else:
            with contextlib.suppress(OSError):
                self.path.unlink()  # while it is still locked, or we might delete the next holder's
            os.close(file)


def open_locked(path: Path, flags: int = 0) -> int | None:
    """Open a plain file for reading and writing, with more `flags` if any, and lock it for as long as it is open;
    return its descriptor, or None if another process has it. Raises OSError."""
    while True:
        file = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | (_OPTIONS & ~os.O_CREAT) | flags, 0o600)
        locked = _try_lock(file)
        if locked and _is_at(path, os.fstat(file)):
            return file
        os.close(file)
        if not locked:
            return None


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(status, path.stat())
    except FileNotFoundError:
        return False


def _try_lock(file: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(file, 2**30, os.SEEK_SET)  # far beyond the text, which then stays readable
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _sign(file: int) -> None:
    text = f"process {os.getpid()} on {platform.node()}\n".encode("utf-8", "replace")
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a signature
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, text)


def _holder(file: int) -> str:
    with contextlib.suppress(OSError):
        os.lseek(file, 0, os.SEEK_SET)
        text = os.read(file, 300).decode("utf-8", "replace").strip()
        if text.startswith("process ") and text.isprintable():
            return f" ({text})"
    return ""
