"""SHA-256 digests of texts and of recipes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

__all__ = ["digest", "recipe_digest"]


def digest(*parts: str) -> str:
    """SHA-256 (hex) over texts, in their order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def recipe_digest(formats: Mapping[str, str]) -> str:
    """SHA-256 (hex) of an assignment of formats to tensors."""
    lines = "".join(f"{name}={fmt}\n" for name, fmt in sorted(formats.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
