"""Other files of a model, to compare with: mixes of llama.cpp by name, GGUFs, recipes."""

from __future__ import annotations

from pathlib import Path

from planner.api.common import StrPath
from planner.errors import RecipeError
from planner.plan.target import Other

__all__ = ["other_file"]


def other_file(text: StrPath) -> Other:
    """Return the file that is meant: a mix of llama.cpp (Q4_K_M, in any case), unless there is a file of that name; or
    the path of a GGUF or of a recipe. Raises RecipeError for anything else, ModelError for a GGUF that is damaged."""
    from planner.gguf import open_model
    from planner.inputs.kinds import GGUF
    from planner.inputs.reading import look
    from planner.plan.mixes import MIXES, mix_named
    from planner.recipe import parse_recipe

    path, mix = Path(text), mix_named(str(text))
    if mix is not None and not path.exists():
        return Other(mix)
    if not path.exists():
        raise RecipeError(
            f"{path} does not exist, and is no mix of llama.cpp.",
            f"Give a GGUF or a recipe of the model, or one of {', '.join(MIXES)}.",
        )
    given = look(path, RecipeError)
    if given.kind == GGUF:
        with open_model(path) as model:
            return Other(given.name, {tensor.name: tensor.format for tensor in model.tensors}, bytes=model.size)
    recipe = parse_recipe(given.text(RecipeError, "a recipe or a GGUF"), str(path))
    return Other(given.name, recipe.formats, recipe.family, recipe.size)
