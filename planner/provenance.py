"""What an output file says of how it was made: always the same number of bytes, so that sizes can be promised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from planner import __version__

__all__ = ["digest", "provenance_pairs", "recipe_digest"]


def digest(*parts: str) -> str:
    """SHA-256 (hex) over texts, in their order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def recipe_digest(formats: Mapping[str, str]) -> str:
    """SHA-256 (hex) of an assignment of formats to tensors."""
    lines = "".join(f"{name}={fmt}\n" for name, fmt in sorted(formats.items()))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def provenance_pairs(digest: str) -> list[tuple[str, str]]:
    """Metadata that `planner` adds to what llama-quantize writes: its version and the recipe's digest."""
    return [("quantize.planner.version", f"{__version__:<12.12}"), ("quantize.planner.recipe", f"{digest:<64.64}")]
