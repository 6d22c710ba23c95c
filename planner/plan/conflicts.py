"""Limits that cannot hold together, in the user's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.errors import BudgetError, option
from planner.plan.candidates import Candidates
from planner.plan.limits import SizeLimit, causes
from state import Inventory

if TYPE_CHECKING:
    from solvers import Change, Infeasibility

__all__ = ["conflict"]


def conflict(
    analysis: Infeasibility, limits: Sequence[SizeLimit], inventory: Inventory, candidates: Candidates
) -> BudgetError:
    """Return the error that says, in the user's terms, which limits cannot hold together and what would help."""
    by_name = {limit.name: limit for limit in limits}

    def raised(change: Change) -> str:
        enough = "" if change.least else " (a little less may do)"
        return " and ".join(
            f"{by_name[name].asked_by} to {by_name[name].format_amount(value + by_name[name].overhead, up=True)}"
            for name, value in change.capacities.items()
        ) + enough  # fmt: skip

    cures = ", or ".join(map(raised, analysis.changes)) or "one of them"
    remedy = f"Raise {cures}; or allow smaller formats with {option('types')}, {option('pin')} and {option('min')}."
    if len(analysis.limits) > 1:
        names = "; ".join(by_name[name].title for name in analysis.limits)
        return BudgetError(f"These limits cannot hold together: {names}.", remedy)
    limit = by_name[analysis.limits[0]]
    least = limit.format_amount(analysis.minimum[limit.name] + limit.overhead, up=True)
    return BudgetError(f"{limit.title} is below the minimum of {least}. {causes(limit, inventory, candidates)}", remedy)
