"""The recipe: the file that the user keeps."""

from __future__ import annotations

from planner.recipe.recipe import (
    UNLESS_GIVEN,
    Choice,
    CovarianceSource,
    ImatrixSource,
    ModelSource,
    Recipe,
    file_type_of_choices,
    load_recipe,
    parse_recipe,
    recipe_schema,
    save_recipe,
)

__all__ = [
    "UNLESS_GIVEN",
    "Choice",
    "CovarianceSource",
    "ImatrixSource",
    "ModelSource",
    "Recipe",
    "file_type_of_choices",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
    "save_recipe",
]
