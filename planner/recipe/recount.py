"""Hand-edited recipes: formats have changed, and the values derived from them have not."""

from __future__ import annotations

from planner.errors import RecipeError, UsageError
from planner.formats.registry import Family, family_named
from planner.recipe.recipe import Choice, Recipe, file_type_of_choices
from planner.sizes import align

__all__ = ["describe_change", "recount"]


def recount(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return a recipe with bytes that match its formats, and its changes, a line a tensor: none if it was not edited.

    Losses of edited tensors become unknown, and so does the bound. Tensors without a shape keep their bytes. Raises
    RecipeError for formats that do not exist or do not fit.
    """
    family = family_named(recipe.family)
    choices, changes = [], []
    size, bits = recipe.size, 0
    for choice in recipe.tensors:
        counted = _counted(choice, family)
        if counted.bytes != choice.bytes:
            size += align(counted.bytes, family.alignment) - align(choice.bytes, family.alignment)
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
    """Return a line on a tensor whose bytes differ from the recipe's; `before` is None if the recipe did not have
    it."""
    old = "?" if before is None else f"{before.bytes:,}"
    return f"{after.name} is now {after.format}: {old} → {after.bytes:,} bytes"


def _counted(choice: Choice, family: Family) -> Choice:
    """Return the choice with its format in canonical spelling and its bytes in that format."""
    if choice.left_alone:
        return choice
    try:
        fmt = family.named(choice.format)
    except UsageError as error:
        raise RecipeError(f"{choice.name}: {error.problem}", error.remedy) from error
    if fmt.name != choice.format:
        choice = choice.model_copy(update={"format": fmt.name})
    if not choice.shape:
        return choice
    fmt.check_rows(choice.name, choice.shape[0])
    nbytes = fmt.tensor_bytes(choice.shape)
    if nbytes == choice.bytes:
        return choice
    return choice.model_copy(update={"bytes": nbytes, "err": None, "loss": None, "why": "edited"})
