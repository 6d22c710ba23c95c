"""Names of tensors: in a GGUF, in transformers, in mlx-lm."""

from __future__ import annotations

__all__: list[str] = []
