"""Reduce a problem to one with the same best answers: drop limits that always hold, and dominated options.

Weights are counted from the least weight of each group in that limit, and capacities are lowered by the sum of those,
so that sums of weights are as small as they can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.arrays import LARGEST_TOTAL, FloatArray, IntArray, exact_sum
from solvers.problem import Problem

__all__ = ["Reduced", "ragged_argmin", "reduce", "reduce_under", "starts_of"]

WIDEST_COMPARISON = 256  # with several limits an option is compared with this many before it


@dataclass(frozen=True, slots=True)
class Reduced:
    """Flat arrays as in `Problem`; each group is sorted by weight, then by loss.

    `capacities` [limits] are not negative; `limits` are the indices of the remaining limits; `origin` [options] is the
    index of each option in `Problem`'s flat arrays.
    """

    offsets: IntArray
    losses: FloatArray
    weights: IntArray  # [limits, options], >= 0, the least of each group is 0
    capacities: IntArray
    limits: tuple[int, ...]
    origin: IntArray

    @property
    def starts(self) -> IntArray:
        """Index of the first option of each group [groups]."""
        return self.offsets[:-1]

    @property
    def group(self) -> IntArray:
        """Group of each option [options]."""
        return np.repeat(np.arange(self.starts.size), np.diff(self.offsets))


def starts_of(counts: IntArray) -> IntArray:
    """Return offsets [groups + 1] from the numbers of options."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def reduce(problem: Problem) -> Reduced | None:
    """Drop limits that always hold and dominated options. Return `None` if a limit is below the least total weight of
    its groups."""
    offsets, starts = problem.offsets, problem.offsets[:-1]
    group = np.repeat(np.arange(len(problem)), np.diff(offsets))
    rows, capacities, limits = [], [], []
    for i, row in enumerate(problem.weights):
        if not len(problem):
            if problem.capacities[i] < 0:
                return None
            continue
        least, most = np.minimum.reduceat(row, starts), np.maximum.reduceat(row, starts)
        spare = problem.capacities[i] - exact_sum(least)
        if spare < 0:
            return None
        if spare < exact_sum(most - least):
            rows.append(row - least[group])
            capacities.append(spare)
            limits.append(i)
    weights = np.array(rows, np.int64).reshape(len(rows), group.size)
    return reduce_under(problem, weights, np.array(capacities, np.int64), tuple(limits))


def reduce_under(problem: Problem, weights: IntArray, capacities: IntArray, limits: tuple[int, ...]) -> Reduced:
    """Drop options that are dominated under these `weights` [limits, options]."""
    origin = _undominated(problem.offsets, problem.losses, weights)
    group = np.repeat(np.arange(len(problem)), np.diff(problem.offsets))
    counts = np.bincount(group[origin], minlength=len(problem))
    return Reduced(starts_of(counts), problem.losses[origin], weights[:, origin], capacities, limits, origin)


def _undominated(offsets: IntArray, losses: FloatArray, weights: IntArray) -> IntArray:
    """Return flat indices of the undominated options: no other of their group is as good in every weight and in loss.

    Sorted by group, then by weight, then by loss. Groups of like size are padded to one matrix [groups, options]:
    sorting many short rows is several times faster than one long sort.
    """
    counts = np.diff(offsets)
    classes = np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64)
    kept: list[IntArray] = []
    owner: list[IntArray] = []
    for size_class in np.flatnonzero(np.bincount(classes)):
        groups = np.flatnonzero(classes == size_class)
        width = int(counts[groups].max())
        index = offsets[groups, None] + np.arange(width)
        valid = np.arange(width) < counts[groups, None]
        index[~valid] = 0
        loss = np.where(valid, losses[index], np.inf)
        rows = [np.where(valid, row[index], LARGEST_TOTAL) for row in weights]
        order = np.argsort(loss, axis=1, kind="stable")
        for row in reversed(rows):
            order = np.take_along_axis(order, np.argsort(np.take_along_axis(row, order, 1), axis=1, kind="stable"), 1)
        loss, index = np.take_along_axis(loss, order, 1), np.take_along_axis(index, order, 1)
        rows = [np.take_along_axis(row, order, 1) for row in rows]
        which, column = np.nonzero(np.isfinite(loss) & _not_after_better(loss, rows))
        kept.append(index[which, column])
        owner.append(groups[which])
    if not kept:
        return np.zeros(0, np.int64)
    return np.concatenate(kept)[np.argsort(np.concatenate(owner), kind="stable")]


def _not_after_better(loss: FloatArray, rows: list[IntArray]) -> NDArray[np.bool_]:
    """Mark options [groups, options] that no earlier one equals in everything, sorted by `rows` and then by `loss`."""
    keep = np.ones(loss.shape, bool)
    if len(rows) <= 1:
        best = np.minimum.accumulate(loss, axis=1)
        keep[:, 1:] = loss[:, 1:] < best[:, :-1] if rows else False
        return keep
    for shift in range(1, min(loss.shape[1], WIDEST_COMPARISON)):
        worse = loss[:, shift:] >= loss[:, :-shift]
        for row in rows:
            worse &= row[:, shift:] >= row[:, :-shift]
        keep[:, shift:] &= ~worse
    return keep


def ragged_argmin(values: FloatArray, offsets: IntArray) -> IntArray:
    """Return the flat index [groups] of the first least value of each group."""
    least = np.repeat(np.minimum.reduceat(values, offsets[:-1]), np.diff(offsets))
    hits = np.flatnonzero(values == least)
    return hits[np.searchsorted(hits, offsets[:-1])]
