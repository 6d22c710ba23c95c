"""Recipes that were edited by hand: formats changed, and all that was worked out from them left as it was."""

from __future__ import annotations

from math import prod

from planner.errors import RecipeError, UsageError
from planner.formats import Family, named_in
from planner.recipes.dialect import file_type_of_choices
from planner.recipes.recipe import Choice, Recipe

__all__ = ["recounted"]

_ALIGNMENT = {"gguf": 32, "mlx": 1}  # general.alignment, where a model says nothing else; tensor data alone


def recounted(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """A recipe with bytes that fit its formats, and what was changed, a line a tensor: nothing if it was not edited.

    Losses of edited tensors are not known any more, nor is the bound. Tensors without a shape are believed. Raises
    RecipeError for formats that do not exist or do not fit.
    """
    choices, changes = [], []
    size, bits = recipe.size, 0
    for choice in recipe.tensors:
        nbytes = _bytes(choice, recipe.family)
        if nbytes == choice.bytes:
            choices.append(choice)
        else:
            size += _padded(nbytes, recipe.family) - _padded(choice.bytes, recipe.family)
            changes.append(f"{choice.name} is now {choice.format}: {choice.bytes:,} → {nbytes:,} bytes")
            choices.append(choice.model_copy(update={"bytes": nbytes, "err": None, "loss": None, "why": "edited"}))
        bits += 8 * nbytes
    if not changes:
        return recipe, []
    before = 8 * sum(choice.bytes for choice in recipe.tensors)
    new = {"tensors": tuple(choices), "size": size, "loss": None, "bound": None, "status": "edited",
           "file_type": file_type_of_choices(choices)}  # fmt: skip
    return recipe.model_copy(update={**new, "bpw": recipe.bpw * bits / before if before else 0.0}), changes


def _bytes(choice: Choice, family: Family) -> int:
    if not choice.shape or choice.why.startswith("left alone"):
        return choice.bytes
    try:
        fmt = named_in(family, choice.format)
    except UsageError as error:
        raise RecipeError(f"{choice.name}: {error.problem}", error.remedy) from error
    if not fmt.fits(choice.shape[0]):
        raise RecipeError(
            f"{choice.name} cannot be {fmt.name}: its rows of {choice.shape[0]:,} weights are no multiple of "
            f"{fmt.block}.",
            "Choose a format with smaller blocks.",
        )
    return fmt.row_bytes(choice.shape[0]) * prod(choice.shape[1:])


def _padded(nbytes: int, family: Family) -> int:
    return -(-nbytes // _ALIGNMENT[family]) * _ALIGNMENT[family]
