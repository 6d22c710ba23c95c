"""Recipes of one model, followed in the engine's memory: what they lose is seen before a file is written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from planner.errors import InferenceError, KernelError, ModelError, RecipeError, option
from planner.formats.ggml import Format
from planner.formats.registry import family_named
from planner.gguf import Imatrix, Model, Tensor
from planner.gguf.quantize import resolve_formats
from planner.gguf.refinement import Refinement, least_weights, left_in
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.compare import diverge
from planner.llama.evaluate.divergence import Divergence
from planner.llama.passes.weights import WEIGHTS_AT_A_TIME, Weights
from planner.recipe import Recipe

__all__ = ["Bar", "Followed", "diverging", "follow", "formats_to_follow", "run_recipes"]

T = TypeVar("T")

Advance = Callable[[str, float, float], None]  # what was done last, how much is done, of how much
Bar = Callable[[str], AbstractContextManager[Advance]]  # gives progress by its unit


@dataclass(frozen=True)
class Followed:
    """A recipe, counted again, and what its codes depend on. `where` is what messages call it."""

    recipe: Recipe
    where: str
    imatrix: Imatrix | None
    refinement: Refinement | None
    formats: Mapping[str, Format] = field(default_factory=dict)

    def identity(self, name: str) -> tuple[object, ...]:
        """Return all that a tensor's rounding depends on, besides the tensor."""
        matrix, refined = self.imatrix, self.refinement
        return self.formats[name].name, matrix and matrix.digest, refined and refined.key


def formats_to_follow(model: Model, recipe: Recipe, imatrix: Imatrix | None) -> dict[str, Format]:
    """Return the formats of the tensors that a recipe changes, by name. Raises RecipeError, naming the tensor, for
    anything that cannot be done exactly."""
    family, chosen = family_named(recipe.family), {}
    for name, wanted in recipe.formats.items():
        tensor = model.by_name.get(name)
        if tensor is None:
            raise RecipeError(f"{model.path.name} has no tensor {name}.", "Is it the recipe of another model?")
        if wanted == tensor.format:
            continue
        if model.format(tensor).quantized:
            raise RecipeError(
                f"{name} is quantized already ({tensor.format}), and cannot be changed in memory.",
                "Start from the F16, BF16 or F32 model, or write the file and evaluate that.",
            )
        chosen[name] = family.named(wanted)
        chosen[name].check_rows(name, tensor.row_length)
    return resolve_formats(model, recipe.formats, imatrix) if family.calibrated else chosen


def follow(
    weights: Weights, recipe: Followed, before: Followed | None, progress: Callable[[str, int, int], None]
) -> None:
    """Put every tensor through the format that a recipe gives it; what it does not change, is put back. What the recipe
    `before` left as it is wanted now, stays. Progress is in bytes of the model.

    A tensor that llama.cpp does not use is left out. Raises InferenceError for one that it holds in another way than
    the file, ModelError for weights that a format cannot hold.
    """
    used = {name: fmt for name, fmt in recipe.formats.items() if name in weights.weights}
    if lost := sorted(recipe.formats.keys() & weights.out_of_reach):
        raise InferenceError(
            f"{lost[0]} is not as in {weights.model.path} in llama.cpp's memory, and cannot be changed there.",
            f"Try {option('gpu_layers', 0)}, or write the file with `planner quantize` and evaluate that.",
        )
    weights.restore(sorted(weights.changed - used.keys()))
    total = sum(weights.model[name].nbytes for name in used)
    done = 0
    for name in used:
        as_before = before is not None and name in before.formats and name in weights.changed
        if not (as_before and before is not None and before.identity(name) == recipe.identity(name)):
            _round(weights, weights.model[name], recipe)
        done += weights.model[name].nbytes
        progress(name, done, total)


def run_recipes(
    weights: Weights, recipes: Sequence[Followed], work: Callable[[Engine, str], T], bar: Bar
) -> Iterator[T]:
    """Follow one recipe after the other, and yield what `work` makes of the engine and the recipe's name. `bar` is
    asked for MB of weights that are rounded. Raises what `follow` and `work` raise."""
    before: Followed | None = None
    for recipe in recipes:
        with bar("MB") as advance:
            follow(weights, recipe, before, functools.partial(_in_mb, advance))
        before = recipe
        yield work(weights.engine, Path(recipe.where).name)


def diverging(baseline: Baseline, bar: Bar) -> Callable[[Engine, str], Divergence]:
    """Return the work of finding the divergence from `baseline`; `bar` is asked for tokens. It raises what `diverge`
    raises."""

    def work(engine: Engine, name: str) -> Divergence:
        with bar("tokens") as advance:
            return diverge(engine, baseline, functools.partial(advance, name))

    return work


def _in_mb(advance: Advance, tensor: str, done: int, total: int) -> None:
    advance(tensor, done / 1e6, total / 1e6)


def _round(weights: Weights, tensor: Tensor, recipe: Followed) -> None:
    """Write over a tensor what is left of it in its format, by the bytes that `planner quantize` would write."""
    model, fmt, refinement = weights.model, recipe.formats[tensor.name], recipe.refinement
    left = left_in(fmt, tensor, recipe.imatrix, refinement)
    size = WEIGHTS_AT_A_TIME if refinement is None else max(WEIGHTS_AT_A_TIME, least_weights(tensor))

    def one(part: tuple[int, int, int]) -> None:
        matrix, start, stop = part
        try:
            rows = left(model.rows(tensor, start, stop), matrix)
        except KernelError as problem:
            raise ModelError(f"{tensor.name}: {problem.problem}", problem.remedy) from problem
        weights.write(tensor.name, start, rows)
        model.release(tensor, start, stop)

    weights.engine.workers.map(one, tensor.slices(size))
