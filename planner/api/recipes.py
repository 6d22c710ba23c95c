"""Recipes as people give them: for this model, counted again, with the imatrix that they were made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from planner.api.common import StrPath
from planner.errors import ImatrixError, RecipeError, option
from planner.gguf import Imatrix, Model, read_imatrix
from planner.gguf.refinement import Refinement
from planner.recipe import Recipe
from planner.recipe import load_recipe as read_recipe
from planner.recipe.recount import recount
from planner.text import plain

__all__ = ["counted", "load_recipe", "planned_imatrix", "read"]


def load_recipe(path: StrPath) -> Recipe:
    """Read a recipe. Raises RecipeError for anything that is not one."""
    return read_recipe(Path(path))


def read(given: StrPath | Recipe) -> tuple[Recipe, str]:
    """Return a recipe and what to call it in messages. Raises RecipeError."""
    return (given, "The recipe") if isinstance(given, Recipe) else (load_recipe(given), str(given))


def counted(given: Recipe, where: str, model: Model, tell: Callable[[str], None]) -> Recipe:
    """Return a recipe with bytes that match its formats; `tell` is told of edits. Raises RecipeError for formats that
    do not fit, and for another model's recipe."""
    plan, changes = recount(given)
    for change in changes:
        tell(plain(f"Edited: {change}"))
    if model.digest != plan.model.digest:
        raise RecipeError(
            f"{where} is for another model: {plan.model.name} ({plan.model.path}), not {model.path}.",
            "Give that model, or solve again for this one.",
        )
    return plan


def planned_imatrix(plan: Recipe, where: str, given: StrPath | None, refinement: Refinement | None) -> Imatrix | None:
    """Return the imatrix that a recipe was made with: as given, or that of the covariances it was planned with, or from
    where it says. Raises ImatrixError, and RecipeError for one that is given and was not used."""
    if plan.imatrix is None:
        if given is not None:
            raise RecipeError(
                f"{where} was made without an imatrix.", f"Leave {option('imatrix')} out, or solve again with it."
            )
        return None
    if given is None and plan.covariance is not None and refinement is not None:
        matrix = refinement.covariances.imatrix
    else:
        path = Path(given or plan.imatrix.path)
        if not path.exists():
            raise ImatrixError(
                f"The recipe's imatrix {path} is not there.", f"Say where it is with {option('imatrix')}."
            )
        matrix = read_imatrix(path)
    if matrix.digest != plan.imatrix.digest:
        raise ImatrixError(
            f"{matrix.path} is not the imatrix that the recipe was made with.", "Give that one, or solve again."
        )
    # the name in the metadata is the recipe's, wherever the file lies now: the size was promised with it
    return dataclasses.replace(matrix, given=plan.imatrix.path)
