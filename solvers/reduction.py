"""A smaller problem with the same best answers: limits that always hold and dominated options are dropped.

Weights are counted from the least weight that each group has in that limit, and capacities lose
what those sum to: all that remains is the choice, and sums of weights are as small as they can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.problem import FloatArray, IntArray, Problem, exact_sum

__all__ = ["Reduced", "ragged_argmin", "reduce", "starts_of"]

WIDEST_COMPARISON = 256  # with several limits an option is compared with so many before it


@dataclass(frozen=True, slots=True)
class Reduced:
    """Flat arrays as in `Problem`; each group is sorted by weight, then by loss.

    `capacities` [limits] are not negative; `limits` are the indices of the limits that are left; `origin` [options]
    is the index of each option in `Problem`'s flat arrays.
    """

    offsets: IntArray
    losses: FloatArray
    weights: IntArray  # [limits, options], >= 0, the least of each group is 0
    capacities: IntArray
    limits: tuple[int, ...]
    origin: IntArray

    @property
    def starts(self) -> IntArray:
        """Where each group starts."""
        return self.offsets[:-1]

    @property
    def group(self) -> IntArray:
        """[options] the group of each option."""
        return np.repeat(np.arange(self.starts.size), np.diff(self.offsets))

    def subset(self, keep: NDArray[np.bool_]) -> Reduced:
        """The same with the options of `keep` only; every group must keep one. Weights stay as they are."""
        counts = np.add.reduceat(keep.astype(np.int64), self.starts) if keep.size else np.zeros(0, np.int64)
        return Reduced(
            starts_of(counts),
            self.losses[keep],
            self.weights[:, keep],
            self.capacities,
            self.limits,
            self.origin[keep],
        )


def starts_of(counts: IntArray) -> IntArray:
    """Offsets [groups + 1] from the numbers of options."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def reduce(problem: Problem) -> Reduced | None:
    """Drop what cannot matter. `None` if some limit is below the least that its groups can weigh."""
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
    order = np.lexsort((problem.losses, *weights[::-1], group))
    keep = _undominated(group[order], problem.losses[order], weights[:, order])
    origin = order[keep]
    return Reduced(
        starts_of(np.bincount(group[origin], minlength=len(problem))),
        problem.losses[origin],
        weights[:, origin],
        np.array(capacities, np.int64),
        tuple(limits),
        origin,
    )


def _undominated(group: IntArray, losses: FloatArray, weights: IntArray) -> NDArray[np.bool_]:
    """Which options no other of their group equals or betters in every weight and the loss. Sorted as in `Reduced`."""
    count = group.size
    if len(weights) <= 1:
        # Sorted by weight, an option is dominated unless its loss is below every loss before it in its group: a
        # running minimum over ranks, made to restart at each group by giving later groups lower values.
        rank = np.unique(losses, return_inverse=True)[1]
        keyed = rank - group * (count + 1)
        before = np.concatenate([np.full(1, count + 1), np.minimum.accumulate(keyed)[:-1]])
        first = np.concatenate([np.ones(1, bool), group[1:] != group[:-1]])[:count]
        return first | (keyed < before[:count])
    keep = np.ones(count, bool)
    for shift in range(1, min(count, WIDEST_COMPARISON)):
        same = group[shift:] == group[:-shift]
        if not same.any():
            break
        worse = same & (losses[shift:] >= losses[:-shift])
        for row in weights:
            worse &= row[shift:] >= row[:-shift]
        keep[shift:] &= ~worse
    return keep


def ragged_argmin(values: FloatArray, offsets: IntArray) -> IntArray:
    """[groups] the flat index of the first least value of each group."""
    least = np.repeat(np.minimum.reduceat(values, offsets[:-1]), np.diff(offsets))
    hits = np.flatnonzero(values == least)
    return hits[np.searchsorted(hits, offsets[:-1])]
