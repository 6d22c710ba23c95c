"""Lower bounds on completing a partial choice, for the states of the core's search.

The excess of a full choice over the core's bound is its reduced costs + prices . slack, and no slack is negative. For a
direction a >= 0 and a rate r >= 0 with r a <= prices, dropping all but the combined limit a . slack >= 0 leaves a
knapsack with one limit, where an unused unit costs r. Its linear relaxation is a convex piecewise linear function: the
groups' hulls cut into segments and sorted. One limit needs one such function; several get one each and one for their
sum at the prices.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from solvers.arrays import FloatArray, IntArray
from solvers.core import Core

__all__ = ["Completion"]

EXACT = 2.0**52  # beyond it floats cannot tell weights apart, and lines are not used


class Completion:
    """Lower bounds by stage: the number of groups decided so far, in the core's order."""

    def __init__(self, core: Core) -> None:
        prices, stages = core.bound.prices, len(core.groups)
        limits = len(prices)
        least = np.array([item.weight.min(axis=1) for item in core.groups], np.int64).reshape(stages, limits)
        self.freed = np.zeros((stages + 1, limits), np.int64)  # the most that the undecided groups can give back
        self.freed[:-1] = -np.cumsum(least[::-1], axis=0)[::-1]
        most = np.array([item.weight.max(axis=1) for item in core.groups], np.int64).reshape(stages, limits)
        self.usable = np.zeros((stages + 1, limits), np.int64)  # slack beyond this is useless to them
        self.usable[:-1] = np.cumsum(most[::-1], axis=0)[::-1]
        span = sum(float(np.ptp(item.weight, axis=1).max()) for item in core.groups)
        self.lines: list[_Line] = []
        if span + float(np.abs(core.slack).max(initial=0)) < EXACT:
            for i in range(limits):
                self.lines.append(_Line(core, np.eye(limits)[i], float(prices[i])))
            if np.count_nonzero(prices) > 1:
                self.lines.append(_Line(core, prices, 1.0))

    def bound(self, stage: int, cost: FloatArray, slack: IntArray) -> FloatArray:
        """Return a lower bound [states] on the excess of any completion; infinite where none is feasible.

        `cost` [states] is the reduced cost so far, `slack` [limits, states] what is left.
        """
        least = cost
        for line in self.lines:
            least = np.maximum(least, cost + line.at(stage, slack))
        stuck = (slack + self.freed[stage][:, None] < 0).any(axis=0)
        return np.where(stuck, np.inf, least)


class _Line:
    """The least reduced cost of the undecided groups plus `rate` times what is left of `direction` . slack."""

    def __init__(self, core: Core, direction: FloatArray, rate: float) -> None:
        self.direction, self.rate = direction, rate
        stages, widths, rises = [], [], []
        count = len(core.groups)
        self.low = np.zeros(count + 1)  # all undecided groups at their least weight: that weight ...
        self.base = np.zeros(count + 1)  # ... and their reduced cost
        for stage in range(count - 1, -1, -1):
            item = core.groups[stage]
            corners = _corners(direction @ item.weight, item.cost, rate)
            self.low[stage] = self.low[stage + 1] + corners[0][0]
            self.base[stage] = self.base[stage + 1] + corners[0][1]
            for (x, y), (next_x, next_y) in pairwise(corners):
                stages.append(stage)
                widths.append(next_x - x)
                rises.append(next_y - y)
        width, rise, of = np.array(widths), np.array(rises), np.array(stages, np.int64)
        with np.errstate(over="ignore"):
            order = np.argsort(rise / width, kind="stable")
        self.width, self.rise, self.stage = width[order], rise[order], of[order]

    def at(self, stage: int, slack: IntArray) -> FloatArray:
        """Return the line's values [states] after `stage` groups, for `slack` [limits, states]."""
        rest = np.flatnonzero(self.stage >= stage)
        x, y = np.zeros(rest.size + 1), np.zeros(rest.size + 1)
        np.cumsum(self.width[rest], out=x[1:])
        np.cumsum(self.rise[rest], out=y[1:])
        x += self.low[stage]
        y += self.base[stage]
        spare = self.direction @ slack
        value: FloatArray = np.interp(spare, x, y) + self.rate * np.maximum(spare - x[-1], 0.0)
        return value


def _corners(weight: FloatArray, cost: FloatArray, rate: float) -> list[tuple[float, float]]:
    """Return the falling part of the lower hull of (weight, loss), loss = cost - rate * weight: (weight, reduced
    cost)."""
    corners: list[tuple[float, float, float]] = []
    for k in np.lexsort((cost, weight)).tolist():
        x, y = float(weight[k]), float(cost[k])
        loss = y - rate * x
        if corners and (loss >= corners[-1][2] or x <= corners[-1][0]):
            continue
        while len(corners) > 1:
            (x0, _, loss0), (x1, _, loss1) = corners[-2:]
            if (loss0 - loss1) * (x - x1) > (loss1 - loss) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y, loss))
    return [(x, y) for x, y, _ in corners]
