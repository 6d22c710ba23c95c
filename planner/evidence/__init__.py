"""Other people's measurements, added to the state."""

from __future__ import annotations

__all__: list[str] = []
