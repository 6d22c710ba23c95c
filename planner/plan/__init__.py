"""From the state to a recipe: what is asked, what may be chosen, and what it adds up to."""

from __future__ import annotations

__all__: list[str] = []
