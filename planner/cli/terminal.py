"""Print to every terminal and pipe, whatever characters its encoding lacks."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys

__all__ = ["finish", "never_fail"]

_NEAR = {
    "→": "->", "…": "...", "±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "≥": ">=", "≤": "<=", "≈": "~",
    "Δ": "D", "·": "-", "’": "'", "‘": "'", "“": '"', "”": '"',
}  # fmt: skip
_ERRORS, _ASCII = "planner-near", "planner-ascii"


def never_fail() -> None:
    """Let stdout and stderr replace characters that their encoding lacks by similar ones, or escapes."""
    codecs.register_error(_ERRORS, _near)
    codecs.register(_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # click takes a terminal that says ASCII for one that does not know better, and writes UTF-8 to it
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding=_ASCII if is_ascii else None, errors=_ERRORS)


def finish() -> None:
    """Flush stdout and stderr, ignoring errors that were reported already."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by whoever started us
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def _near(problem: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    character = problem.object[problem.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name, which a script may want to read back
        return bytes([ord(character) - 0xDC00]), problem.start + 1
    return _NEAR.get(character) or character.encode("ascii", "backslashreplace").decode(), problem.start + 1


def _ascii(name: str) -> codecs.CodecInfo | None:
    """Look up ASCII under a name of our own."""
    if name.replace("_", "-") != _ASCII:
        return None
    own = codecs.lookup("ascii")
    return codecs.CodecInfo(
        own.encode,
        own.decode,
        own.streamreader,
        own.streamwriter,
        own.incrementalencoder,
        own.incrementaldecoder,
        _ASCII,
    )
