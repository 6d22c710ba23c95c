"""What a request is about: the model, its losses, and the formats that there are to choose from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from planner.errors import UsageError
from planner.formats.ggml import Format
from planner.formats.registry import family_named
from planner.plan.candidates import Candidates
from planner.plan.drafts import check_dropped
from planner.plan.families import fused_ties
from planner.plan.findings import Findings, not_measured
from planner.plan.losses import Losses
from planner.plan.request import PlanRequest
from state import Inventory

__all__ = ["Arranged", "arrange"]


class Arranged(NamedTuple):
    """The model as the request's family stores it, all its losses, and what there is to choose from."""

    inventory: Inventory
    losses: Losses
    candidates: Candidates


def arrange(findings: Findings, request: PlanRequest, factors: Mapping[str, float] | None = None) -> Arranged:
    """Arrange what a state holds for a request; `factors` multiply sensitivities of tensors. Raises StateFileError
    where measurements are missing, UsageError for rules that cannot be followed."""
    inventory = _inventory(findings, request)
    losses = findings.losses(request.sensitivity).times(factors or {})
    counted = losses.stored_as(inventory).in_family(request.family).where(request.run_on)
    candidates = Candidates(
        inventory, counted, allowed=request.formats, pins=request.pins, floors=request.floors, caps=request.caps,
        ties=(*request.ties, *fused_ties(inventory, request.family)), unlimited=_unlimited(inventory, request),
        draft=request.draft,
    )  # fmt: skip
    return Arranged(inventory, losses, candidates)


def _inventory(findings: Findings, request: PlanRequest) -> Inventory:
    """Return the model as the request's family stores it. Raises StateFileError and UsageError where formats were not
    measured."""
    family = family_named(request.family)
    if family.exported_to is None:
        check_dropped(findings.inventory, request.draft)
    measured = family.formats.keys() & set().union(*findings.errors.values())
    if not measured:
        raise not_measured(findings.path, request.family, others=True)
    inventory = family.inventory(findings.inventory)
    _check_measured(inventory, measured, request.formats or ())
    return inventory


def _unlimited(inventory: Inventory, request: PlanRequest) -> list[str]:
    """Return the tensors whose bytes no limit counts, where the only one is the memory of a card that they stay off."""
    if request.fit is None or request.fit.vram is None or request.target is not None:
        return []
    if request.budget is not None or request.bpw is not None:
        return []
    from planner.plan.cards import in_ram

    return in_ram(inventory)


def _check_measured(inventory: Inventory, measured: Collection[str], wanted: Iterable[Format]) -> None:
    """Raise UsageError for formats that some tensor could take and that were never measured."""
    unmeasured = [fmt for fmt in wanted if fmt.name not in measured]
    if not unmeasured:
        return
    from planner.gguf import requires_imatrix  # takes a while to load, and is mostly not needed

    with_imatrix = inventory.imatrix_digest is not None

    def possible(fmt: Format) -> bool:
        return any(
            tensor.left_alone is None
            and tensor.source_format != fmt.name
            and fmt.fits(tensor.row_length)
            and (with_imatrix or not requires_imatrix(tensor.name, fmt))
            for tensor in inventory.tensors
        )

    missing = [fmt.name for fmt in unmeasured if possible(fmt)]
    if missing:
        raise UsageError(
            f"Nothing was measured as {', '.join(missing)}.",
            "Give the model, so that it can be measured: planner solve MODEL --types ...",
        )
