"""What GGUF files hold besides models: told by their metadata, as their writers mark them."""

from __future__ import annotations

from planner.errors import option
from planner.gguf.metadata import Metadata

__all__ = ["contents_of", "is_encoder", "other_contents"]

_IMATRIX = "an importance matrix"
_LORA = "Merge it into its model with llama-export-lora, and give what comes out."
_STEERS = "Give the model that it steers: it is applied when that runs, and not quantized."


def other_contents(metadata: Metadata) -> tuple[str, str] | None:
    """What a file holds that is no model, and what to do with it; None for a model."""
    kind, architecture = metadata.text("general.type"), metadata.text("general.architecture")
    if "imatrix" in (kind, architecture) or "imatrix.chunk_count" in metadata:
        return _IMATRIX, f"Give the model, and this file with {option('imatrix')}."
    if architecture == "controlvector":
        return "a control vector", _STEERS
    if kind == "adapter" or "adapter.type" in metadata:
        return "a LoRA adapter", _LORA
    return None


def is_encoder(metadata: Metadata) -> bool:
    """Whether a file holds the part of a multimodal model that reads images or sound (`mmproj`)."""
    return metadata.text("general.type") == "mmproj" or metadata.text("general.architecture") == "clip"


def contents_of(metadata: Metadata) -> str:
    """What a file is that is no importance matrix, whatever it says of itself."""
    other = other_contents(metadata)
    if other is not None and other[0] != _IMATRIX:
        return other[0]
    return "the encoder of a multimodal model" if is_encoder(metadata) else "a model"
