"""Reduced-cost fixing: extract the options that the bound leaves open.

Prices p make every option's reduced cost r = (loss + p . weight) - (the least of its group) >= 0, and for any choice

    loss = D(p) + sum of reduced costs + p . slack

An option with D(p) + r >= threshold belongs to no choice below the threshold. Groups with one option left are
settled; the others are the core.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from solvers.arrays import FloatArray, IntArray
from solvers.bound import Bound, priced, rounding
from solvers.reduction import Reduced

__all__ = ["Core", "CoreGroup", "extract"]


class CoreGroup(NamedTuple):
    """The open options of a group, the bound's own choice first, then by reduced cost."""

    group: int
    options: IntArray  # flat indices
    cost: FloatArray  # reduced costs; cost[0] = 0
    weight: IntArray  # [limits, options] relative to the first; may be negative


class Core(NamedTuple):
    """Open groups, the weightiest first. With the bound's choice everywhere, `slack` is left.

    Weighty first, because they decide what can fit at all, and are few and alike in real models; a linear relaxation is
    almost exact for the many light ones.
    """

    groups: tuple[CoreGroup, ...]
    bound: Bound
    slack: IntArray  # [limits], may be negative
    error: float  # reduced costs plus prices times weights of any choice are off by at most this, in all


def extract(problem: Reduced, bound: Bound, threshold: float) -> Core:
    """Return the core of the choices with a loss below `threshold`."""
    values = priced(problem, bound.prices)
    relative = 4.0 * rounding(len(bound.prices))
    least = values[bound.choice]
    room = threshold - bound.value
    group = problem.group
    cost = np.maximum(values - least[group], 0.0)
    cost[bound.choice] = 0.0
    # Where the priced loss overflowed, the reduced cost is beyond any sum of losses (see `LARGEST_LOSS`).
    is_open = np.isfinite(values) & (cost <= room + relative * (values + least[group]))
    is_open[bound.choice] = True
    counts = np.add.reduceat(is_open.astype(np.int64), problem.starts) if cost.size else np.zeros(0, np.int64)
    flat = np.flatnonzero(is_open & (counts[group] > 1))
    flat = flat[np.lexsort((cost[flat], flat != bound.choice[group[flat]], group[flat]))]
    open_groups = np.flatnonzero(counts > 1)
    pieces = np.split(flat, np.cumsum(counts[open_groups])[:-1])
    groups = [
        CoreGroup(g, options, cost[options], problem.weights[:, options] - problem.weights[:, options[:1]])
        for g, options in zip(open_groups.tolist(), pieces, strict=open_groups.size > 0)
    ]
    groups.sort(key=lambda item: -float((bound.prices @ np.abs(item.weight)).max()))
    dearest = np.maximum.reduceat(np.where(is_open, values, 0.0), problem.starts) if cost.size else np.zeros(0)
    error = float(dearest[open_groups].sum())
    error += float(bound.prices @ np.abs(bound.slack))
    return Core(tuple(groups), bound, bound.slack, relative * error)
