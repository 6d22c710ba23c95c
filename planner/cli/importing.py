"""`planner import`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.errors import RecipeError, UsageError
from planner.inputs import kinds
from planner.inputs.reading import Given, look

if TYPE_CHECKING:
    from planner.plan.assess import Assessment
    from planner.plan.losses import Losses
    from state import Inventory

__all__ = ["import_recipe", "open_basis"]

# As in planner.dialects.imports, which would be slow to import for --help; a test compares
_DIALECTS = ["llama-quantize", "ik_llama", "gguf-tool-suite", "evopress", "csv", "mlx-lm", "auto-round"]


@click.command(name="import")
@click.argument("file")
@click.option("--model", type=click.Path(path_type=Path), help="The model that the recipe shall be for.")
@click.option("--imatrix", type=click.Path(path_type=Path), help="With --model: the imatrix to quantize it with.")
@click.option("--state", type=click.Path(path_type=Path), help="Its state file, for losses.")
@click.option(
    "--from",
    "dialect",
    metavar="DIALECT",
    type=click.Choice(_DIALECTS),
    help=f"What FILE is: {', '.join(_DIALECTS)}.  [default: told by content]",
)
@click.option("--nearest", is_flag=True, help="Replace types of ik_llama.cpp alone by ggml's nearest in bits.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="recipe.json", show_default=True)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
def import_recipe(
    file: str,
    model: Path | None,
    imatrix: Path | None,
    state: Path | None,
    dialect: str | None,
    nearest: bool,
    output: Path,
    force: bool,
) -> None:
    """Make a recipe of FILE: any GGUF (which type has each of its tensors?), a tensor-type file, a .recipe, --custom-q
    rules (a file, or the rules themselves), a table, the config.json of a model that MLX quantized, or a recipe that
    was edited by hand. A .bpw_state of --target-bpw and a kld_results.csv of the GGUF-Tool-Suite become measurements in
    the state instead.

    Sizes and losses are worked out for --model, for the model of --state, or of the only state file in this directory.
    Without any of these, a GGUF's recipe is for itself. Whatever could not be taken over as it was is said.
    """
    from planner.cli.messages import wrapped
    from planner.recipe import save_recipe
    from planner.report import role_table, size_line
    from planner.text import plain

    given, dialect = _given(file, dialect)
    if _is_evidence(given):
        for line in _take_evidence(given, model, imatrix, state):
            click.echo(wrapped(plain(line)))
        return
    with ExitStack() as stack:
        found = _assessed(given, open_basis(stack, model, imatrix, state), dialect, nearest=nearest)
    recipe = found.recipe
    save_recipe(recipe, output, force=force)
    click.echo(role_table(recipe))
    click.echo(f"\n{size_line(recipe)}")
    loss = "not known" if recipe.loss is None else f"{recipe.loss:.6g} by {recipe.sensitivity}"
    click.echo(f"Loss       {loss}")
    for note in found.notes:
        click.echo(wrapped(plain(f"Note: {note}")))
    click.echo(f"Recipe     {output}")


def open_basis(
    stack: ExitStack, model: Path | None, imatrix: Path | None, state: Path | None
) -> tuple[Inventory, Losses | None] | None:
    """The model that a choice of formats is for, and what is known of its losses; None where none is given or found.

    Raises UsageError for options that do not go together, and StateFileError.
    """
    from planner.plan.findings import Findings, inventory_of
    from state import Store

    if imatrix is not None and model is None:
        raise UsageError("--imatrix goes with --model.", "Give the model too, or its --state.")
    if model is None and state is None:
        around = sorted(Path().glob("*.planner"))
        if len(around) != 1:
            return None
        state = around[0]
    if state is None or model is not None:
        inventory = _of_model(stack, model, imatrix)
        if state is None:
            return inventory, None
    store = stack.enter_context(Store.open(state, read_only=True))
    known = inventory_of(store)
    if known is None:
        raise UsageError(f"{state} holds no model yet.", "Measure it: planner measure MODEL --imatrix FILE")
    if model is not None and known.model_digest != inventory.model_digest:
        raise UsageError(f"{state} is the state of {known.model_name}, not of {model}.", "Give the state of the model.")
    findings = Findings.find(store)
    return known, None if findings is None else findings.losses()


def _of_model(stack: ExitStack, model: Path | None, imatrix: Path | None) -> Inventory:
    from planner.gguf import open_model, read_imatrix
    from planner.measure import Settings
    from planner.measure.inventory import take_inventory

    assert model is not None
    opened = stack.enter_context(open_model(model))
    return take_inventory(opened, None if imatrix is None else read_imatrix(imatrix), Settings())


def _assessed(
    given: Given, basis: tuple[Inventory, Losses | None] | None, dialect: str | None, *, nearest: bool
) -> Assessment:
    from planner.dialects.imports import guess_dialect, read_choices
    from planner.formats.registry import family_of
    from planner.plan.assess import Assessment, assess, reassess
    from planner.recipe import is_recipe, parse_recipe

    if given.kind == kinds.GGUF:
        return _of_gguf(given.path, basis, nearest=nearest)
    text, where = _text(given), str(given.path)
    if dialect is None and is_recipe(text):
        if basis is None:
            raise UsageError("A recipe needs its model or its state to be worked out again.", "Give --model.")
        return reassess(parse_recipe(text, where), *basis)
    dialect = dialect or guess_dialect(given.path, text)
    if basis is None:
        raise UsageError(f"{where} names types only: which model are they for?", "Give --model or --state.")
    inventory, losses = basis
    names = [tensor.name for tensor in inventory.tensors]
    rows = {tensor.name: tensor.row_length for tensor in inventory.tensors}
    found = read_choices(text, dialect, names, inventory.architecture, where, nearest=nearest, rows=rows)
    made = assess(
        inventory, found.formats, losses, family=family_of(found.formats.values()), why=f"imported from {given.name}"
    )
    return Assessment(made.recipe, (*found.notes, *made.notes))


def _given(file: str, dialect: str | None) -> tuple[Given, str | None]:
    """What FILE is, and its dialect where that is clear: the rules themselves, if there is no such file."""
    path = Path(file)
    if not _exists(path) and (dialect == "ik_llama" or (dialect is None and "=" in file)):
        from planner.dialects.imports import are_rules

        if not are_rules(file):
            raise UsageError(
                f"{file} does not exist.", "Check the path. For rules in its place: PATTERN=TYPE,PATTERN=TYPE,..."
            )
        rules = file.encode("utf-8", "surrogateescape")
        return Given(Path("the rules given"), kinds.TEXT, rules, whole=True, piped=False), "ik_llama"
    return look(path, RecipeError), dialect


def _text(given: Given) -> str:
    return given.text(RecipeError, "a recipe, rules or a table", lenient=True)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # rules are too long for a name, or hold what no name may
        return False


def _is_evidence(given: Given) -> bool:
    """Whether a file holds what was measured, rather than a choice."""
    from planner.evidence.kld_table import is_kld_table

    return given.kind == kinds.BPW_STATE or (given.kind == kinds.TEXT and is_kld_table(_text(given)))


def _take_evidence(given: Given, model: Path | None, imatrix: Path | None, state: Path | None) -> list[str]:
    """Write into the state what others measured; what to say of it."""
    from planner.cli.options import find_state
    from planner.evidence.add import add_divergences, add_fork_errors
    from planner.evidence.bpw_state import read_bpw_state
    from planner.evidence.kld_table import read_kld_table
    from planner.plan.findings import inventory_of
    from state import Store

    target, where = find_state(state, model), str(given.path)
    is_state = given.kind == kinds.BPW_STATE
    tried = read_bpw_state(given.content(RecipeError, "a state of --target-bpw"), where) if is_state else None
    table = None if is_state else read_kld_table(_text(given), where)
    with ExitStack() as stack, Store.open(target, create=model is not None) as store:
        if store.inventory() is None and model is not None:
            store.set_inventory(_of_model(stack, model, imatrix))
        inventory = inventory_of(store)
        if inventory is None:
            raise UsageError(f"{target} holds no model yet.", "Give it with --model.")
        if tried is not None:
            notes = add_fork_errors(store, inventory, tried)
        else:
            assert table is not None
            notes = add_divergences(store, inventory, table)
    return [*notes, f"State      {target}"]


def _of_gguf(path: Path, basis: tuple[Inventory, Losses | None] | None, *, nearest: bool) -> Assessment:
    from planner.dialects.imports import known_formats
    from planner.gguf import open_model
    from planner.measure import Settings
    from planner.measure.inventory import take_inventory
    from planner.plan.assess import Assessment, assess

    with open_model(path, nearest=nearest) as model:
        stored = {tensor.name: model.replaced.get(tensor.name, tensor.format) for tensor in model.tensors}
        inventory, losses = basis or (take_inventory(model, None, Settings()), None)
        useless = bool(model.replaced) and basis is None
    rows = {tensor.name: tensor.row_length for tensor in inventory.tensors}
    found = known_formats(stored, str(path), nearest=nearest, rows=rows)
    made = assess(inventory, found.formats, losses, why=f"imported from {path.name}")
    own = (f"This recipe is for {path.name} itself, which cannot be quantized: give the original with --model.",)
    return Assessment(made.recipe, (*found.notes, *made.notes, *(own if useless else ())))
