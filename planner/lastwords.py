"""Notes that a process leaves for the one that waits for it, in case C code ends it.

Commands that run llama.cpp do so in a child process (`planner.cli.watch`). Its file descriptor 2 is a file that the
parent reads when the child has died. What C code printed on its way out is there, among the notes of this module: which
file llama.cpp was running, what results there were, and which temporary files have to go.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Literal, NamedTuple

__all__ = ["LastWords", "is_watched", "note", "read_last_words", "start_notes"]

Kind = Literal["running", "temporary", "result"]

_STDERR = 2
_NOTE = re.compile(rb"\x1e(\[.*\])\n")  # a record separator, then JSON
_BUILD_FOLDER = re.compile(r"\S*/llama\.cpp/")  # before names of source files, in messages of ggml
_LINES, _LENGTH = 4, 300  # of what C code said, as much as is worth showing
_watched = False


class LastWords(NamedTuple):
    """All that is known of a process that died: the file that llama.cpp was `running`, if any, the `temporary` files
    and folders that may be left, the last lines that C code `said`, and what there was to print (`result`)."""

    running: str | None
    temporary: tuple[Path, ...]
    said: tuple[str, ...]
    result: str = ""


def start_notes(path: str) -> None:
    """Send file descriptor 2, and with it all notes, to the end of the file at `path`. Raises OSError."""
    global _watched
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, _STDERR)
    os.close(descriptor)
    _watched = True


def is_watched() -> bool:
    """Return whether another process reads this one's notes."""
    return _watched


def note(kind: Kind, what: str | Path) -> None:
    """Note that llama.cpp is `running` a file ("": no longer), that a `temporary` file or folder is there, or what to
    print if nothing more comes (`result`, in place of an earlier one).

    Does nothing where no process reads it.
    """
    if _watched:
        os.write(_STDERR, b"\x1e" + json.dumps([kind, str(what)]).encode("ascii") + b"\n")


def read_last_words(data: bytes) -> LastWords:
    """Parse the notes and the last output of a dead process."""
    running, result, temporary, since = "", "", [], 0
    for match in _NOTE.finditer(data):
        kind, what = json.loads(match[1])
        if kind == "temporary":
            temporary.append(Path(what))
        elif kind == "result":
            result = what
        else:
            running, since = what, match.end()
    text = _NOTE.sub(b"", data[since:]).decode("utf-8", "replace")
    lines = [_BUILD_FOLDER.sub("", line.strip())[:_LENGTH] for line in text.splitlines() if line.strip()]
    return LastWords(running or None, tuple(temporary), tuple(lines[-_LINES:]), result)
