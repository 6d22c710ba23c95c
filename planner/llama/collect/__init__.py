"""Collect importance matrices: activations that go into the weights while a model reads a text."""

from __future__ import annotations

__all__: list[str] = []
