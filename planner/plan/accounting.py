"""Totals of a choice of formats: a recipe with its size, bits per weight, loss and file type."""

from __future__ import annotations

from collections.abc import Sequence

from planner.formats.ggml import library_version
from planner.formats.registry import family_named
from planner.plan.drafts import dropped_drafts
from planner.recipe import Choice, CovarianceSource, ImatrixSource, ModelSource, Recipe, file_type_of_choices
from planner.sizes import align
from planner.terms import FamilyName
from planner.version import __version__
from state import Inventory, TensorRecord

__all__ = ["compose_recipe", "left_alone", "number_of"]


def left_alone(tensor: TensorRecord) -> Choice:
    """Return the recipe's entry for a tensor that llama.cpp does not quantize."""
    why = f"left alone: {tensor.left_alone}"
    return Choice(
        name=tensor.name, shape=tensor.shape, format=tensor.source_format, bytes=tensor.nbytes, err=0, loss=0, why=why
    )


def compose_recipe(
    inventory: Inventory,
    choices: Sequence[Choice],
    *,
    family: FamilyName = "gguf",
    sensitivity: str,
    budget: str,
    bound: float | None = None,
    status: str,
) -> Recipe:
    """Assemble a recipe from one choice per tensor, in the inventory's order; the inventory is the family's."""
    elements = sum(tensor.elements for tensor in inventory.tensors)
    losses = [choice.loss for choice in choices]
    imatrix = None
    if inventory.imatrix_digest is not None:
        imatrix = ImatrixSource(path=inventory.imatrix_name or "", digest=inventory.imatrix_digest)
    covariance = None
    if inventory.covariance is not None and family_named(family).exported_to is None:
        path, digest, shrinkage = inventory.covariance
        covariance = CovarianceSource(path=path, digest=digest, shrinkage=shrinkage)
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
        covariance=covariance,
        draft="drop" if dropped_drafts(inventory) else None,
        sensitivity=sensitivity,
        seed=int(number_of(inventory, "sampling.seed")),
        tolerance=number_of(inventory, "sampling.tolerance"),
        budget=budget,
        size=inventory.header_bytes + sum(align(choice.bytes, inventory.alignment) for choice in choices),
        bpw=8 * sum(choice.bytes for choice in choices) / elements,
        loss=None if None in losses else sum(loss or 0.0 for loss in losses),
        bound=bound,
        status=status,
        file_type=file_type_of_choices(choices),
        tensors=tuple(choices),
    )


def number_of(inventory: Inventory, key: str) -> float:
    """Return a number of the model's metadata; 0 where it is missing or is a string."""
    value = inventory.metadata.get(key, 0)
    return 0 if isinstance(value, str) else value
