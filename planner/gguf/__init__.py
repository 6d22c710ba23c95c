"""GGUF files: models and importance matrices in, models out."""

from __future__ import annotations

from planner.gguf.entry import GAPS_VERSION, Entry
from planner.gguf.health import Health, tensor_health
from planner.gguf.imatrix import Coverage, Imatrix, Match, read_imatrix
from planner.gguf.layout import header_bytes, imatrix_pairs, predicted_size
from planner.gguf.llama_cpp import fallback, requires_imatrix, tensor_order, why_left_alone
from planner.gguf.metadata import Metadata, Value
from planner.gguf.model import Model, open_model
from planner.gguf.reader import Tensor
from planner.gguf.vocabulary import alphabet, ids_beyond, vocabulary_fault

__all__ = [
    "GAPS_VERSION",
    "Coverage",
    "Entry",
    "Health",
    "Imatrix",
    "Match",
    "Metadata",
    "Model",
    "Tensor",
    "Value",
    "alphabet",
    "fallback",
    "header_bytes",
    "ids_beyond",
    "imatrix_pairs",
    "open_model",
    "predicted_size",
    "read_imatrix",
    "requires_imatrix",
    "tensor_health",
    "tensor_order",
    "vocabulary_fault",
    "why_left_alone",
]
