"""Input files: recognize what they are, and read them once."""

from __future__ import annotations

__all__: list[str] = []
