"""Rows that were rounded before their file is written, kept on disk until then."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import ModelError
from planner.files import is_stream, refused

__all__ = ["Rounded"]

Bytes = NDArray[np.uint8]


class Rounded(Closing):
    """Rounded tensors in a file without a name beside `out` (where temporary files are, if that is a device or pipe):
    gone with this object, or with the process, however it ends. A context manager. Raises OutputError for what the
    system refuses."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._places: dict[str, tuple[int, int]] = {}  # first byte, bytes of a row
        self._lock = threading.Lock()
        try:
            folder = None if is_stream(out) else out.parent
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as problem:
            raise refused(out, problem) from problem
        self._size = 0

    def close(self) -> None:
        """Give the disk its room back."""
        self._file.close()

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def put(self, name: str, pieces: Sequence[Bytes]) -> None:
        """Keep all rows of a tensor, u8[rows, row bytes] in order. Raises OutputError."""
        begin = self._size
        try:
            for piece in pieces:
                self._file.write(piece.data)
                self._size += piece.nbytes
            self._file.flush()
        except OSError as problem:
            raise refused(self._out, problem) from problem
        self._places[name] = begin, pieces[0].shape[1]

    def rows(self, name: str, start: int, stop: int) -> Bytes:
        """Return some rows of a tensor, u8[stop - start, row bytes]. Raises ModelError if the disk has lost them."""
        begin, row_bytes = self._places[name]
        found = np.empty((stop - start, row_bytes), np.uint8)
        with self._lock:
            self._file.seek(begin + start * row_bytes)
            count = self._file.readinto(found.data)
        if count != found.nbytes:
            raise ModelError(f"{name}: what was rounded cannot be read again.", "Is the disk damaged?")
        return found
