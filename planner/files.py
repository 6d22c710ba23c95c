"""Files that appear whole or not at all, and what systems say that refuse to write them."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from planner.errors import OutputError
from planner.lastwords import note

__all__ = ["atomic_file", "refusal", "refused", "write_atomically"]

_TOO_LARGE = 223  # ERROR_FILE_TOO_LARGE of Windows, for which Python has no errno
_ROOM = "Make room, or write to another disk."
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    getattr(errno, "EDQUOT", errno.ENOSPC): ("the quota of its disk is used up", _ROOM),
    errno.EFBIG: (
        "its disk (FAT32: 4 GiB a file) or a limit of the system (ulimit -f) takes no file so large",
        "Write to another disk, or a model in parts: `planner quantize --max-shard-size 4GB`.",
    ),
    errno.EROFS: ("the disk is read-only", "Write to another disk."),
    errno.EACCES: ("permission denied", "Check the permissions of its directory, or choose another place."),
    errno.EPERM: ("that is not permitted", "Check the permissions of its directory, or choose another place."),
    errno.ENOENT: ("its directory does not exist", "Create that first, or choose another place."),
    errno.ENAMETOOLONG: ("its name is too long", "Choose a shorter one."),
}


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, sync it, and rename it there. Raises OutputError."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` to write to, which is synced and renamed there at the end of the `with`.

    On any exception it is removed and `path` stays as it was. A device or a pipe, such as /dev/stdout, is written to as
    it is. What the system refuses is raised as OutputError.
    """
    temporary = ""
    try:
        if _is_stream(path):
            with path.open("wb") as file:
                yield file
            return
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        note("temporary", temporary)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()


def refusal(problem: OSError) -> tuple[str, str]:
    """What a system says that does not write, and what would help (empty where nothing is known to)."""
    code = errno.EFBIG if getattr(problem, "winerror", None) == _TOO_LARGE else problem.errno
    return _REFUSALS.get(code or 0, (problem.strerror or str(problem), ""))


def refused(path: Path, problem: OSError) -> OutputError:
    """The error for a file that could not be written."""
    what, remedy = refusal(problem)
    return OutputError(f"{path} cannot be written: {what}.", remedy or "Choose another place.")


def _is_stream(path: Path) -> bool:
    """Whether it is nothing that can be replaced by a file: a device, a pipe, or a name of an open file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.parent in (Path("/dev"), Path("/dev/fd"))
