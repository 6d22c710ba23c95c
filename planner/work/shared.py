"""Files that other machines see under the same path.

An open model pickles as a `reference`: its path, and what it is known by. Unpickled in a worker, it is opened there,
once a process. What is known of a file must not take long to find out: sizes, and pieces that are spread over it. Times
of change differ between copies, and digests of all weights take as long as measuring them.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from planner.digests import stamp

__all__ = ["Reference", "Unseen", "reference"]

T = TypeVar("T")
Reference = tuple[Callable[..., T], tuple[Callable[[Path], T], str, tuple[str, ...], str]]

_HEAD = 1 << 20  # bytes at the beginning: what tells models apart most often
_PIECES, _PIECE = (
    64,
    1 << 14,
)  # and of the weights, evenly spread: so few that a disk far away has them in no time
_MOST_OPEN = 8  # a worker may outlive many campaigns


class Unseen(Exception):
    """A file is not to be seen here, or another has its name: `path` and `why`."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why


def reference(opener: Callable[[Path], T], path: Path, files: Iterable[Path]) -> Reference[T]:
    """Return what `__reduce__` of an open file returns: `opener(path)` is to be called where it is unpickled, if the
    same `files` are there. Raises OSError."""
    # Links stay as they are: another machine may have others, to its own copy
    names = tuple(str(file.absolute()) for file in files)
    return _opened, (opener, str(path.absolute()), names, _known_by(names))


def _known_by(files: Iterable[str]) -> str:
    """Return the SHA-256 (hex) of files' sizes, beginnings and pieces."""
    sha = hashlib.sha256()
    for name in files:
        with Path(name).open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            sha.update(f"{size}\n".encode())
            for at, length in ((0, _HEAD), *((size * piece // _PIECES, _PIECE) for piece in range(_PIECES))):
                file.seek(at)
                sha.update(file.read(length))
    return sha.hexdigest()


_open: OrderedDict[tuple[object, ...], tuple[list[tuple[int, int]], Any]] = OrderedDict()
_opening = threading.Lock()


def _opened(opener: Callable[[Path], T], path: str, files: tuple[str, ...], known_by: str) -> T:
    """Return the file that another process has open, opened here. Raises Unseen, and what `opener` raises."""
    key = opener, path, known_by
    with _opening:
        try:
            stamps = [stamp(Path(name)) for name in files]
            before, opened = _open.pop(key, ([], None))
            if before != stamps:
                if _known_by(files) != known_by:
                    raise Unseen(path, "another file has its name")
                opened = opener(Path(path))
        except OSError as problem:
            raise Unseen(path, (problem.strerror or str(problem)).lower()) from problem
        _open[key] = stamps, opened
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)  # closed when the last who works with it lets go
    result: T = opened
    return result
