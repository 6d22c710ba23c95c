"""What other tools do: greedy by ratio, and a bisection on one price with greedy filling. One limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers import Problem

Picks = NDArray[np.int64]


def _matrix(problem: Problem) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(weights, losses) [groups, options], padded with infinities."""
    counts = np.diff(problem.offsets)
    index = problem.offsets[:-1, None] + np.arange(counts.max())
    valid = np.arange(counts.max()) < counts[:, None]
    index[~valid] = 0
    return (
        np.where(valid, problem.weights[0][index], np.inf),
        np.where(valid, problem.losses[index], np.inf),
    )


def greedy_by_ratio(problem: Problem) -> Picks:
    """From the lightest options, always the upgrade that saves most loss per byte and fits, until none does."""
    import heapq

    weights, losses = _matrix(problem)
    picks = weights.argmin(axis=1)
    room = float(problem.capacities[0]) - sum(weights[np.arange(len(picks)), picks].tolist())

    def steps(g: int) -> tuple[float, int, int] | None:
        more, saved = weights[g] - weights[g, picks[g]], losses[g, picks[g]] - losses[g]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where((saved > 0) & (more <= room), saved / np.maximum(more, 1.0), -np.inf)
        k = int(ratio.argmax())
        return (-float(ratio[k]), g, k) if ratio[k] > -np.inf else None

    heap = [step for g in range(len(picks)) if (step := steps(g)) is not None]
    heapq.heapify(heap)
    while heap:
        _, g, k = heapq.heappop(heap)
        more = weights[g, k] - weights[g, picks[g]]
        if more <= room:
            room -= more
            picks[g] = k
        if (step := steps(g)) is not None:
            heapq.heappush(heap, step)
    return picks


def bisection_and_greedy(problem: Problem) -> Picks:
    """Bisect the price until the cheapest priced options fit, then upgrade by what saves most, while it fits."""
    weights, losses = _matrix(problem)
    rows, capacity = np.arange(len(weights)), float(problem.capacities[0])
    finite = np.where(np.isfinite(weights), weights, 0.0)
    low, high = 0.0, float(np.nanmax(losses[np.isfinite(losses)]))
    for _ in range(200):
        price = (low + high) / 2
        picks = (losses + price * finite).argmin(axis=1)
        low, high = (low, price) if weights[rows, picks].sum() <= capacity else (price, high)
    picks = (losses + high * finite).argmin(axis=1)
    while True:
        room = capacity - weights[rows, picks].sum()
        saved = losses[rows, picks][:, None] - losses
        saved[weights - weights[rows, picks][:, None] > room] = -np.inf
        g, k = np.unravel_index(int(saved.argmax()), saved.shape)
        if not saved[g, k] > 0:
            return picks
        picks[g] = k
