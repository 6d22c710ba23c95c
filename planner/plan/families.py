"""Ties imposed by a family's engine: tensors that it fuses into one module share one format."""

from __future__ import annotations

import re

from planner.formats.registry import family_named
from planner.plan.rules import Tie
from planner.terms import FamilyName
from state import Inventory

__all__ = ["fused_ties"]


def fused_ties(inventory: Inventory, family: FamilyName) -> tuple[Tie, ...]:
    """Return ties between tensors that the family's engine fuses into one module; the inventory is the family's."""
    engine = family_named(family)
    groups = ("|".join(map(re.escape, roles)) for roles in engine.fused(inventory))
    return tuple(Tie(re.compile(rf"\.({names})\.weight$"), f"modules of {engine.engine}: {names}") for names in groups)
