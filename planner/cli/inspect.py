"""`planner inspect`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from planner.cli.progress import progress_bar
from planner.errors import RecipeError, UsageError
from planner.inputs import kinds
from planner.inputs.reading import look

if TYPE_CHECKING:
    from planner.gguf import Health, Model
    from planner.inputs.reading import Given

__all__ = ["inspect"]

Kind = Literal["a model", "an imatrix", "a state file", "a recipe"]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="For an imatrix: the model that it should cover.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--no-scan", is_flag=True, help="For a model: do not read its values.")
@click.option("--json", "as_json", is_flag=True, help="Print the same facts, and every tensor, as JSON.")
def inspect(file: Path, model: Path | None, tensors: bool, no_scan: bool, as_json: bool) -> None:
    """Show what is in FILE: a GGUF model (of a split one the first part), an imatrix, a state file or a recipe.

    Reads all values of a model, and warns where its conversion to F16 clipped or flushed weights.
    """
    given = look(file, UsageError)
    kind = _kind_of(given)
    if model is not None and kind != "an imatrix":
        raise UsageError(f"--model goes with an imatrix, and {file} is {kind}.", "Leave it out.")
    if no_scan and kind != "a model":
        raise UsageError(f"--no-scan goes with a model, and {file} is {kind}.", "Leave it out.")
    if kind == "a model":
        facts, text = _model(file, tensors, scan=not no_scan)
    elif kind == "an imatrix":
        facts, text = _imatrix(file, model, tensors)
    elif kind == "a state file":
        facts, text = _state(file, tensors)
    else:
        facts, text = _recipe(given, tensors)
    # JSON in ASCII: nothing in a name reaches the terminal unescaped
    click.echo(json.dumps(_plain_data(facts), indent=2, allow_nan=False) if as_json else text)


def _model(file: Path, tensors: bool, *, scan: bool) -> tuple[object, str]:
    from planner.gguf import open_model
    from planner.report.inspection import model_facts, model_text

    with open_model(file) as model:
        facts = model_facts(model, _scan(model) if scan else None)
    return facts, model_text(facts, every_tensor=tensors)


def _scan(model: Model) -> dict[str, Health | None]:
    from planner.gguf import tensor_health

    total = sum(tensor.nbytes for tensor in model.tensors) / 1e6
    done = 0.0
    healths = {}
    with progress_bar("MB") as advance:
        for tensor in model.tensors:

            def seen(count: int, name: str = tensor.name) -> None:
                nonlocal done
                done += count / 1e6
                advance(name, done, total)

            healths[tensor.name] = tensor_health(model, tensor, seen)
            if healths[tensor.name] is None:  # quantized: there is nothing to read
                seen(tensor.nbytes)
    return healths


def _imatrix(file: Path, model: Path | None, tensors: bool) -> tuple[object, str]:
    from planner.gguf import open_model, read_imatrix
    from planner.gguf.covariance import Covariances, has_covariances
    from planner.report.inspection import imatrix_facts, imatrix_text

    with contextlib.ExitStack() as stack:
        covariances = stack.enter_context(Covariances.open(file)) if has_covariances(file) else None
        imatrix = read_imatrix(file) if covariances is None else covariances.imatrix
        opened = None if model is None else stack.enter_context(open_model(model))
        facts = imatrix_facts(imatrix, opened, covariances)
    return facts, imatrix_text(facts, every_tensor=tensors)


def _state(file: Path, tensors: bool) -> tuple[object, str]:
    from planner.report.inspection import state_facts, state_text
    from state import Store

    with Store.open(file, read_only=True) as store:
        facts = state_facts(store, str(file))
    return facts, state_text(facts, every_tensor=tensors)


def _recipe(given: Given, tensors: bool) -> tuple[object, str]:
    from planner.recipe import parse_recipe
    from planner.report.inspection import recipe_facts, recipe_text

    recipe = parse_recipe(given.text(RecipeError, "a recipe"), str(given.path))
    facts = recipe_facts(recipe, str(given.path))
    return facts, recipe_text(recipe, facts, every_tensor=tensors)


def _kind_of(given: Given) -> Kind:
    """Return which of the four it is. Raises UsageError for what is none, and the reader's error for a bad GGUF."""
    if given.kind == kinds.GGUF:
        return _kind_of_gguf(given.path)
    known: dict[kinds.Kind, Kind] = {
        kinds.STATE: "a state file", kinds.JSON: "a recipe", kinds.RECIPE: "a recipe",
        kinds.LEGACY_IMATRIX: "an imatrix",
    }  # fmt: skip
    if given.kind in known:
        return known[given.kind]
    if given.kind.remedy:
        raise UsageError(f"{given.path} is {given.kind.what}.", given.kind.remedy)
    raise UsageError(
        f"{given.path} is nothing that planner knows: it begins with {given.data[:8]!r}.",
        "Give a GGUF model, an importance matrix (GGUF or legacy .dat), a state file of `planner measure` or a recipe "
        "of `planner solve`.",
    )


def _kind_of_gguf(file: Path) -> Kind:
    from planner.gguf.contents import is_imatrix
    from planner.gguf.reader import read_gguf

    opened = read_gguf(file)
    try:
        return "an imatrix" if is_imatrix(opened.metadata) else "a model"
    finally:
        opened.data.close()


def _plain_data(value: Any) -> Any:
    """Convert facts to what JSON has; numbers that it does not have become text."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        return _plain_data(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain_data(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain_data(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
