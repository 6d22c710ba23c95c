"""The Lagrangian bound, safe against rounding.

For prices p >= 0 (one a limit) no feasible choice loses less than

    D(p) = sum over groups of min over options of (loss + p . weight)  -  p . capacity

Floats would lose D in the difference of two large sums. So let x be the choice that attains the minima; then
D(p) = loss(x) + p . (weight(x) - capacity), where weights and capacity are subtracted as integers first.
If rounding hides which option attains a minimum, that group's possible error is subtracted.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from solvers.arrays import FloatArray, IntArray, exact_sum
from solvers.reduction import Reduced, ragged_argmin

__all__ = ["Bound", "certify", "priced", "rounding", "slack_of", "total_loss"]


class Bound(NamedTuple):
    """`value` <= D(`prices`) <= every feasible loss; `choice` [groups] the flat indices that attain it."""

    value: float
    prices: FloatArray
    choice: IntArray
    slack: IntArray  # [limits] capacity - weight of the choice; negative where it breaks the limit


def rounding(limits: int) -> float:
    """Return a bound on the relative error of a priced loss: one rounding for each conversion, product and sum, twice
    over."""
    return (3 * limits + 2) * 2.0**-52


def priced(problem: Reduced, prices: FloatArray) -> FloatArray:
    """Return loss + prices . weight [options]; all terms are positive, so its relative error is at most `rounding`."""
    total = problem.losses.copy()
    with np.errstate(over="ignore"):  # an overflowing priced loss is never the minimum
        for price, row in zip(prices, problem.weights, strict=True):
            if price > 0.0:
                total += price * row
    return total


def certify(problem: Reduced, prices: FloatArray) -> Bound:
    """Return the bound that `prices` [limits] prove."""
    if not problem.starts.size:
        return Bound(0.0, prices, np.zeros(0, np.int64), problem.capacities)
    values = priced(problem, prices)
    choice = ragged_argmin(values, problem.offsets)
    slack = problem.capacities - problem.weights[:, choice].sum(axis=1)
    least = values[choice]
    doubt = rounding(len(prices)) * least + len(prices) * 2.0**-1073
    unsure = np.add.reduceat(values <= np.repeat(least + 2.0 * doubt, np.diff(problem.offsets)), problem.starts) > 1
    terms = [*problem.losses[choice].tolist(), *(-2.0 * doubt[unsure]).tolist()]
    for price, spare in zip(prices.tolist(), slack.tolist(), strict=True):
        terms.append(_below(Fraction(price) * -spare))
    value = math.fsum(terms) if all(map(math.isfinite, terms)) else -math.inf
    free = math.fsum(np.minimum.reduceat(problem.losses, problem.starts))  # the loss without any limits
    return Bound(max(0.0, math.nextafter(value, -math.inf), math.nextafter(free, 0.0)), prices, choice, slack)


def _below(exact: Fraction) -> float:
    """Return a float just below `exact`; minus infinity where that is out of range."""
    try:
        return math.nextafter(float(exact), -math.inf)
    except OverflowError:
        return -math.inf


def total_loss(problem: Reduced, choice: IntArray) -> float:
    """Return the sum of the losses of a choice (flat indices), correctly rounded."""
    return math.fsum(problem.losses[choice].tolist())


def slack_of(problem: Reduced, choice: IntArray) -> IntArray:
    """Return the slack [limits] of a choice (flat indices); negative where it breaks the limit."""
    used = np.array([exact_sum(row[choice]) for row in problem.weights], np.int64)
    return problem.capacities - used
