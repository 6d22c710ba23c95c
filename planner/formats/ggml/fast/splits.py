"""What iq1_s and iq1_m have in common: weights are sorted, and split at two places into three levels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import part
from planner.compiled.lanes import LANES, load, some, spread

__all__ = ["LEVELS", "LOWEST", "add", "assign", "choose", "code_of", "largest", "sort"]

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

LEVELS = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)
"""Two sets of levels, of which a group has one: with ± IQ1S_DELTA."""
LOWEST = np.float32(np.finfo(np.float32).min)
"""The score that any beats."""
_ZERO = np.float32(0)


@part
def sort(x: Floats, at: int, n: int, order: Numbers) -> None:
    """Put the places of n numbers, the smallest first, into `order`; equal ones as they come: qsort of glibc."""
    for j in range(n):
        value, k = x[at + j], j
        while k > 0 and x[at + order[k - 1]] > value:
            order[k] = order[k - 1]
            k -= 1
        order[k] = j


@part
def largest(x: Floats, at: int, n: int) -> Any:
    """Return the largest magnitude of n numbers."""
    most = abs(x[at])
    for i in range(at + 1, at + n):
        most = max(most, abs(x[i]))
    return most


@part
def choose(
    qx: Floats, q2: Floats, kinds: int, lanes: Numbers, first: int, count: int, best: Any, found: Numbers
) -> Any:
    """Return the best score after `count` second places, from `first` on, of pairs that are tried in `kinds` ways, and
    the scale in qx[-1]. `found`: the first and second place, and the way."""
    limit = spread(np.int32(count))
    better = load(lanes, 0) < spread(np.int32(0))
    for kind in range(kinds):
        x, w = load(qx, kind * LANES), load(q2, kind * LANES)
        better = better | ((w > _ZERO) & (x * x > w * best) & (load(lanes, 0) < limit))
    if some(better):
        for lane in range(count):
            for kind in range(kinds):
                x, w = qx[kind * LANES + lane], q2[kind * LANES + lane]
                if w > 0 and x * x > best * w:
                    scale = x / w
                    best = scale * x
                    qx[-1] = scale
                    found[1], found[2] = first + lane, kind
                    found[0] = found[3]
    return best


@part
def assign(order: Numbers, n: int, found: Numbers, flip: bool, levels: Numbers) -> None:
    """Put the levels of n weights, sorted, into `levels`: those of a split, or `flip` its mirror image."""
    for j in range(n):
        level = 0 if j < found[0] else 1 if j < found[1] else 2
        levels[order[j]] = 2 - level if flip else level


@part
def code_of(levels: Numbers, begin: int) -> Any:
    """Return the code of the point of eight levels."""
    code: Any = 0
    for j in range(8):
        code |= np.int64(levels[begin + j]) << 2 * j
    return code


@part
def add(qx: Any, q2: Any, x: Floats, at: int, w: Floats, begin: int, code: int, values: Floats, factor: Any) -> Any:
    """Add what eight weights add to sums of w q x and w q q."""
    for j in range(8):
        q = values[code >> 2 * j & 3] * factor
        weight = w[begin + j] * q
        qx += weight * x[at + j]
        q2 += weight * q
    return qx, q2
