"""What a model says of its own memory."""

from __future__ import annotations

import numpy as np

from planner.fit import KEYS, Needs, as_text
from planner.gguf.metadata import Value
from planner.gguf.model import Model

__all__ = ["model_needs", "own_parameters"]


def own_parameters(model: Model) -> dict[str, int | str]:
    """Return the metadata that memory depends on, without the architecture's name: whole numbers, lists of them as
    text."""
    found = {key: _plain(model.metadata.brief(f"{model.architecture}.{key}")) for key in KEYS}
    return {key: value for key, value in found.items() if value is not None}


def model_needs(model: Model) -> Needs:
    """Return what a model needs beside its weights. Raises ModelError for one that llama.cpp would not load."""
    return Needs.of(
        model.architecture, own_parameters(model), {tensor.name: tensor.shape for tensor in model.tensors}
    )  # fmt: skip


def _plain(value: Value | None) -> int | str | None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iub":
        return as_text(value.tolist())
    return value if isinstance(value, int) and not isinstance(value, bool) else None
