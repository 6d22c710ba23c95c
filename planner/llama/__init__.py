"""Inference: llama.cpp, through llama-cpp-python (extra `llama`)."""

from __future__ import annotations

__all__: list[str] = []
