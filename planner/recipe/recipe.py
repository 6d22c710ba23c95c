"""The recipe: the format of each tensor, its provenance, and the promised file size.

One tensor a line, in the model's order, so that recipes diff well.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from planner.errors import OutputError, RecipeError, option
from planner.files import write_atomically
from planner.formats.ggml import file_type_of
from planner.terms import FamilyName

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

UNLESS_GIVEN = "covariance", "draft"
"""Fields that files of recipes leave out where they say nothing."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(gt=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSource(_Record):
    """The model that the recipe is for; `digest` covers metadata, names, shapes and types."""

    name: str
    architecture: str
    digest: str
    path: str


class ImatrixSource(_Record):
    """The imatrix that errors were taken with and that the kernels get; `path` as the user spelt it."""

    path: str
    digest: str


class CovarianceSource(_Record):
    """The covariances that codes are to be refined against, and λ by which they are shrunk; errors were taken of codes
    refined so. `path` as the user spelt it."""

    path: str
    digest: str
    shrinkage: Amount


class Choice(_Record):
    """One tensor, of `shape` in ggml order (row length first). `err` is its relative error in the format, `loss` its
    part of the recipe's, both None where nothing was measured; `why` it has that format."""

    name: str
    format: str
    bytes: Count
    shape: tuple[Size, ...] = ()  # empty where it is not known
    err: Amount | None
    loss: Amount | None
    why: str

    @property
    def left_alone(self) -> bool:
        """True if llama.cpp never changes the tensor."""
        return self.why.startswith("left alone")


class Recipe(_Record):
    """A recipe and its provenance. `size` is the bytes of the file that it makes, `bpw` bits of tensor data
    per element. In the family `mlx` both are of tensor data as mlx-lm stores it, without the header of a file. With
    `draft` = "drop" the file is without the model's draft heads, which then have no entry.

    `loss` is the sum over tensors, None where a tensor's is not known; `bound` a proven lower bound on it under the
    same limits, None where nobody looked for a better one.
    """

    format_version: Literal[1] = 1
    planner: str
    ggml: str
    family: FamilyName = "gguf"
    model: ModelSource
    imatrix: ImatrixSource | None
    covariance: CovarianceSource | None = None
    draft: Literal["drop"] | None = None
    sensitivity: str
    seed: int
    tolerance: float
    budget: str
    size: Count
    bpw: Amount
    loss: Amount | None
    bound: Amount | None
    status: str
    file_type: Annotated[int, Field(ge=0, lt=2**32)]
    tensors: tuple[Choice, ...]

    @property
    def formats(self) -> dict[str, str]:
        """Tensor → format."""
        return {choice.name: choice.format for choice in self.tensors}

    @property
    def gap(self) -> float:
        """Share of the loss that a better recipe could save at the very most."""
        if self.loss is None or self.bound is None:
            return 1.0
        return max(0.0, 1 - self.bound / self.loss) if self.loss > 0 else 0.0

    def save(self, path: str | os.PathLike[str], *, force: bool = True) -> None:
        """Write it as JSON, atomically; over what is there, unless `force` is off. Raises OutputError."""
        save_recipe(self, Path(path), force=force)

    def __repr__(self) -> str:
        loss = "not known" if self.loss is None else f"{self.loss:.6g} by {self.sensitivity}"
        size = f"{len(self.tensors)} tensors, {self.size:,} bytes, {self.bpw:.4f} bpw"
        return f"<Recipe of {self.model.name}: {size}, loss {loss}>"

    __str__ = __repr__


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file (docs/recipe.schema.json)."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def save_recipe(recipe: Recipe, path: Path, *, force: bool = True) -> None:
    """Write a recipe as JSON, atomically. Raises OutputError."""
    if path.exists() and not force:
        raise OutputError(f"{path} exists.", f"Choose another name, or overwrite it with {option('force')}.")
    data = recipe.model_dump(mode="json")
    tensors = data.pop("tensors")
    # defaults, which recipes leave out
    if recipe.family == "gguf":
        del data["family"]
    for key in UNLESS_GIVEN:
        if data[key] is None:
            del data[key]
    head = json.dumps(data, indent=2, ensure_ascii=False).removesuffix("\n}")
    encode = json.JSONEncoder(ensure_ascii=False).encode
    lines = ",\n".join("    " + encode(tensor) for tensor in tensors)
    write_atomically(path, f'{head},\n  "tensors": [\n{lines}\n  ]\n}}\n'.encode("utf-8", "surrogateescape"))


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a file or a pipe. Raises RecipeError for anything else."""
    from planner.inputs.reading import look  # which plans need not wait for

    return parse_recipe(look(path, RecipeError).text(RecipeError, "a recipe"), str(path))


def parse_recipe(text: str, where: str) -> Recipe:
    """Parse a recipe from JSON. Raises RecipeError for anything else; its message names the source `where`."""
    try:
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"{where} is not a recipe: {place + ': ' if place else ''}{first['msg']}.",
            "Give the JSON file that `planner solve` wrote; edit formats only.",
        ) from error
    if len(recipe.formats) != len(recipe.tensors):
        raise RecipeError(f"{where} names a tensor twice.", "Remove one of the two lines.")
    return recipe


def file_type_of_choices(choices: Iterable[Choice]) -> int:
    """Return `general.file_type` of a file with these tensors: by those that a quantizer decides about, or, if there
    are none, by all."""
    weights: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for choice in choices:
        weights[choice.left_alone][choice.format] += prod(choice.shape)
    return file_type_of(weights[False] or weights[True])
