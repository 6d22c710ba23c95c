"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from planner.errors import OutputError
from planner.lastwords import note

__all__ = ["atomic_file", "write_atomically"]


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path`, sync it, and rename it there. Raises OutputError."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` to write to, which is synced and renamed there at the end of the `with`.

    On any exception it is removed and `path` stays as it was. What the system refuses is raised as OutputError.
    """
    temporary = ""
    try:
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
        raise OutputError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
