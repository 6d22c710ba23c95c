"""Text for a model, read as llama.cpp's tools read it."""

from __future__ import annotations

from pathlib import Path

from planner.errors import UsageError

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """A file of UTF-8 as it is, but for one newline at its end (as `-f` of llama.cpp's tools). Raises UsageError."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8: byte {error.start:,} is {error.object[error.start]:#04x}.",
            "Give a text file, or convert it: iconv -f latin1 -t utf-8.",
        ) from error
    return text.removesuffix("\n")
