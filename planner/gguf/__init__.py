"""GGUF files: models and importance matrices in, models out."""

from __future__ import annotations

from planner.gguf.imatrix import Coverage, Entry, Imatrix, Match, read_imatrix
from planner.gguf.metadata import Metadata, Value
from planner.gguf.model import Model, open_model
from planner.gguf.reader import Tensor
from planner.gguf.rules import fallback, requires_imatrix, tensor_order, why_left_alone

__all__ = [
    "Coverage",
    "Entry",
    "Imatrix",
    "Match",
    "Metadata",
    "Model",
    "Tensor",
    "Value",
    "fallback",
    "open_model",
    "read_imatrix",
    "requires_imatrix",
    "tensor_order",
    "why_left_alone",
]
