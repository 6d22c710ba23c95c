"""What is compared with an original: files, and recipes that are followed in the memory of an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

from planner.api.common import Progress, StrPath
from planner.api.recipes import counted, planned_imatrix, read
from planner.api.refining import planned_refinement
from planner.digests import recipe_digest
from planner.errors import ModelError, RecipeError, UsageError, option
from planner.formats.registry import activation_blocks, all_formats, family_named
from planner.gguf import Model, open_model
from planner.inputs.kinds import JSON, RECIPE
from planner.inputs.reading import kind_at
from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import Baseline
from planner.llama.evaluate.divergence import Divergence
from planner.llama.fitness import check_model
from planner.llama.passes.recipes import Bar, Followed, diverging, formats_to_follow, run_recipes
from planner.llama.passes.weights import open_weights
from planner.recipe import Recipe
from planner.report.evaluation import Evaluated, ModelSize, model_size

T = TypeVar("T")

__all__ = ["Bar", "Calibration", "Quant", "Quants", "bars_of", "is_recipe", "open_quants"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Where what recipes were made with is now, if it was moved: imatrix and covariances; or covariances to refine
    against, with the shrinkage of pairs. An imatrix is for those recipes that had one."""

    imatrix: StrPath | None = None
    covariance: StrPath | None = None
    shrinkage: float | None = None


class Settings(TypedDict):
    """How models are run."""

    context: int
    threads: int | None
    gpu_layers: int


@dataclass(frozen=True)
class Quant:
    """One of them: the entry for its results, and the recipe, if it is one."""

    result: Evaluated
    recipe: Followed | None = None


@dataclass(frozen=True)
class Quants:
    """All of them, as given; `model` is the one that the recipes are for, None where there is none."""

    every: tuple[Quant, ...]
    model: Model | None

    @property
    def models(self) -> list[Path]:
        """The models that are run."""
        files = [quant.result.size.path for quant in self.every if quant.recipe is None and quant.result.size]
        return files if self.model is None else [self.model.path, *files]

    def check(self, original: Path, context: int) -> None:
        """Refuse models, and the `original`, that llama.cpp cannot run in windows of `context` tokens. Raises as
        `check_model`."""
        for path in dict.fromkeys([original, *self.models]):
            with open_model(path) as model:
                check_model(model, context=context)

    def each(
        self, chosen: Sequence[Quant], work: Callable[[Engine, str], T], *, context: int, threads: int | None,
        gpu_layers: int, bar: Bar,
    ) -> Iterator[tuple[Quant, T]]:  # fmt: skip
        """Run files, then recipes: yield each with what `work` makes of its engine, of so much context, and its name.
        The model is loaded once for all recipes. `bar` gives progress in MB of weights that are rounded in memory.

        Raises what `Engine`, `follow` and `work` raise.
        """
        settings = Settings(context=context, threads=threads, gpu_layers=gpu_layers)
        for quant in chosen:
            if quant.recipe is None and quant.result.size is not None:
                with Engine(quant.result.size.path, **settings) as engine:
                    found = work(engine, _name(quant))
                yield quant, found
        recipes = [(quant, quant.recipe) for quant in chosen if quant.recipe is not None]
        if not recipes or self.model is None:
            return
        with open_weights(self.model.path, self.model, **settings) as weights:
            ran = run_recipes(weights, [recipe for _, recipe in recipes], work, bar)
            for (quant, _), found in zip(recipes, ran, strict=True):
                yield quant, found

    def diverge(
        self, baseline: Baseline, chosen: Sequence[Quant], *, threads: int | None, gpu_layers: int, bar: Bar
    ) -> Iterator[tuple[Quant, Divergence]]:
        """Run them as `each`, and yield each with its divergence. Raises what `each` and `diverge` raise."""
        work = diverging(baseline, bar)
        yield from self.each(chosen, work, context=baseline.context, threads=threads, gpu_layers=gpu_layers, bar=bar)


def _name(quant: Quant) -> str:
    return Path(quant.result.name).name


def bars_of(progress: Progress | None) -> Bar:
    """Return bars that tell of tokens alone."""

    def nothing(what: str, done: float, total: float) -> None:
        """Tell nobody."""

    return lambda unit: contextlib.nullcontext(progress if progress and unit == "tokens" else nothing)


def is_recipe(path: Path) -> bool:
    """Return whether a file is to be read as a recipe, not as a model. Raises ModelError for one that cannot be
    read."""
    return kind_at(path, ModelError) in (JSON, RECIPE)


@contextlib.contextmanager
def open_quants(
    base: Path | None, quants: Sequence[StrPath | Recipe], calibration: Calibration, tell: Callable[[str], None]
) -> Iterator[Quants]:
    """Look at files and recipes, and open all that recipes need. They are for the model `base`; without one, for the
    model that the first of them names. `tell` is told of edits of recipes.

    Raises ModelError, RecipeError, ImatrixError, CovarianceError, KernelError; UsageError for a calibration that no
    recipe has a use for.
    """
    given = [_recipe(quant) for quant in quants]
    recipes = [entry[0] for entry in given if entry is not None]
    _check(calibration, recipes)
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(open_model(base or _model_of(recipes[0]))) if recipes else None
        every = []
        for quant, entry in zip(quants, given, strict=True):
            if entry is None or model is None:
                path = Path(str(quant))
                every.append(Quant(Evaluated(model_size(path), str(path))))
                continue
            followed = stack.enter_context(_to_follow(*entry, model, calibration, tell))
            every.append(Quant(_in_memory(followed), followed))
        yield Quants(tuple(every), model)


def _recipe(quant: StrPath | Recipe) -> tuple[Recipe, str] | None:
    """Return a recipe and what to call it, which tells it from others; None for a file that is none."""
    if isinstance(quant, Recipe):
        return quant, f"recipe {recipe_digest(quant.formats):.8}"
    return read(quant) if is_recipe(Path(quant)) else None


@contextlib.contextmanager
def _to_follow(
    given: Recipe, where: str, model: Model, calibration: Calibration, tell: Callable[[str], None]
) -> Iterator[Followed]:
    """Open all that a recipe needs to be followed as `quantize` would follow it. What a family's kernels have no use
    for is not looked for."""
    plan = counted(given, where, model, tell)
    if not family_named(plan.family).calibrated:
        yield Followed(plan, where, None, None, formats_to_follow(model, plan, None))
        return
    with planned_refinement(plan, where, calibration.covariance, calibration.shrinkage, model) as refinement:
        imatrix = None if plan.imatrix is None else calibration.imatrix
        matrix = planned_imatrix(plan, where, imatrix, refinement)
        yield Followed(plan, where, matrix, refinement, formats_to_follow(model, plan, matrix))


def _in_memory(followed: Followed) -> Evaluated:
    recipe, known = followed.recipe, all_formats()
    kinds = {known[fmt] for fmt in recipe.formats.values() if fmt in known}
    size = ModelSize(Path(followed.where), recipe.size, recipe.bpw)
    exact = any(activation_blocks()[kind.name] for kind in kinds)
    return Evaluated(size, followed.where, in_memory=True, exact_activations=exact)


def _model_of(recipe: Recipe) -> Path:
    path = Path(recipe.model.path)
    if not path.exists():
        raise RecipeError(
            f"The model that a recipe is followed in, {path}, is not there.",
            "Give the model in place of its log-probabilities.",
        )
    return path


def _check(calibration: Calibration, recipes: Sequence[Recipe]) -> None:
    """Refuse what nothing would be done with."""
    able = [recipe for recipe in recipes if family_named(recipe.family).calibrated]
    uses = {
        "imatrix": any(recipe.imatrix is not None for recipe in able),
        "covariance": bool(able),
        "shrinkage": bool(able),
    }
    for name, used in uses.items():
        if getattr(calibration, name) is not None and not used:
            raise UsageError(f"{option(name)} is for recipes, and none of these has a use for it.", "Leave it out.")
