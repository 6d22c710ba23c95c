"""How much the model's output moves per unit of a tensor's error: a ladder of sources, each better and dearer."""

from __future__ import annotations

__all__: list[str] = []
