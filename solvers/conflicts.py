"""Why nothing satisfies the limits, and the least change that helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from solvers.check import check
from solvers.problem import Problem
from solvers.solution import Solution, Status

__all__ = ["Change", "Infeasibility", "analyse"]


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


def analyse(problem: Problem, decide: Callable[[Problem, float], Solution | None]) -> Infeasibility:
    """Why `problem` is infeasible. `decide(problem, gap)` solves a problem, or returns `None` if it is infeasible.

    Limits below their own minimum come first: raising each to it is needed whatever else. Then the smallest conflict is
    what remains after taking limits away one at a time while it stays infeasible.
    """
    minimum = {limit.name: problem.extremes(limit.name)[0] for limit in problem.limits}
    short = {limit.name: minimum[limit.name] for limit in problem.limits if minimum[limit.name] > limit.capacity}
    for name, least in short.items():
        problem = problem.with_capacity(name, least)
    if short and decide(problem, 1.0) is not None:
        return Infeasibility((next(iter(short)),), (Change(short, True),), minimum)
    conflict = list(range(len(problem.limits)))
    for i in list(conflict):
        rest = [k for k in conflict if k != i]
        if decide(problem.only(rest), 1.0) is None:
            conflict = rest
    changes = [_least_capacity(problem, i, short, decide) for i in conflict]
    names = tuple(problem.limits[i].name for i in conflict)
    return Infeasibility(names, tuple(change for change in changes if change is not None), minimum)


def _least_capacity(
    problem: Problem, i: int, short: dict[str, int | Fraction], decide: Callable[[Problem, float], Solution | None]
) -> Change | None:
    """The least capacity of limit `i` with which the others can be met: its weights, minimized as losses."""
    others = [k for k in range(len(problem.limits)) if k != i]
    answer = decide(problem.only(others, problem.weights[i].astype(np.float64)), 0.0)
    if answer is None or answer.picks is None:
        return None
    used = check(problem, answer.picks).used[i]
    least = answer.status is Status.OPTIMAL and used < 2**53
    return Change({**short, problem.limits[i].name: problem.unscaled(i, used)}, least)
