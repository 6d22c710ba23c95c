"""Why nothing satisfies the limits, and the least change that helps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from solvers.problem import Problem

__all__ = ["Change", "Infeasibility", "limits_below_minimum"]


@dataclass(frozen=True, slots=True)
class Change:
    """Raise the limits named in `capacities` to these values, all of them, and the problem has an answer.

    `least`: proven that with the other capacities as they are no smaller value will do.
    """

    capacities: dict[str, int | Fraction]
    least: bool

    def __str__(self) -> str:
        raised = " and ".join(f"{name!r} to {value}" for name, value in self.capacities.items())
        return f"raise {raised}" + ("" if self.least else " (enough; a little less may be)")


@dataclass(frozen=True, slots=True)
class Infeasibility:
    """`limits`: the names of a smallest set of limits that cannot hold together. `changes`: each alone is a cure.

    `minimum`: by name, the least that any choice weighs in each limit, looked at alone.
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


def limits_below_minimum(problem: Problem) -> Infeasibility | None:
    """The analysis when limits are too small by themselves, else `None`."""
    minimum = {limit.name: problem.extremes(limit.name)[0] for limit in problem.limits}
    short = {limit.name: minimum[limit.name] for limit in problem.limits if minimum[limit.name] > limit.capacity}
    if not short:
        return None
    return Infeasibility((next(iter(short)),), (Change(short, True),), minimum)
