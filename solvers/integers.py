"""Integer form of the core, for the solvers that need it (CP-SAT, MIP).

Weights are shifted by the least of each group and divided by their greatest common divisor. Losses are scaled by one
power of two, which is kept, and rounded down: their sums are lower bounds, off by less than one unit a group.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from solvers.arrays import FloatArray
from solvers.core import Core

__all__ = ["Integers", "integers"]

RESOLUTION = 2.0**46  # units of the widest sum of losses; products of bounds stay far from 64 bits


class Integers(NamedTuple):
    """Minimize base + scale * (sum of `losses`), with the sums of each row of `weights` at most `capacities`."""

    losses: list[list[int]]  # by core group, by option; the least of each is 0
    weights: list[list[list[int]]]  # by limit, by core group, by option; the least of each is 0
    capacities: list[int]
    base: float  # the excess over the core's bound where all are 0, surely not above it
    scale: float

    def excess(self, units: float) -> float:
        """Return the least excess over the core's bound if the sum of `losses` is at least `units`."""
        return self.base + self.scale * units * (1.0 - 2.0**-50)


def integers(core: Core, losses: FloatArray) -> Integers:
    """Return the core in integers. `losses` [options] are the reduced problem's."""
    weights, capacities = [], []
    for i, slack in enumerate(core.slack.tolist()):
        rows = [[int(w) - int(item.weight[i].min()) for w in item.weight[i]] for item in core.groups]
        capacity = slack - sum(int(item.weight[i].min()) for item in core.groups)
        divisor = math.gcd(*(w for row in rows for w in row)) or 1
        weights.append([[w // divisor for w in row] for row in rows])
        capacities.append(capacity // divisor)
    values = [losses[item.options] for item in core.groups]
    span = sum(float(np.ptp(value)) for value in values)
    scale = 2.0 ** (math.frexp(span / RESOLUTION)[1] if span > 0.0 else 0)
    scale = max(scale, 2.0**-1000)
    safe = 1.0 - 2.0**-50
    rows = [[int((loss - float(value.min())) / scale * safe) for loss in value.tolist()] for value in values]
    # Relative to the bound, the bound's choice has an excess of prices . slack.
    base = math.fsum(float(value.min()) - float(value[0]) for value in values)
    base += float(core.bound.prices @ core.slack.astype(np.float64)) - core.error
    base -= 2.0**-50 * (math.fsum(float(value.max()) for value in values) + abs(base))
    return Integers(rows, weights, capacities, base, scale)
