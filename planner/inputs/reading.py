"""Read input files and pipes: opened once, whatever they are, and never waited for without end.

A pipe (`<(grep …)`, /dev/stdin, a FIFO) is read from its beginning to its end, once. What is mapped, or read here and
there, has to be a regular file. Text may be UTF-8, or UTF-16 and UTF-32 with a mark at the start, as Windows writes it;
the mark is none of it.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from planner.errors import PlannerError
from planner.inputs.kinds import HEAD, TEXTS, Kind, encoding_of, kind_of, kind_of_whole

__all__ = ["LARGEST_LIST", "Given", "decode", "kind_at", "look", "open_regular", "read_bytes", "read_text"]

LARGEST_LIST = 1 << 26
"""Bytes of rules, tables and recipes: of ten thousand tensors they take one or two million."""
_LARGEST_PIPE = 1 << 28  # bytes; it may have no end
_UNKNOWN_SIZE = 1 << 50  # bytes: more than any file has, fewer than eight letters are as a number
_BLOCK = 1 << 20
_FOR_WRITER = 5.0  # seconds until somebody writes to a FIFO
_FOR_MORE = 60.0  # seconds until somebody who writes has something to say

Error = type[PlannerError]


@dataclass(frozen=True, slots=True)
class Given:
    """A file that was looked at. `data` is all of it (`whole`), or only its head: of a file that is read in place, that
    is too large or nothing that planner has a use for."""

    path: Path
    kind: Kind
    data: bytes
    whole: bool
    piped: bool

    @property
    def name(self) -> str:
        """Name of the file in notes."""
        return "a pipe" if self.piped else self.path.name

    def content(self, error: Error, what: str) -> bytes:
        """Return all of it. Raises `error` where it is too large for `what`."""
        if not self.whole:
            raise error(f"{self.path} is too large for {what}.", "Check what it is with `planner inspect`.")
        return self.data

    def text(self, error: Error, what: str, *, lenient: bool = False) -> str:
        """Decode it as `decode` does. Raises `error` where it is something else than `what`."""
        if self.kind not in TEXTS:
            raise error(f"{self.path} is {self.kind.what}.", self.kind.remedy or f"Give {what}.")
        return decode(self.content(error, what), str(self.path), error, lenient=lenient)


def look(path: Path, error: Error, limit: int = LARGEST_LIST) -> Given:
    """Open a file, find out what it is, and read it unless its own reader will; at most `limit` bytes of a pipe.

    Raises `error` for what cannot be read, and for a pipe with what is read in place.
    """
    descriptor = _open(path, error)
    try:
        status = os.fstat(descriptor)
        piped = not stat.S_ISREG(status.st_mode)
        head = _read(descriptor, path, error, HEAD, cut=True)
        kind = kind_of(head, _UNKNOWN_SIZE if piped else status.st_size)
        if piped and kind.in_place:
            raise _irregular(path, status.st_mode, error)
        if kind.in_place or kind.remedy or (not piped and status.st_size > limit):
            return Given(path, kind, head, whole=False, piped=piped)
        data = _read(descriptor, path, error, limit, head)
        return Given(path, kind_of_whole(kind, data), data, whole=True, piped=piped)
    finally:
        os.close(descriptor)


def kind_at(path: Path, error: Error) -> Kind:
    """Return what a regular file is. Raises `error` for any other."""
    with open_regular(path, error) as file:
        return kind_of(file.read(HEAD), os.fstat(file.fileno()).st_size)


def open_regular(path: Path, error: Error) -> BinaryIO:
    """Open a file that will be mapped or read here and there. Raises `error` for any that is not regular."""
    descriptor = _open(path, error)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _irregular(path, mode, error)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, error: Error) -> bytes:
    """Read all of a file or a pipe. Raises `error`."""
    descriptor = _open(path, error)
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return _read(descriptor, path, error, None if regular else _LARGEST_PIPE)
    finally:
        os.close(descriptor)


def read_text(path: Path, error: Error, *, exact: bool = False) -> str:
    """Read all of a text file or a pipe, as `decode` does. Raises `error`."""
    return decode(read_bytes(path, error), str(path), error, exact=exact)


def decode(data: bytes, where: str, error: Error, *, lenient: bool = False, exact: bool = False) -> str:
    """Decode text, without the mark at its start and with plain line feeds (`exact`: with line ends as they are).

    Raises `error` for what is no UTF-8 and has no other mark. With `lenient`, bytes that are no UTF-8 become lone
    surrogates: lists whose comments are of another encoding can then be read, and nothing in them is mistaken.
    """
    encoding, mark = encoding_of(data)
    if not mark and (wide := _unmarked(data[:HEAD])):
        raise error(f"{where} seems to be UTF-16 without a mark at its start.", f"Convert it: {_iconv(wide)}.")
    try:
        handling = "surrogateescape" if lenient and encoding == "utf-8" else "strict"
        text = data[mark:].decode(encoding, handling)
    except UnicodeDecodeError as problem:
        kind = kind_of(data[:HEAD], len(data))
        if kind.in_place or kind.remedy:
            raise error(f"{where} is {kind.what}, not text.", kind.remedy or "Give a text file.") from problem
        at = problem.start + mark
        line = data.count(b"\n", 0, at) + 1
        raise error(
            f"{where} is not text in {encoding.upper()}: byte {at:,}, in line {line:,}, is {data[at]:#04x}.",
            f"Give a text file, or convert it: {_iconv('latin1')}.",
        ) from problem
    return text if exact else text.replace("\r\n", "\n")


def _iconv(encoding: str) -> str:
    return f"`iconv -f {encoding} -t utf-8 FILE`"


def _unmarked(head: bytes) -> str | None:
    """Guess the encoding of text in UTF-16 that has no mark: every other byte of Latin letters is zero."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if not head or 4 * max(even, odd) < len(head) or min(even, odd):
        return None
    return "utf-16le" if odd > even else "utf-16be"


def _open(path: Path, error: Error) -> int:
    try:
        mode = path.stat().st_mode  # first: opening a device may do things
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            raise _irregular(path, mode, error)
        # Without O_NONBLOCK, opening a named pipe waits for somebody to write to it
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as problem:  # ValueError: a zero byte in the path
        reason = getattr(problem, "strerror", None) or problem
        remedy = "Check its permissions." if getattr(problem, "errno", 0) == errno.EACCES else "Check the path."
        raise error(f"{path} cannot be read: {reason}.", remedy) from problem
    if stat.S_ISCHR(mode) and not os.isatty(descriptor):
        os.close(descriptor)
        raise _irregular(path, mode, error)
    return descriptor


def _irregular(path: Path, mode: int, error: Error) -> PlannerError:
    if stat.S_ISDIR(mode):
        listed = sorted(found.name for found in path.glob("*.gguf"))
        return error(
            f"{path} is a directory, not a regular file.",
            f"Give one of the files in it{f' such as {path / listed[0]}' if listed else ''}.",
        )
    if stat.S_ISFIFO(mode):
        return error(f"{path} is a pipe, not a regular file, and has to be read more than once.", "Write it to a file.")
    return error(f"{path} is a device, not a regular file.", "Give a file on disk.")


def _read(
    descriptor: int, path: Path, error: Error, most: int | None, begun: bytes = b"", *, cut: bool = False
) -> bytes:
    """Read all from the beginning, `begun`, to the end. Raises `error` where that is more than `most` bytes; with
    `cut`, returns those."""
    data = bytearray(begun)
    stop = time.monotonic() + _FOR_WRITER
    piped = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    end = None if most is None else most + (not cut)
    while end is None or len(data) < end:
        try:
            block = os.read(descriptor, _BLOCK if end is None else min(_BLOCK, end - len(data)))
        except BlockingIOError:  # somebody writes, and has said nothing yet
            if not select.select([descriptor], [], [], _FOR_MORE)[0]:
                raise error(f"Nothing came from {path} for {_FOR_MORE:.0f} seconds.", "Write it to a file.") from None
            continue
        except OSError as problem:
            raise error(f"{path} cannot be read: {problem.strerror}.", "Check the disk.") from problem
        data += block
        if not block and piped and not data and time.monotonic() < stop:
            time.sleep(0.02)  # nobody writes yet
        elif not block:
            break
    if piped and not data:
        raise error(f"Nothing was written to the pipe {path}.", "Give a file, or write to it.")
    if most is not None and len(data) > most:
        raise error(f"{path} is too large: more than {most:,} bytes.", "Check what it is.")
    return bytes(data)
