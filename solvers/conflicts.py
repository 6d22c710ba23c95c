"""Explain infeasibility: the limits in conflict, and the least change that resolves it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from solvers.check import check
from solvers.errors import Change, Infeasibility
from solvers.problem import Problem
from solvers.solution import Solution, Status

__all__ = ["analyse"]

Decide = Callable[[Problem, float], Solution | None]


def analyse(problem: Problem, decide: Decide) -> Infeasibility:
    """Find the limits that make `problem` infeasible, and the least changes that help.

    `decide(problem, gap)` solves a problem, or returns `None` if it is infeasible. Limits below their own minimum come
    first: each has to be raised to it in any case.
    """
    minimum = {limit.name: problem.extremes(limit.name)[0] for limit in problem.limits}
    short = {limit.name: minimum[limit.name] for limit in problem.limits if minimum[limit.name] > limit.capacity}
    raised = problem
    for name, least in short.items():
        raised = raised.with_capacity(name, least)
    if short and decide(raised, 1.0) is not None:
        return Infeasibility((next(iter(short)),), (Change(short, True),), minimum)
    conflict = _conflict(raised, decide)
    changes = tuple(Change(short | cure.capacities, cure.least) for cure in _cures(raised, conflict, decide))
    names = [problem.limits[i].name for i in conflict]
    return Infeasibility((next(iter(short)),) if short else tuple(names), changes, minimum)


def _conflict(problem: Problem, decide: Decide) -> list[int]:
    """Return a minimal infeasible set of limits: drop limits one at a time while the rest stays infeasible."""
    conflict = list(range(len(problem.limits)))
    for i in list(conflict):
        rest = [k for k in conflict if k != i]
        if decide(problem.only(rest), 1.0) is None:
            conflict = rest
    return conflict


def _cures(problem: Problem, conflict: list[int], decide: Decide) -> list[Change]:
    """Return, for each limit of the conflict, the least capacity with which the others can be met.

    If the others are infeasible without it, there is a second conflict, and its first cure is part of this one.
    """
    cures = []
    for i in conflict:
        rest, needed = problem.only([k for k in range(len(problem.limits)) if k != i]), Change({}, True)
        if decide(rest, 1.0) is None:
            inner = _cures(rest, _conflict(rest, decide), decide)
            if not inner:
                continue
            needed = inner[0]
            for name, capacity in needed.capacities.items():
                rest = rest.with_capacity(name, capacity)
        # The limit's weights, minimized as if they were losses, say how much it must allow.
        lightest = rest.only(range(len(rest.limits)), problem.weights[i].astype(np.float64))
        answer = decide(lightest, 0.0)
        if answer is not None and answer.picks is not None:
            used = check(problem, answer.picks).used[i]
            capacities = needed.capacities | {problem.limits[i].name: problem.unscaled(i, used)}
            cures.append(Change(capacities, needed.least and answer.status is Status.OPTIMAL and used < 2**53))
    return cures
