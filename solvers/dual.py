"""Prices for the limits: the maximum of the Lagrangian bound over prices.

One limit: exactly, by sorting the segments of the groups' lower convex hulls by what they save per unit of
weight (`hull`). Several: the ellipsoid method with deep cuts, which needs no linear program, and whose
volume shrinks by a fixed factor a step however flat or kinked the bound is; there are few prices.
"""

from __future__ import annotations

import numpy as np

from solvers.bound import Bound, certify
from solvers.problem import FloatArray, IntArray
from solvers.reduction import Reduced

__all__ = ["Segments", "hull_segments", "single_dual"]


class Segments:
    """Hull segments of all groups, those that save most per unit of weight first (ties in the groups' order).

    Segment k replaces option `start[k]` by `stop[k]` (flat indices) for `weight[k]` more and loss `saved[k]` less.
    """

    def __init__(self, start: IntArray, stop: IntArray, weight: IntArray, saved: FloatArray) -> None:
        self.start, self.stop, self.weight, self.saved = start, stop, weight, saved
        self.price: FloatArray = saved / weight


def hull_segments(problem: Reduced, limit: int = 0) -> Segments:
    """The lower convex hulls of (weight, loss) of every group, cut into sorted segments.

    Needs options without dominated ones: weights rise and losses fall within a group.
    """
    weights, losses = problem.weights[limit], problem.losses
    group = problem.group
    keep = np.arange(losses.size)
    while keep.size > 2:
        # A point on or above the chord of its neighbours is no corner, whether they stay or not.
        left, here, right = keep[:-2], keep[1:-1], keep[2:]
        inside = (group[left] == group[right]) & (
            (losses[left] - losses[here]) / np.maximum(weights[here] - weights[left], 1)
            <= (losses[here] - losses[right]) / np.maximum(weights[right] - weights[here], 1)
        )
        if not inside.any():
            break
        keep = np.delete(keep, np.flatnonzero(inside) + 1)
    joined = np.flatnonzero(group[keep[1:]] == group[keep[:-1]])
    start, stop = keep[joined], keep[joined + 1]
    weight, saved = weights[stop] - weights[start], losses[start] - losses[stop]
    order = np.argsort(-(saved / weight), kind="stable")
    return Segments(start[order], stop[order], weight[order], saved[order])


def single_dual(problem: Reduced) -> tuple[Bound, IntArray]:
    """The best bound under one limit, and the feasible choice (flat indices) that takes segments while they fit."""
    segments = hull_segments(problem)
    filled = np.cumsum(segments.weight)
    fitting = int(np.searchsorted(filled, problem.capacities[0], "right"))
    choice = problem.starts.copy()
    # A group's segments come in its own order, so its last one that fits is where it ends.
    choice[problem.group[segments.start[:fitting]]] = segments.stop[:fitting]
    price = float(segments.price[fitting]) if fitting < filled.size else 0.0
    return certify(problem, np.array([price])), choice
