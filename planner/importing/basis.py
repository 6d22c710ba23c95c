"""The model that a recipe is made for, and the losses known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner.errors import UsageError, option
from planner.gguf import open_model, read_imatrix
from planner.measure import Settings
from planner.measure.inventory import take_inventory
from planner.plan.findings import Findings, inventory_of
from planner.plan.losses import Losses
from state import Inventory, Store

__all__ = ["Basis", "inventory_of_model", "open_basis"]


@dataclass(frozen=True, slots=True)
class Basis:
    """A model's tensors, and the losses that its state holds; None without measurements."""

    inventory: Inventory
    losses: Losses | None


def open_basis(model: Path | None, imatrix: Path | None, state: Path | None) -> Basis | None:
    """Return the basis given by a model and a state file, or either of them; None without both.

    Raises UsageError if they do not belong together, and the errors of the files' readers.
    """
    if imatrix is not None and model is None:
        raise UsageError(
            f"{option('imatrix')} goes with {option('model')}.", f"Give the model too, or its {option('state')}."
        )
    given = None if model is None else inventory_of_model(model, imatrix)
    if state is None:
        return None if given is None else Basis(given, None)
    with Store.open(state, read_only=True) as store:
        known = inventory_of(store)
        if known is None:
            raise UsageError(f"{state} holds no model yet.", "Measure it: planner measure MODEL --imatrix FILE")
        if given is not None and known.model_digest != given.model_digest:
            raise UsageError(
                f"{state} is the state of {known.model_name}, not of {model}.", "Give the state of the model."
            )
        findings = Findings.find(store)
        return Basis(known, None if findings is None else findings.losses())


def inventory_of_model(model: Path, imatrix: Path | None) -> Inventory:
    """Return the tensors of a model file. Raises ModelError and ImatrixError."""
    with open_model(model) as opened:
        return take_inventory(opened, None if imatrix is None else read_imatrix(imatrix), Settings())
