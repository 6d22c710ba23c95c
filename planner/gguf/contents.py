"""Kinds of GGUF files besides models, told by the metadata that their writers set."""

from __future__ import annotations

from planner.errors import option
from planner.gguf.metadata import Metadata
from planner.names.gguf import ENCODER

__all__ = ["contents_of", "is_encoder", "is_imatrix", "other_contents"]

_LORA = "Merge it into its model with llama-export-lora, and give what comes out."
_STEERS = "Give the model that it steers: it is applied when that runs, and not quantized."


def is_imatrix(metadata: Metadata) -> bool:
    """Return whether a file holds an importance matrix."""
    named = metadata.text("general.type"), metadata.text("general.architecture")
    return "imatrix" in named or "imatrix.chunk_count" in metadata


def other_contents(metadata: Metadata) -> tuple[str, str] | None:
    """Return what a file that is not a model holds, and what to do with it; None for a model."""
    kind, architecture = metadata.text("general.type"), metadata.text("general.architecture")
    if is_imatrix(metadata):
        return "an importance matrix", f"Give the model, and this file with {option('imatrix')}."
    if architecture == "controlvector":
        return "a control vector", _STEERS
    if kind == "adapter" or "adapter.type" in metadata:
        return "a LoRA adapter", _LORA
    return None


def is_encoder(metadata: Metadata) -> bool:
    """Return whether a file holds the part of a multimodal model that reads images or sound (`mmproj`)."""
    return metadata.text("general.type") == "mmproj" or metadata.text("general.architecture") == ENCODER


def contents_of(metadata: Metadata) -> str:
    """Name the contents of a file that is not a valid importance matrix, even if its metadata claims so."""
    other = None if is_imatrix(metadata) else other_contents(metadata)
    if other is not None:
        return other[0]
    return "the encoder of a multimodal model" if is_encoder(metadata) else "a model"
