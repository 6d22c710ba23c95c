"""What passes of the model are worth: recipes by measured sensitivities, beside those without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from planner.errors import BudgetError
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest

__all__ = ["Gain", "gains_of_passes"]

_SIZES = (Fraction(3), Fraction(9, 2), Fraction(6))  # bits per weight


@dataclass(frozen=True, slots=True)
class Gain:
    """At a size in bits per weight: the share of a recipe's loss that measured sensitivities save."""

    bpw: float
    saved: float


def gains_of_passes(findings: Findings) -> Iterator[Gain]:
    """Yield gains over the usual sizes: losses, by measured sensitivities, of the recipes that these make and of those
    that are made without passes. Sizes that the model cannot have are left out."""
    if findings.best_source != "measured":
        return
    measured = findings.losses("measured")
    for bpw in _SIZES:
        try:
            blind = make_plan(findings, PlanRequest(bpw=bpw, sensitivity=findings.reference)).recipe
            best = make_plan(findings, PlanRequest(bpw=bpw, sensitivity="measured")).recipe
        except BudgetError:
            continue
        before = assess(findings.inventory, blind.formats, measured, why="made without passes").recipe.loss
        if before and best.loss is not None:
            yield Gain(float(bpw), max(1 - best.loss / before, 0.0))
