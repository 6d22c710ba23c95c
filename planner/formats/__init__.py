"""Formats of all families: ggml's types, MLX's, and both under one roof."""

from __future__ import annotations

__all__: list[str] = []
