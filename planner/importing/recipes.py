"""Recipes out of other people's choices of formats, worked out for a model of one's own."""

from __future__ import annotations

from pathlib import Path

from planner.dialects.imports import known_formats, read_choices
from planner.errors import UsageError, option
from planner.formats.registry import family_of
from planner.gguf import open_model
from planner.importing.basis import Basis, open_basis
from planner.importing.source import Source, identify
from planner.inputs import kinds
from planner.measure import Settings
from planner.measure.inventory import take_inventory
from planner.plan.assess import Assessment, assess, reassess
from planner.recipe import parse_recipe

__all__ = ["import_recipe"]


def import_recipe(
    source: Source | str | Path,
    *,
    model: Path | None = None,
    imatrix: Path | None = None,
    state: Path | None = None,
    nearest: bool = False,
) -> Assessment:
    """Return the recipe that a source makes for a model, with notes on what could not be taken over as it was.

    The source is a GGUF, a file of any dialect, rules, or a recipe that was edited by hand: see `identify`. Sizes and
    losses are for `model`, or the model of a `state`; without these, a GGUF's recipe is for that GGUF itself. `nearest`
    replaces types that ggml does not have by similar ones.

    Raises UsageError where a model is needed or does not fit, RecipeError for what cannot be taken over, and the errors
    of the files' readers.
    """
    if not isinstance(source, Source):
        source = identify(source)
    basis = open_basis(model, imatrix, state)
    if source.given.kind == kinds.GGUF:
        return _of_gguf(source.given.path, basis, nearest=nearest)
    if source.dialect is not None:
        return _of_dialect(source, source.dialect, basis, nearest=nearest)
    if source.has_measurements:
        raise UsageError(f"{source.where} holds measurements, not a choice of formats.", "Import it into a state file.")
    if basis is None:
        raise UsageError("A recipe needs its model or its state to be worked out again.", f"Give {option('model')}.")
    return reassess(parse_recipe(source.text(), source.where), basis.inventory, basis.losses)


def _of_dialect(source: Source, dialect: str, basis: Basis | None, *, nearest: bool) -> Assessment:
    if basis is None:
        raise UsageError(
            f"{source.where} names types only: which model are they for?",
            f"Give {option('model')} or {option('state')}.",
        )
    inventory = basis.inventory
    names = [tensor.name for tensor in inventory.tensors]
    rows = {tensor.name: tensor.row_length for tensor in inventory.tensors}
    read = read_choices(source.text(), dialect, names, inventory.architecture, source.where, nearest=nearest, rows=rows)
    family, why = family_of(read.formats.values()), f"imported from {source.given.name}"
    made = assess(inventory, read.formats, basis.losses, family=family, why=why)
    return Assessment(made.recipe, (*read.notes, *made.notes))


def _of_gguf(path: Path, basis: Basis | None, *, nearest: bool) -> Assessment:
    with open_model(path, nearest=nearest) as model:
        stored = {tensor.name: model.replaced.get(tensor.name, tensor.format) for tensor in model.tensors}
        for_itself = bool(model.replaced) and basis is None
        basis = basis or Basis(take_inventory(model, None, Settings()), None)
    rows = {tensor.name: tensor.row_length for tensor in basis.inventory.tensors}
    known = known_formats(stored, str(path), nearest=nearest, rows=rows)
    family, why = family_of(known.formats.values()), f"imported from {path.name}"
    made = assess(basis.inventory, known.formats, basis.losses, family=family, why=why)
    warning = (
        f"This recipe is for {path.name} itself, which cannot be quantized: give the original with {option('model')}.",
    )
    return Assessment(made.recipe, (*known.notes, *made.notes, *(warning if for_itself else ())))
