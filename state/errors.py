"""Every error that `state` raises on purpose, and the one place where SQLite's errors become ours.

    StateError
    ├── StateMissing     there is no such file, or nothing has been written to it yet
    ├── StateForeign     the state of another model, or no state file at all
    ├── StateNewer       written by a later version, with a schema that this one does not know
    ├── StateCorrupt     damaged: what it holds cannot be trusted
    ├── StateLocked      another process is writing to it
    ├── StateFull        the disk did not take a write; what was reported written before is safe
    └── StateReadOnly    the file, its folder or its disk cannot be written

Each has `problem` (what was wrong, and where) and `remedy` (what to do next).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "StateCorrupt",
    "StateError",
    "StateForeign",
    "StateFull",
    "StateLocked",
    "StateMissing",
    "StateNewer",
    "StateReadOnly",
    "corrupt",
    "from_os",
    "from_sqlite",
    "translated",
]


class StateError(Exception):
    """A state file cannot be used as asked; `str()` is the problem and the remedy, a line each."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class StateMissing(StateError):
    """There is no such file, or nothing has been written to it yet."""


class StateForeign(StateError):
    """The state of another model, or not a state file."""


class StateNewer(StateError):
    """Written by a later version, with a schema that this one does not know."""


class StateCorrupt(StateError):
    """Damaged: what the file holds cannot be trusted."""


class StateLocked(StateError):
    """Another process is writing to the file."""


class StateFull(StateError):
    """The disk did not take a write; everything reported written before is safe."""


class StateReadOnly(StateError):
    """The file, its folder or its disk cannot be written."""


MOVE_AWAY = (
    "Move it away and measure again, or try to rescue what is left of it: `sqlite3 OLD .recover | sqlite3 NEW.planner`"
)
MAKE_ROOM = (
    "Free some space, or lift the quota, and run the same command again: "
    "it goes on with everything that was written before."
)
WRITABLE = "Copy it to a folder that you can write to and use the copy, or open it for reading only."

# How SQLite says that the operating system refused a write for a reason other than ENOSPC: quota, file size limit, I/O.
_WRITE_FAILURES = {
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
}
_LOCK_FAILURES = {sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK}
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def corrupt(path: Path, what: str) -> StateCorrupt:
    """Return the error for a damaged file; `what` names the damaged part and the damage."""
    return StateCorrupt(f"The state file {path} is damaged: {what}.", MOVE_AWAY)


def from_sqlite(error: sqlite3.Error, path: Path) -> StateError:
    """Return the `StateError` for an error of SQLite about the file at `path`."""
    code: int = getattr(error, "sqlite_errorcode", 0)  # Python's own complaints have none
    match code & 0xFF:  # the low byte is the primary code, the rest says more
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return StateLocked(
                f"The state file {path} is in use by another program, which did not let go of it in time.",
                "Close that program, or wait for it, and run the same command again.",
            )
        case sqlite3.SQLITE_FULL:
            return StateFull(f"The disk is full: the state file {path} could not be written.", MAKE_ROOM)
        case sqlite3.SQLITE_READONLY:
            return _read_only(code, path)
        case sqlite3.SQLITE_NOTADB:
            return StateForeign(
                f"{path} is not a state file, or the beginning of it is damaged.",
                "Name another file; or move this one away and measure again.",
            )
        case sqlite3.SQLITE_IOERR:
            return _io_failure(code, error, path)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            if not os.access(path, os.R_OK):
                return StateError(f"The state file {path} may not be read.", "Check its permissions.")
            return StateError(f"The state file {path} cannot be opened ({error}).", WRITABLE)
        case sqlite3.SQLITE_TOOBIG:
            return StateError(f"A record in the state file {path}, or on its way there, is too large.", MOVE_AWAY)
        case 0 if isinstance(error, sqlite3.ProgrammingError):
            return StateError(f"The state file {path} was used after it was closed ({error}).")
        case _:
            return corrupt(path, str(error))


def _read_only(code: int, path: Path) -> StateError:
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return StateReadOnly(
            f"The last write to the state file {path} was cut short, and has to be undone before it can be read; "
            "but it cannot be written.",
            f"Copy it, together with {path.name}-journal beside it, to a folder that you can write to; use the copy.",
        )
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return StateError(
            f"The state file {path} was moved or replaced while it was in use.",
            "Put it back and run the same command again.",
        )
    return StateReadOnly(f"The state file {path} cannot be written: it or its folder is read-only.", WRITABLE)


def _io_failure(code: int, error: sqlite3.Error, path: Path) -> StateError:
    if code in _WRITE_FAILURES:
        return StateFull(
            f"The disk did not take a write to the state file {path} (full, over its quota, or failing).", MAKE_ROOM
        )
    if code in _LOCK_FAILURES:
        return _no_locks(path)
    if code == sqlite3.SQLITE_IOERR_SHORT_READ or code == sqlite3.SQLITE_IOERR_CORRUPTFS:
        return corrupt(path, "it ends too early")
    return StateError(
        f"The disk failed while the state file {path} was in use ({error}, {_name(error)}).",
        "Check the disk, then run the same command again.",
    )


def _name(error: sqlite3.Error) -> str:
    return str(getattr(error, "sqlite_errorname", "no code"))


def _no_locks(path: Path) -> StateError:
    return StateError(
        f"The file system that holds {path} has no working file locks.",
        "Keep the state file on a local disk.",
    )


def from_os(error: OSError, path: Path) -> StateError:
    """Return the `StateError` for an error of the operating system about the file at `path`."""
    match error.errno:
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return StateReadOnly(f"The state file {path} cannot be written ({error.strerror}).", WRITABLE)
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return StateFull(f"The state file {path} could not be written ({error.strerror}).", MAKE_ROOM)
        case errno.ENOENT | errno.ENOTDIR:
            return StateMissing(f"There is no folder {path.parent}.", "Make it first, or name another file.")
        case code if code in NO_LOCKS:
            return _no_locks(path)
        case _:
            return StateError(f"The state file {path} cannot be used ({error.strerror}).", "Name another file.")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn every error of SQLite or of the file system inside the block into a `StateError` about `path`."""
    try:
        yield
    except sqlite3.Error as error:
        raise from_sqlite(error, path) from error
    except OSError as error:
        raise from_os(error, path) from error
    except UnicodeDecodeError as error:  # SQLite quotes the damaged part in its message, and Python chokes on that
        raise corrupt(path, "a text in it is not text") from error
