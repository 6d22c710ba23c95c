"""Errors of this package, and the analysis of an infeasible problem.

ValueError
└── ProblemError          the problem is not well posed: a message says what, where and what to do
    └── InfeasibleError   it is well posed and nothing satisfies its limits; `analysis` says why
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

__all__ = ["Change", "Infeasibility", "InfeasibleError", "ProblemError"]


class Change(NamedTuple):
    """A cure: with all capacities named in `capacities` raised to these values, the problem has an answer.

    `least`: proven that, with the other capacities as they are, no smaller value will do.
    """

    capacities: dict[str, int | Fraction]
    least: bool

    def __str__(self) -> str:
        raised = " and ".join(f"{name!r} to {value}" for name, value in self.capacities.items())
        return f"raise {raised}" + ("" if self.least else " (enough; a little less may be)")


class Infeasibility(NamedTuple):
    """The analysis of an infeasible problem. `limits`: the names of a minimal set of limits in conflict. `changes`:
    each alone is a cure.

    `minimum`: by name, the least weight of any choice in each limit alone.
    """

    limits: tuple[str, ...]
    changes: tuple[Change, ...]
    minimum: dict[str, int | Fraction]

    def __str__(self) -> str:
        if len(self.limits) == 1:
            what = f"limit {self.limits[0]!r} is below the least possible, {self.minimum[self.limits[0]]}"
        else:
            what = f"limits {', '.join(map(repr, self.limits))} cannot hold together"
        return f"{what}: {'; or '.join(map(str, self.changes))}" if self.changes else what


class ProblemError(ValueError):
    """The problem, or an argument about it, cannot be used."""


class InfeasibleError(ProblemError):
    """Proven: no choice of options satisfies all limits. `analysis` names the conflict and the cures."""

    def __init__(self, analysis: Infeasibility) -> None:
        super().__init__(str(analysis))
        self.analysis = analysis

    def __reduce__(self) -> tuple[type[InfeasibleError], tuple[Infeasibility]]:
        return type(self), (self.analysis,)
