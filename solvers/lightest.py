"""The question the other way round: the least weight under one limit at which losses sum to at most so much.

A bisection over that limit's capacity, each step one exact solve. The convex hull of (weight, loss) brackets it: no
choice lies below the hull, so the weight at which the hull comes down to the loss is proven to be needed, and the
corner after it is a choice that does; less than one step of one group lies between them. A capacity whose proven bound
is above the loss raises what is needed; a choice that loses little enough lowers what does, to its own weight.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from solvers.arrays import exact_sum
from solvers.check import check
from solvers.driver import attempt, solve
from solvers.errors import ProblemError
from solvers.problem import Problem
from solvers.solution import Solution
from solvers.sweep import Frontier, frontier

__all__ = ["Lightest", "lightest"]

_ROUNDING = 1e-12  # relative; sums of losses in another order differ by no more
_MARGIN = 1e-9  # for the rounding of the hull's corners


class Lightest(NamedTuple):
    """`solution` answers `problem`, whose limit has been lowered to what the answer weighs.

    No choice that loses so little weighs less than `least`, in the units of the limit's capacity: that is proven.
    `found` tells whether there is a choice that does. If not, `solution` is one of least loss, and `least` is None if
    it is proven that there is none.
    """

    problem: Problem
    solution: Solution
    least: int | Fraction | None
    found: bool


def lightest(
    problem: Problem,
    limit: str,
    most: float,
    *,
    method: str = "auto",
    gap: float = 1e-6,
    time_limit: float | None = 60.0,
) -> Lightest:
    """Find the choice of least weight under `limit` whose losses sum to at most `most`, within all limits.

    Ends when (weight - least) / weight <= `gap`, or when the time of all solves together is up. Among choices of that
    weight it is one of least loss, up to `gap`. Raises `ProblemError` for a `most` below 0, and what `solve` raises.
    """
    if not most >= 0.0:
        raise ProblemError(f"the losses are to be at most {most}: give a number of at least 0")
    row, started = problem.limit(limit), time.monotonic()
    deadline = math.inf if time_limit is None else started + time_limit
    enough = most * (1.0 + _ROUNDING)

    def left() -> float | None:
        return None if time_limit is None else max(deadline - time.monotonic(), 0.0)

    def within(capacity: int) -> Solution | None:
        under = problem.with_capacity(limit, problem.unscaled(row, capacity))
        return attempt(under, method=method, gap=gap, time_limit=left())

    place = _places(problem, row)
    low, corner = _bracket(frontier(problem, limit), enough)
    low = place(low)
    best = within(corner) if corner is not None and corner < problem.capacities[row] else None
    if best is None or not best.loss <= enough:  # other limits are in the way
        best = solve(problem, method=method, gap=gap, time_limit=left())
    if not best.loss <= enough:
        none = corner is None or best.bound > enough
        return Lightest(problem, best, None if none else problem.unscaled(row, low), found=False)
    least, high = low, _weight(problem, best, row)
    while high - low > gap * high and time.monotonic() < deadline:
        middle = (low + high) // 2
        tried = within(middle)
        if tried is not None and tried.loss <= enough:
            best, high = tried, _weight(problem, tried, row)
            continue
        low = place(middle + 1)
        if tried is None or tried.bound > enough:
            least = low
    lowered = problem.with_capacity(limit, problem.unscaled(row, high))
    usage = (use._replace(capacity=lowered.limits[i].capacity) for i, use in enumerate(best.usage))
    best = best._replace(usage=tuple(usage), seconds=time.monotonic() - started)
    return Lightest(lowered, best, problem.unscaled(row, min(least, high)), found=True)


def _places(problem: Problem, row: int) -> Callable[[int], int]:
    """Return the function that raises a weight to the next that a choice can have, as far as common divisors tell:
    files are padded, so that their sizes are some bytes apart."""
    weights, starts = problem.weights[row], problem.offsets[:-1]
    if not len(problem):
        return lambda weight: weight
    least = np.minimum.reduceat(weights, starts)
    step = int(np.gcd.reduce(weights - np.repeat(least, np.diff(problem.offsets)))) or 1
    base = exact_sum(least)
    return lambda weight: base + -(-(weight - base) // step) * step


def _bracket(hull: Frontier, enough: float) -> tuple[int, int | None]:
    """Return a weight (scaled) that is needed, whatever the other limits, and that of the first corner which loses
    little enough; None if no corner does, up to rounding."""
    losses, weights = hull.losses.tolist(), hull.weights.tolist()
    corner = next((k for k, loss in enumerate(losses) if loss <= enough), None)
    last = len(losses) - 1 if corner is None else corner
    if last == 0:
        return weights[0], weights[0] if corner == 0 else None
    before, after = losses[last - 1], losses[last]
    way = (before - enough) / (before - after) if before > after else 0.0
    needed = weights[last - 1] + int((weights[last] - weights[last - 1]) * min(max(way - _MARGIN, 0.0), 1.0))
    return needed, None if corner is None else weights[corner]


def _weight(problem: Problem, solution: Solution, row: int) -> int:
    assert solution.picks is not None
    return check(problem, solution.picks).used[row]
