"""Provenance in the metadata of an output file: of constant size, so that file sizes can be promised."""

from __future__ import annotations

from planner.version import __version__

__all__ = ["provenance_pairs"]


def provenance_pairs(digest: str) -> list[tuple[str, str]]:
    """Return the metadata that `planner` adds to what llama-quantize writes: its version and the recipe's digest."""
    return [("quantize.planner.version", f"{__version__:<12.12}"), ("quantize.planner.recipe", f"{digest:<64.64}")]
