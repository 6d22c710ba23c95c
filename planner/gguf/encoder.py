"""The encoder of a multimodal model, `mmproj`: how much it takes."""

from __future__ import annotations

from pathlib import Path

from planner.errors import ModelError
from planner.gguf.contents import contents_of, is_encoder
from planner.gguf.reader import read_gguf

__all__ = ["encoder_bytes"]


def encoder_bytes(path: str | Path) -> int:
    """Return the bytes of an encoder's tensors, which llama.cpp loads beside the model. Raises ModelError for a file
    that is none."""
    file = read_gguf(Path(path))
    try:
        if not is_encoder(file.metadata):
            raise ModelError(
                f"{path} is {contents_of(file.metadata)}, not the encoder of one (mmproj).",
                "Give the file that llama.cpp loads beside the model, often named mmproj-....gguf.",
            )
        return sum(tensor.nbytes for tensor in file.tensors)
    finally:
        file.data.close()
