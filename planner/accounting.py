"""What a choice of formats adds up to: a recipe with its size, bits per weight, loss and file type."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from planner import __version__
from planner.formats import Family, all_formats
from planner.ggml import library_version
from planner.limits import padded
from planner.recipes import Choice, ImatrixSource, ModelSource, Recipe
from state import Inventory, TensorRecord

__all__ = ["compose_recipe", "left_alone", "number_of"]

# general.file_type (llama_ftype in llama.h) by the format that holds most of the weights, as llama.cpp guesses it
_FILE_TYPES = {
    "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_K": 10, "q3_K": 12, "q4_K": 15, "q5_K": 17, "q6_K": 18,
    "iq2_xxs": 19, "iq2_xs": 20, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq2_s": 28, "iq4_xs": 30,
    "iq1_m": 31, "tq1_0": 36, "tq2_0": 37, "mxfp4": 38,
}  # fmt: skip
_FALLBACK_FILE_TYPE = 15


def left_alone(tensor: TensorRecord) -> Choice:
    """What stands in a recipe for a tensor that llama.cpp does not quantize."""
    why = f"left alone: {tensor.left_alone}"
    return Choice(
        name=tensor.name, shape=tensor.shape, format=tensor.source_format, bytes=tensor.nbytes, err=0, loss=0, why=why
    )


def compose_recipe(
    inventory: Inventory,
    choices: Sequence[Choice],
    *,
    family: Family = "gguf",
    sensitivity: str,
    budget: str,
    bound: float | None = None,
    status: str,
) -> Recipe:
    """The recipe that gives the inventory's tensors, in its order, these formats; the inventory is the family's."""
    elements = sum(tensor.elements for tensor in inventory.tensors)
    losses = [choice.loss for choice in choices]
    imatrix = None
    if inventory.imatrix_digest is not None:
        imatrix = ImatrixSource(path=inventory.imatrix_name or "", digest=inventory.imatrix_digest)
    return Recipe(
        planner=__version__,
        ggml=library_version(),
        family=family,
        model=ModelSource(
            name=inventory.model_name,
            architecture=inventory.architecture,
            digest=inventory.model_digest,
            path=inventory.model_path,
        ),
        imatrix=imatrix,
        sensitivity=sensitivity,
        seed=int(number_of(inventory, "sampling.seed")),
        tolerance=number_of(inventory, "sampling.tolerance"),
        budget=budget,
        size=inventory.header_bytes + sum(padded(choice.bytes, inventory) for choice in choices),
        bpw=8 * sum(choice.bytes for choice in choices) / elements,
        loss=None if None in losses else sum(loss or 0.0 for loss in losses),
        bound=bound,
        status=status,
        file_type=_file_type(choices),
        tensors=tuple(choices),
    )


def number_of(inventory: Inventory, key: str) -> float:
    """A number of the model's metadata; 0 where there is none."""
    value = inventory.metadata.get(key, 0)
    return 0 if isinstance(value, str) else value


def _file_type(choices: Sequence[Choice]) -> int:
    """The llama_ftype of the quantized format that holds most weights."""
    weights: dict[str, int] = {}
    for choice in choices:
        # llama-quantize heeds --tensor-type only beside a quantized file type
        if not choice.why.startswith("left alone") and all_formats()[choice.format].quantized:
            weights[choice.format] = weights.get(choice.format, 0) + prod(choice.shape)
    return _FILE_TYPES.get(max(weights, key=lambda name: weights[name], default=""), _FALLBACK_FILE_TYPE)
