"""Draw the rows to measure.

Rows are drawn systematically, with probability proportional to the error that each is expected to have
(`Survey.expected_error`). Drawn rows then weigh about the same in the sum, so a few suffice even where energies
span decades, and no heavy row can be missed. Draws nest: each stage doubles them and keeps the former. They depend on
the seed, the tensor's name, its rows and how many are drawn at first.

Hansen and Hurwitz, "On the theory of sampling from finite populations", Ann. Math. Statist. 14 (1943).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Stage", "first_draws", "stages"]

# Fewer give standard errors that cannot be believed: of a format, and of all together that tell each other's spread
_LEAST_DRAWS = 16
_LEAST_TOGETHER = 64
_MOST_DRAWS = 16  # a row: where draws hardly ever reach most rows, to measure them all costs less than to go on


@dataclass(frozen=True)
class Stage:
    """What is drawn when a stage begins. `fresh` are the rows that no stage before had, ascending, int64 [k]; `rows`
    the row of every draw so far, int64 [n], ascending; `weights` what a draw's error counts for in the sum over all
    rows, n times over, float64 [n]; `known` what draws say of sums that are known to be 1, of every kind of error that
    is expected, float64 [k, n]; `share` the rows drawn so far as a share of all that have energy.

    In the last stage, `exhaustive`, every row that has energy is in, once, and counts for itself.
    """

    fresh: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    known: NDArray[np.float64]
    share: float
    exhaustive: bool


def first_draws(rows: int, formats: int) -> int:
    """Return how many of a tensor's rows to draw at first, a power of two, for a number of formats that are measured
    on the same.

    At the best recipe a tensor's loss goes with its number of weights, and what is lost by a mistaken error is that
    times the square of the mistake, as 1 / draws. The least of it for the work, draws times the length of a row, is
    where draws go with the root of the number of rows. Half of that root does (benchmarks/tolerance.py).
    """
    draws = _LEAST_DRAWS
    while draws * formats < _LEAST_TOGETHER or 2 * draws < math.sqrt(rows):
        draws *= 2
    return draws


def stages(
    expected: NDArray[np.float64], massive: NDArray[np.float64], seed: int, name: str, first: int
) -> Iterator[Stage]:
    """Yield stages of draws until all rows are in; `first` is the number of draws of the first.

    `expected`, float64 [kinds, rows], are the rows' expected errors in ordinary channels, for kinds of formats, and
    `massive`, float64 [rows], those in massive ones, up to factors. Kinds share the probability; where there are
    massive channels, half of it goes to them. Rows expected to have none are left out.
    """
    parts = [_normalized(each) for each in expected]
    probability: NDArray[np.float64] = np.mean(parts, axis=0)
    if massive.any():
        parts.append(_normalized(massive))
        probability = (probability + parts[-1]) / 2
    known = np.divide(parts, probability, out=np.ones((len(parts), len(probability))), where=probability > 0)
    cumulated = np.cumsum(probability)
    cumulated /= cumulated[-1]
    positive = np.flatnonzero(probability > 0)
    offset = _uniform(seed, name) / first
    drawn, seen = first, np.zeros(0, dtype=np.int64)
    while True:
        positions = (offset + np.arange(drawn) / drawn) % 1.0
        rows = np.sort(np.minimum(np.searchsorted(cumulated, positions, side="right"), len(probability) - 1))
        distinct = np.union1d(seen, rows)
        if 2 * len(distinct) > len(positive) or drawn > _MOST_DRAWS * len(positive):
            once = np.ones(len(positive))
            yield Stage(np.setdiff1d(positive, seen), positive, once, known[:, positive], 1.0, True)
            return
        fresh, share = np.setdiff1d(rows, seen), len(distinct) / len(positive)
        yield Stage(fresh, rows, 1.0 / probability[rows], known[:, rows], share, False)
        drawn, seen = 2 * drawn, distinct


def _normalized(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    total = expected.sum()
    return expected / total if total > 0 else np.full(len(expected), 1.0 / len(expected))


def _uniform(seed: int, name: str) -> float:
    """Return a number in [0, 1) from the seed and the tensor's name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big") / 2**48
