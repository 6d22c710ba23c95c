"""Importance matrices: sums of the activations that go into the weights while a model reads a text."""

from __future__ import annotations

__all__: list[str] = []
