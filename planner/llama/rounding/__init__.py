"""Rounding of a model block by block, each for what the rounded blocks before it make."""

from __future__ import annotations

__all__: list[str] = []
