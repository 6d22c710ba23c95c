"""What a card is made of: recipes, or files that were written, of one model; and results of a comparison."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.api.quants import is_recipe
from planner.errors import ModelError, RecipeError, UsageError, option
from planner.fit import Context, weights_on_card
from planner.formats.registry import family_named
from planner.gguf import Model, open_model
from planner.gguf.model import split_path
from planner.gguf.parameters import model_needs
from planner.llama.evaluate.results import Compared, Comparison, every_comparison
from planner.llama.fitness import runs_backwards
from planner.recipe import Recipe, load_recipe
from planner.recipe.recount import recount
from planner.report.card import Card, Entry, Labels, Room, facts_of, labels_for
from planner.report.card.labels import file_name, model_name
from planner.report.evaluation import model_size

__all__ = ["make_card"]

_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_IMATRIX_KEY = "quantize.imatrix.file"
_CONTEXT = 8192  # tokens; a chat of some length


@dataclass(frozen=True)
class _File:
    """A recipe, or a GGUF in `parts`; `on_card` are bytes of what llama.cpp puts there, `used` the types in it."""

    path: Path
    bytes: int
    on_card: int
    bpw: float
    used: frozenset[str]
    recipe: Recipe | None
    parts: int = 1


def make_card(
    files: Sequence[Path], *, model: Path | None = None, results: Path | None = None, base_model: str | None = None,
    quantized_by: str | None = None, repository: str | None = None, dataset: str | None = None, ctx: int | None = None,
) -> Card:  # fmt: skip
    """Return the card of recipes, or GGUF files, of one model.

    What is said of the model is from its metadata: of `model`, or where the first recipe says that it is, or of the
    first file. `results` is a file of `planner compare`, in which a result is found by its name and size. `base_model`,
    `repository` and `dataset` are as the hub calls them, ORG/NAME. Memories are for `ctx` tokens of context: 8,192, or
    what the model was trained on if that is less.

    Raises RecipeError, ModelError, UsageError, and OutputError for a file of results that is none.
    """
    for name, value in (("base_model", base_model), ("repo", repository), ("dataset", dataset)):
        if value is not None and not _ID.fullmatch(value):
            raise UsageError(f"{option(name, value)} is no name on the hub.", "Give ORG/NAME.")
    comparisons = [] if results is None else every_comparison(results)
    with _opened(model, files) as opened:
        every = [_look(path, opened) for path in files]
        exported = {bool(file.recipe and family_named(file.recipe.family).exported_to) for file in every}
        if len(exported) > 1:
            raise UsageError("These are for GGUF and for MLX.", "Make two cards: they are two repositories.")
        named = model_name(opened.metadata.text("general.name"), opened.path.stem)
        labels = _labels(opened, every, exported=exported == {True})
        facts = facts_of(opened.metadata, base_model)
        pipeline = None if runs_backwards(opened) else "text-generation"
        room = None if exported == {True} else _room(opened, ctx)
    chosen = []
    for file, label in zip(every, labels, strict=True):
        called = _called(named, file, label)
        found = _result(file, called, comparisons)
        chosen.append(Entry(called, file.path, file.bytes, file.on_card, file.bpw, label, file.recipe, found))
    if len({entry.called for entry in chosen}) < len(chosen):
        raise UsageError("Two of these files would have the same name, as they are of one size.", "Leave one out.")
    shown = next((each for each in comparisons if any(e.result in each.results.values() for e in chosen)), None)
    return Card(
        named, facts, chosen, quantized_by, repository, dataset, pipeline, room,
        context=shown.context if shown else 0, windows=shown.windows if shown else 0,
    )  # fmt: skip


@contextlib.contextmanager
def _opened(model: Path | None, files: Sequence[Path]) -> Iterator[Model]:
    """Open what tells of the model."""
    path = model
    if path is None:
        path = Path(load_recipe(files[0]).model.path) if is_recipe(files[0]) else files[0]
        if not path.exists():
            raise ModelError(
                f"The model of {files[0]}, {path}, is not there.", f"Say where it is with {option('model')}."
            )
    with open_model(path) as opened:
        yield opened


def _look(path: Path, model: Model) -> _File:
    """Look at a recipe or a file. Raises RecipeError and ModelError for one of another model."""
    if is_recipe(path):
        recipe, _ = recount(load_recipe(path))
        shapes = {choice.name: choice.shape for choice in recipe.tensors if choice.shape}
        if any(name not in model.by_name or model[name].shape != shape for name, shape in shapes.items()):
            raise RecipeError(f"{path} is for another model than {model.path}.", "Make a card for each model.")
        on_card = weights_on_card({choice.name: choice.bytes for choice in recipe.tensors})
        return _File(path, recipe.size, on_card, recipe.bpw, frozenset(recipe.formats.values()), recipe)
    with open_model(path) as file:
        if {tensor.name: tensor.shape for tensor in file.tensors} != {one.name: one.shape for one in model.tensors}:
            raise ModelError(f"{path} is of another model than {model.path}.", "Make a card for each model.")
        used = frozenset(tensor.format for tensor in file.tensors)
        on_card = weights_on_card({tensor.name: tensor.nbytes for tensor in file.tensors})
        return _File(path, file.size, on_card, model_size(path).bpw, used, None, len(file.parts))


def _room(model: Model, ctx: int | None) -> Room:
    """Return what a card is to hold beside the weights. Raises ModelError for a model that llama.cpp would not load."""
    needs = model_needs(model)
    trained = needs.parameters.number("context_length") or _CONTEXT
    context = Context(min(trained, _CONTEXT) if ctx is None else ctx)
    return Room(context, needs.beside(context), needs.notes(context))


def _labels(model: Model, files: Sequence[_File], *, exported: bool) -> list[str | None]:
    """Return a label of llama.cpp for each file; none for those of another engine."""
    if exported:
        return [None] * len(files)
    imatrix = _IMATRIX_KEY in model.metadata or any(file.recipe and file.recipe.imatrix for file in files)
    return labels_for(Labels.of(model, imatrix=imatrix), [(file.bpw, file.used) for file in files])


def _called(name: str, file: _File, label: str | None) -> str:
    if file.recipe is not None and family_named(file.recipe.family).exported_to is not None:
        return f"{name}-mlx-{file.bpw:.2f}bpw"
    called = file_name(name, file.bpw, label)
    return called if file.parts == 1 else split_path(Path(called.removesuffix(".gguf")), 0, file.parts).name


def _result(file: _File, called: str, comparisons: Sequence[Comparison]) -> Compared | None:
    """Find a file's result, or its recipe's, by its name or what it is to be called, and its size: in the comparison on
    most text; one of the file itself goes before one of its recipe in memory."""
    names = {file.path.stem, Path(called).stem}
    found = [
        (comparison.windows * comparison.context, not result.in_memory, result)
        for comparison in comparisons
        for result in comparison.results.values()
        if result.bytes == file.bytes and Path(result.name).stem in names
    ]
    return max(found, key=lambda each: each[:2])[2] if found else None
