"""Dynamic programming over the core: exact while it fits, a beam with a valid bound when it does not.

A state is the reduced cost of the choices so far, and the slack left if all remaining groups keep the bound's choice.
States are dropped for one of three reasons: another dominates them in slack and loss; their lower bound (`completion`)
is not below the best known answer; or there are more than `width`. Only the last loses anything, and the least bound of
all states lost that way bounds the part that was not searched.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from solvers.arrays import FloatArray, IntArray
from solvers.completion import Completion
from solvers.core import Core
from solvers.task import Found

__all__ = ["search"]

NEIGHBOURS = 24  # with several limits a state is compared with this many before it


class _Step(NamedTuple):
    """[states] after one more group: the predecessor of each, and the option taken."""

    parent: NDArray[np.int32]
    option: NDArray[np.int32]


def search(core: Core, room: float, width: int, deadline: float) -> Found:
    """Find the cheapest choice with an excess below `room` over the core's bound, unless `width` or time runs out."""
    completion = Completion(core)
    prices = core.bound.prices
    cost, slack = np.zeros(1), core.slack[:, None].copy()
    steps: list[_Step] = []
    best, where = _best(cost, slack, prices, room, (-1, -1), 0)
    lost = np.inf
    for stage, item in enumerate(core.groups):
        if time.monotonic() > deadline:
            lost = min(lost, float(completion.bound(stage, cost, slack).min(initial=np.inf)))
            break
        if item.cost[1] >= best:  # dearer than what is known: it keeps the bound's choice, and states stay as they are
            steps.append(_kept(cost.size))
            continue
        cost = (cost[:, None] + item.cost).ravel()
        slack = (slack[:, :, None] - item.weight[:, None, :]).reshape(len(prices), -1)
        least = completion.bound(stage + 1, cost, slack)
        alive = np.flatnonzero(least < best)
        alive = alive[_undominated(cost[alive], slack[:, alive], prices, completion.usable[stage + 1])]
        if alive.size > width:
            kept = _spread(least[alive], width)
            dropped = np.ones(alive.size, bool)
            dropped[kept] = False
            lost = min(lost, float(least[alive[dropped]].min()))
            alive = alive[kept]
        parent, option = np.divmod(alive, item.cost.size)
        steps.append(_Step(parent.astype(np.int32), option.astype(np.int32)))
        cost, slack = cost[alive], slack[:, alive]
        best, where = _best(cost, slack, prices, best, where, stage + 1)
    error = core.error + 2.0**-50 * (len(core.groups) + 4 * len(prices) + 4) * max(best, 0.0)
    choice = _trace(core, steps, where) if where[0] >= 0 else None
    return Found(choice, min(best, lost) - error, not np.isfinite(lost))


def _kept(states: int) -> _Step:
    return _Step(np.arange(states, dtype=np.int32), np.zeros(states, np.int32))


def _best(
    cost: FloatArray, slack: IntArray, prices: FloatArray, best: float, where: tuple[int, int], stage: int
) -> tuple[float, tuple[int, int]]:
    """Return the better of `best` and the best state that is feasible with the bound's choice in all remaining
    groups."""
    fits = np.flatnonzero((slack >= 0).all(axis=0))
    if fits.size:
        excess = cost[fits] + prices @ slack[:, fits]
        k = int(excess.argmin())
        if excess[k] < best:
            return float(excess[k]), (stage, int(fits[k]))
    return best, where


def _undominated(cost: FloatArray, slack: IntArray, prices: FloatArray, usable: IntArray) -> IntArray:
    """Return indices of the undominated states in slack and loss, ordered by slack.

    Slack beyond what is `usable` does not count, so limits whose groups are all decided drop out. With one limit left
    all dominated states go; with several only those that a neighbour in the order dominates.
    """
    if cost.size < 2:
        return np.arange(cost.size)
    loss = cost + prices @ slack  # up to a constant
    useful = np.minimum(slack, usable[:, None])
    useful = useful[(useful != useful[:, :1]).any(axis=1)]
    order = np.lexsort((loss, *-useful[::-1]))
    loss, useful = loss[order], useful[:, order]
    keep = np.ones(order.size, bool)
    if len(useful) <= 1:
        keep[1:] = loss[1:] < np.minimum.accumulate(loss)[:-1]
        return order[keep]
    for shift in range(1, min(NEIGHBOURS, order.size)):
        worse = loss[shift:] >= loss[:-shift]
        for row in useful[1:]:
            worse &= row[shift:] <= row[:-shift]
        keep[shift:] &= ~worse
    return order[keep]


def _spread(least: FloatArray, width: int) -> IntArray:
    """Return `width` of the states, in their order: half of them with the least bound, half the best among
    neighbours."""
    order = np.argsort(least, kind="stable")
    first, rest = order[: width // 2], np.sort(order[width // 2 :])
    chunk = np.arange(rest.size) * (width - width // 2) // rest.size
    best = np.lexsort((least[rest], chunk))
    heads = best[np.concatenate([np.ones(1, bool), chunk[best][1:] != chunk[best][:-1]])]
    return np.sort(np.concatenate([first, rest[heads]]))


def _trace(core: Core, steps: list[_Step], where: tuple[int, int]) -> dict[int, int]:
    stage, state = where
    choice = {item.group: int(item.options[0]) for item in core.groups}
    for item, step in zip(core.groups[:stage][::-1], steps[:stage][::-1], strict=True):
        choice[item.group] = int(item.options[step.option[state]])
        state = int(step.parent[state])
    return choice
