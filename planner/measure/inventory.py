"""Add a model's inventory to the state: names, shapes and types, for plans made without the model."""

from __future__ import annotations

import numpy as np

from planner.errors import ModelError
from planner.gguf import Imatrix, Model, header_bytes, why_left_alone
from planner.gguf.drafts import draft_heads
from planner.gguf.parameters import own_parameters
from planner.gguf.provenance import provenance_pairs
from planner.gguf.refinement import Refinement
from planner.measure.loop import Settings
from state import COVARIANCE, HEADLESS, LONGEST_NAME, Inventory, TensorRecord

__all__ = ["take_inventory"]


def take_inventory(
    model: Model, imatrix: Imatrix | None, settings: Settings, refinement: Refinement | None = None
) -> Inventory:
    """Return the facts that a plan needs of a model when the model is not at hand."""
    return Inventory(
        model_name=model.metadata.text("general.name") or model.path.stem,
        architecture=model.architecture,
        model_digest=model.digest,
        model_path=str(model.path),
        header_bytes=header_bytes(model, imatrix, provenance_pairs("")),
        alignment=model.alignment,
        imatrix_name=imatrix.given if imatrix else None,
        imatrix_digest=imatrix.digest if imatrix else None,
        has_means=imatrix is not None and imatrix.has_means,
        metadata={
            **{key: value for key, value in own_parameters(model).items() if len(str(value)) <= LONGEST_NAME},
            **_head_groups(model),
            **_headless(model, imatrix),
            "sampling.seed": settings.seed,
            "sampling.tolerance": settings.tolerance,
            **_rounding(refinement),
        },
        tensors=tuple(
            TensorRecord(
                name=tensor.name,
                shape=tensor.shape,
                source_format=tensor.format,
                elements=tensor.elements,
                nbytes=tensor.nbytes,
                row_length=tensor.row_length,
                left_alone=why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format),
            )
            for tensor in model.tensors
        ),
    )


def _headless(model: Model, imatrix: Imatrix | None) -> dict[str, int]:
    """Return the bytes of the header of a file without draft heads, where there are any that can be left out."""
    heads = draft_heads(model)
    try:
        return {HEADLESS: header_bytes(model, imatrix, provenance_pairs(""), dropped=heads)} if heads else {}
    except ModelError:
        return {}


def _head_groups(model: Model) -> dict[str, int]:
    """Return how many query heads share a key head in the first block, 0 where it has no keys: llama.cpp's own mixes
    depend on it."""
    heads = _in_first_block(model, "attention.head_count")
    keys = _in_first_block(model, "attention.head_count_kv")
    if heads is None:
        return {}
    keys = heads if keys is None else keys
    return {"head_groups": heads // keys if keys > 0 else 0}


def _in_first_block(model: Model, name: str) -> int | None:
    """Return an integer that is given once for all blocks, or for each of them; None if it is neither."""
    value = model.metadata.brief(f"{model.architecture}.{name}")
    if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu":
        return int(value[0])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _rounding(refinement: Refinement | None) -> dict[str, str | float]:
    if refinement is None:
        return {}
    covariances = refinement.covariances
    return dict(zip(COVARIANCE, (covariances.imatrix.given, covariances.digest, refinement.shrinkage), strict=True))
