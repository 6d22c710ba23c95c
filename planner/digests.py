"""What contents are known by: SHA-256 digests of texts and of recipes, and stamps of files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["digest", "recipe_digest", "stamp"]


def digest(*parts: str) -> str:
    """Return the SHA-256 (hex) of texts, in their order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def recipe_digest(formats: Mapping[str, str]) -> str:
    """Return the SHA-256 (hex) of an assignment of formats to tensors."""
    lines = "".join(f"{name}={fmt}\n" for name, fmt in sorted(formats.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def stamp(path: Path) -> tuple[int, int]:
    """Return a file's size in bytes and its time of change in ns.

    As in `make`, they stand for the content of a file that would take too long to read. Raises OSError.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns
