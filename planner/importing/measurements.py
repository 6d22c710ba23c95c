"""Other people's measurements, into the state."""

from __future__ import annotations

from pathlib import Path

from planner.errors import RecipeError, UsageError, option
from planner.evidence.add import add_divergences, add_fork_errors
from planner.evidence.bpw_state import read_bpw_state
from planner.evidence.kld_table import read_kld_table
from planner.importing.basis import inventory_of_model
from planner.importing.source import Source, identify
from planner.inputs import kinds
from planner.plan.findings import inventory_of
from state import Store

__all__ = ["import_measurements"]


def import_measurements(
    source: Source | str | Path, state: Path, *, model: Path | None = None, imatrix: Path | None = None
) -> list[str]:
    """Add the measurements of a .bpw_state or a kld_results.csv to a state file; return notes on it. A state file
    without a model gets `model`, and with it a missing state file is created.

    Raises RecipeError for a source that is neither, is damaged or of another model, UsageError if no model is known,
    and the errors of the files' readers.
    """
    if not isinstance(source, Source):
        source = identify(source)
    if not source.has_measurements:
        raise RecipeError(f"{source.where} holds no measurements.", "Give a .bpw_state or a kld_results.csv.")
    is_fork = source.given.kind == kinds.BPW_STATE
    content = source.given.content(RecipeError, "a state of --target-bpw") if is_fork else b""
    tried = read_bpw_state(content, source.where) if is_fork else {}
    table = None if is_fork else read_kld_table(source.text(), source.where)
    with Store.open(state, create=model is not None) as store:
        if store.inventory() is None and model is not None:
            store.set_inventory(inventory_of_model(model, imatrix))
        inventory = inventory_of(store)
        if inventory is None:
            raise UsageError(f"{state} holds no model yet.", f"Give it with {option('model')}.")
        return add_fork_errors(store, inventory, tried) if table is None else add_divergences(store, inventory, table)
