"""Recipes that were edited by hand: formats changed, and all that was worked out from them left as it was."""

from __future__ import annotations

from math import prod

from planner.errors import RecipeError, UsageError
from planner.formats.registry import Family, named_in
from planner.recipe.recipe import Choice, Recipe, file_type_of_choices

__all__ = ["describe_change", "recount"]

_ALIGNMENT = {"gguf": 32, "mlx": 1}  # general.alignment, where a model says nothing else; tensor data alone


def recount(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return a recipe with bytes that fit its formats, and its changes, a line a tensor: none if it was not edited.

    Losses of edited tensors are not known any more, nor is the bound. Tensors without a shape are believed. Raises
    RecipeError for formats that do not exist or do not fit.
    """
    choices, changes = [], []
    size, bits = recipe.size, 0
    for choice in recipe.tensors:
        counted = _counted(choice, recipe.family)
        if counted.bytes != choice.bytes:
            size += _padded(counted.bytes, recipe.family) - _padded(choice.bytes, recipe.family)
            changes.append(describe_change(choice, counted))
        choices.append(counted)
        bits += 8 * counted.bytes
    if not changes:
        return recipe.model_copy(update={"tensors": tuple(choices)}), []
    before = 8 * sum(choice.bytes for choice in recipe.tensors)
    new = {"tensors": tuple(choices), "size": size, "loss": None, "bound": None, "status": "edited",
           "file_type": file_type_of_choices(choices)}  # fmt: skip
    return recipe.model_copy(update={**new, "bpw": recipe.bpw * bits / before if before else 0.0}), changes


def describe_change(before: Choice | None, after: Choice) -> str:
    """Return a line on a tensor that takes other bytes than a recipe said; None: it was not in the recipe."""
    old = "?" if before is None else f"{before.bytes:,}"
    return f"{after.name} is now {after.format}: {old} → {after.bytes:,} bytes"


def _counted(choice: Choice, family: Family) -> Choice:
    """The choice with its format spelt as everywhere, and the bytes that it takes in it."""
    if choice.left_alone:
        return choice
    try:
        fmt = named_in(family, choice.format)
    except UsageError as error:
        raise RecipeError(f"{choice.name}: {error.problem}", error.remedy) from error
    if fmt.name != choice.format:
        choice = choice.model_copy(update={"format": fmt.name})
    if not choice.shape:
        return choice
    if not fmt.fits(choice.shape[0]):
        raise RecipeError(
            f"{choice.name} cannot be {fmt.name}: its rows of {choice.shape[0]:,} weights are no multiple of "
            f"{fmt.block}.",
            "Choose a format with smaller blocks.",
        )
    nbytes = fmt.row_bytes(choice.shape[0]) * prod(choice.shape[1:])
    if nbytes == choice.bytes:
        return choice
    return choice.model_copy(update={"bytes": nbytes, "err": None, "loss": None, "why": "edited"})


def _padded(nbytes: int, family: Family) -> int:
    return -(-nbytes // _ALIGNMENT[family]) * _ALIGNMENT[family]
