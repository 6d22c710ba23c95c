"""Recipes: the file that a person keeps, and its exports to other quantizers."""

from __future__ import annotations

from planner.recipes.recipe import (
    Choice,
    ImatrixSource,
    ModelSource,
    Recipe,
    is_recipe,
    load_recipe,
    parse_recipe,
    recipe_schema,
    save_recipe,
)

__all__ = [
    "Choice",
    "ImatrixSource",
    "ModelSource",
    "Recipe",
    "is_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
    "save_recipe",
]
