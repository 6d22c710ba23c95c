"""What people give to read: what it is, and reading it once."""

from __future__ import annotations

__all__: list[str] = []
