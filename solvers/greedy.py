"""Feasible choices by single steps: repair violated limits, then take every upgrade that still fits."""

from __future__ import annotations

import numpy as np

from solvers.arrays import FloatArray, IntArray
from solvers.bound import slack_of
from solvers.reduction import Reduced

__all__ = ["polish", "repair"]


def polish(problem: Reduced, choice: IntArray, prices: FloatArray) -> IntArray:
    """Improve one group at a time until no single change fits and lowers the loss.

    The step with the largest saving beyond its price comes first. `choice` (flat indices) must be feasible and stays
    so.
    """
    choice = choice.copy()
    slack = slack_of(problem, choice)
    group = problem.group
    while True:
        current = choice[group]
        better = problem.losses < problem.losses[current]
        for row, spare in zip(problem.weights, slack, strict=True):
            better &= row - row[current] <= spare
        steps = np.flatnonzero(better)
        if not steps.size:
            return choice
        # Take steps in order of merit while they fit; the groups that they change are reconsidered in the next round.
        merit = problem.losses[current[steps]] - problem.losses[steps]
        with np.errstate(over="ignore"):
            for price, row in zip(prices, problem.weights, strict=True):
                merit = merit - price * (row[steps] - row[current[steps]])
        taken: set[int] = set()
        for k in steps[np.argsort(-merit, kind="stable")][:1000].tolist():
            g = int(group[k])
            change = problem.weights[:, k] - problem.weights[:, choice[g]]
            if g not in taken and bool((change <= slack).all()):
                taken.add(g)
                slack = slack - change
                choice[g] = k


def repair(problem: Reduced, choice: IntArray, steps: int = 10_000) -> IntArray | None:
    """Trade loss for weight, cheapest step first, until every limit holds; return `None` if that gets stuck.

    A step costs its loss divided by the part of the excess that it removes; excess counts
    relative to the capacity, so that limits of different units compare.
    """
    choice = choice.copy()
    slack = slack_of(problem, choice)
    group = problem.group
    unit = np.maximum(problem.capacities, 1).astype(np.float64)
    for _ in range(steps):
        if (slack >= 0).all():
            return choice
        current = choice[group]
        before = np.maximum(-slack, 0) / unit
        removed = np.zeros(group.size)
        for i, row in enumerate(problem.weights):
            removed += before[i] - np.maximum(row - row[current] - slack[i], 0) / unit[i]
        useful = np.flatnonzero(removed > 0.0)
        if not useful.size:
            return None
        cost = problem.losses[useful] - problem.losses[current[useful]]
        with np.errstate(over="ignore"):
            ratio = np.where(cost > 0.0, cost / removed[useful], cost)
        k = int(useful[np.lexsort((-removed[useful], ratio))[0]])
        slack -= problem.weights[:, k] - problem.weights[:, choice[group[k]]]
        choice[group[k]] = k
    return None
