"""Prices for the limits: the maximum of the Lagrangian bound over prices.

One limit: exactly, by sorting the segments of the groups' lower convex hulls by what they save per unit of
weight (`hull`). Several: the ellipsoid method with deep cuts, which needs no linear program, and whose
volume shrinks by a fixed factor a step however flat or kinked the bound is; there are few prices.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from solvers.arrays import FloatArray, IntArray
from solvers.bound import Bound, certify, priced
from solvers.reduction import Reduced, ragged_argmin

__all__ = ["Segments", "hull_segments", "lagrangian", "proves_infeasible"]


class Segments:
    """Hull segments of all groups, those that save most per unit of weight first (ties in the groups' order).

    Segment k replaces option `start[k]` by `stop[k]` (flat indices) for `weight[k]` more and loss `saved[k]` less.
    """

    def __init__(self, start: IntArray, stop: IntArray, weight: IntArray, saved: FloatArray) -> None:
        self.start, self.stop, self.weight, self.saved = start, stop, weight, saved
        self.price: FloatArray = saved / weight


def hull_segments(problem: Reduced, limit: int = 0) -> Segments:
    """Cut the lower convex hulls of (weight, loss) of every group into sorted segments.

    Needs options without dominated ones: weights rise and losses fall within a group.
    """
    weights, losses = problem.weights[limit], problem.losses
    group = problem.group
    keep = np.arange(losses.size)
    while keep.size > 2:
        # A point on or above the chord of its neighbours is no corner, even if they are dropped later.
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


def lagrangian(problem: Reduced, deadline: float) -> tuple[Bound, list[IntArray]]:
    """Return the best bound found, and choices (flat indices, feasible or nearly) to start the search for an answer."""
    if not problem.limits or not problem.starts.size:
        return certify(problem, np.zeros(len(problem.limits))), [problem.starts]
    if len(problem.limits) == 1:
        return _single(problem)
    prices = np.zeros(len(problem.limits))
    for _ in range(3):  # one limit at a time, the others at their price: near enough to start from
        for i in range(prices.size):
            prices[i] = _price_alone(problem, prices, i)
    unit = np.maximum(problem.capacities, 1).astype(np.float64)
    ascent = _Ascent(problem)
    ascent.at(prices)
    for _ in range(4 if prices.any() else 0):
        before = ascent.best
        # Where a limit has no price yet, one at which its whole capacity would be worth as much as another's.
        radius = np.where(prices > 0.0, prices, (prices * unit).max() / unit)
        _ellipsoid(ascent, prices, np.maximum(radius, np.finfo(float).tiny), deadline)
        prices = ascent.prices
        if ascent.best - before <= 1e-6 * abs(ascent.best) or time.monotonic() > deadline:
            break
    for i in np.flatnonzero(prices).tolist():  # a limit with room has no price; the ascent leaves it with next to none
        without = prices.copy()
        without[i] = 0.0
        if ascent.at(without)[0] >= ascent.best - 1e-9 * abs(ascent.best):
            prices = without
    bound = certify(problem, prices)
    return bound, [bound.choice, *ascent.choices]


def _single(problem: Reduced) -> tuple[Bound, list[IntArray]]:
    """Solve for one limit: the critical segment's price is optimal. The segments before it are a feasible choice, and
    with it they are one too many: what is then taken back elsewhere is often worth less."""
    segments = hull_segments(problem)
    filled = np.cumsum(segments.weight)
    fitting = int(np.searchsorted(filled, problem.capacities[0], "right"))

    def up_to(count: int) -> IntArray:
        choice = problem.starts.copy()
        # A group's segments come in its own order, so its last one that fits is where it ends.
        choice[problem.group[segments.start[:count]]] = segments.stop[:count]
        return choice

    price = float(segments.price[fitting]) if fitting < filled.size else 0.0
    return certify(problem, np.array([price])), [up_to(fitting), up_to(fitting + 1)]


class _Ascent:
    """The bound evaluated at prices: remembers the best one, and the feasible choices with the least loss."""

    def __init__(self, problem: Reduced) -> None:
        self.problem = problem
        self.best, self.prices = -np.inf, np.zeros(len(problem.limits))
        self.choices: list[IntArray] = []
        self._loss = np.inf

    def at(self, prices: FloatArray) -> tuple[float, FloatArray]:
        """Return the bound and a supergradient (used weight less capacity) at `prices`."""
        problem = self.problem
        choice = ragged_argmin(priced(problem, prices), problem.offsets)
        excess = (problem.weights[:, choice].sum(axis=1) - problem.capacities).astype(np.float64)
        loss = float(problem.losses[choice].sum())
        value = loss + float(prices @ excess)
        if value > self.best:
            self.best, self.prices = value, prices.copy()
        if (excess <= 0.0).all() and loss < self._loss:
            self._loss, self.choices = loss, [choice, *self.choices[:3]]
        return value, excess


def _price_alone(problem: Reduced, prices: FloatArray, i: int) -> float:
    """Return the price of limit `i` at which the choice just meets it, the other prices unchanged."""

    def holds(price: float) -> bool:
        trial = prices.copy()
        trial[i] = price
        choice = ragged_argmin(priced(problem, trial), problem.offsets)
        return int(problem.weights[i, choice].sum()) <= int(problem.capacities[i])

    if holds(0.0):
        return 0.0
    low, high = -1074, 1000  # exponents first: prices may be of any magnitude
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(2.0**middle) else (middle, high)
    least, most = 2.0**low, 2.0**high
    for _ in range(12):
        half = (least + most) / 2
        least, most = (least, half) if holds(half) else (half, most)
    return most


def _ellipsoid(ascent: _Ascent, centre: FloatArray, radius: FloatArray, deadline: float) -> None:
    """Maximize the bound in the ellipsoid around `centre`; coordinates are divided by `radius`.

    Grötschel, Lovász, Schrijver: Geometric Algorithms and Combinatorial Optimization (1988), chapter 3, with deep cuts.
    """
    n = centre.size
    point, shape = centre / radius, float(n) * np.eye(n)
    for _ in range(40 * n * n):
        below = int(point.argmin())
        if point[below] < 0.0:  # cut off negative prices
            value, gradient, depth = 0.0, np.eye(n)[below], -point[below]
        else:
            value, excess = ascent.at(point * radius)
            gradient, depth = excess * radius, ascent.best - value
        scale = float(np.abs(gradient).max())
        gradient = gradient / scale if scale > 0.0 else gradient
        length = float(np.sqrt(max(gradient @ shape @ gradient, 0.0)))
        if length == 0.0 or scale * length <= 1e-8 * abs(ascent.best) or time.monotonic() > deadline:
            return
        depth = min(depth / scale / length, 0.999)
        step = shape @ gradient / length
        point = point + (1 + n * depth) / (n + 1) * step
        factor = n * n * (1 - depth * depth) / (n * n - 1)
        shape = factor * (shape - 2 * (1 + n * depth) / ((n + 1) * (1 + depth)) * np.outer(step, step))
        shape = (shape + shape.T) / 2


def proves_infeasible(problem: Reduced, deadline: float) -> bool:
    """Return whether some prices prove that no choice, not even a fractional one, satisfies all limits."""
    if len(problem.limits) < 2:
        return False
    free = replace(problem, losses=np.zeros_like(problem.losses))
    ascent = _Ascent(free)
    unit = 1.0 / np.maximum(problem.capacities, 1)
    _ellipsoid(ascent, unit / 2, unit / 2, deadline)
    # Any positive bound says so, since all losses are 0.
    return certify(free, ascent.prices).value > 0.0
