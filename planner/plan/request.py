"""The request for a plan."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from planner.errors import UsageError, option
from planner.formats.ggml import Format
from planner.plan.limits import check_names
from planner.plan.rules import Device, Rule, Tie
from planner.terms import Draft, FamilyName, RunOn, Source

if TYPE_CHECKING:  # what most plans do without
    from planner.plan.cards import Fit
    from planner.plan.target import Target

__all__ = ["ANY_SIZE", "PlanRequest", "RunOn"]

ANY_SIZE = Fraction(64)
"""Bits per weight that every file stays below: the limit of a request that is answered at many sizes."""


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan. At least one limit: `budget` (bytes of the file), `bpw` (bits of tensor data per element),
    `devices` (bytes of the tensors on each), `active` (bytes read to generate one token), `fit` (bytes of a card, with
    a context; or a context that devices hold beside their tensors); or a `target`, for the smallest file that reaches
    it, within the limits that stand beside it. Formats and rules are of one `family`. The loss from rounded activations
    counts for files that `run_on` a CPU. `draft` is the choice of formats for draft heads."""

    budget: int | None = None
    bpw: Fraction | None = None
    devices: tuple[Device, ...] = ()
    active: int | None = None
    fit: Fit | None = None
    family: FamilyName = "gguf"
    formats: tuple[Format, ...] | None = None
    pins: tuple[Rule, ...] = ()
    floors: tuple[Rule, ...] = ()
    caps: tuple[Rule, ...] = ()
    ties: tuple[Tie, ...] = ()
    sensitivity: Source | None = None
    run_on: RunOn = "cpu"
    draft: Draft = "auto"
    method: str = "auto"
    gap: float = 1e-6
    time_limit: float | None = 10.0
    target: Target | None = None

    def __post_init__(self) -> None:
        """Check the request. Raises UsageError if there is no limit, or if two limits share a name."""
        if self.fit is not None:
            from planner.plan.cards import check_fit

            check_fit(self.fit, self.devices, self.family)
        limits = (self.budget, self.bpw, self.active, self.fit, self.target)
        if all(limit is None for limit in limits) and not self.devices:
            raise UsageError(
                f"Give the size that is wanted: {option('budget')}, {option('bpw')}, {option('device')}, "
                f"{option('active_budget')} or {option('vram')}.",
                f"For example {option('budget', '23.85GB')} or {option('bpw', 4.5)}.",
            )
        check_names(self.devices)
