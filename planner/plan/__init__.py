"""From the state to a recipe: the request, the candidates, and the totals of a choice."""

from __future__ import annotations

__all__: list[str] = []
