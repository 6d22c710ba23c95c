"""Quantized models against the original: divergences, tasks, speed."""

from __future__ import annotations

__all__: list[str] = []
