"""Draw the rows to measure.

Rows are drawn systematically, with probability proportional to the error that each is expected to have
(`Survey.expected_error`). Drawn rows then weigh about the same in the sum, so a few hundred suffice even where energies
span decades, and no heavy row can be missed. Draws nest: each stage doubles them and keeps the former. They depend on
the seed, the tensor's name and its rows alone.

Hansen and Hurwitz, "On the theory of sampling from finite populations", Ann. Math. Statist. 14 (1943).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST_DRAWS", "Stage", "stages"]

FIRST_DRAWS = 64  # fewer give standard errors that cannot be believed; 2^18 weights in rows of 4,096

_MOST_DRAWS = 16  # a row: where draws hardly ever reach most rows, to measure them all costs less than to go on


@dataclass(frozen=True)
class Stage:
    """Rows that a stage adds. `rows` are distinct row numbers, int64 [k]; `weights` are what a row's energy
    counts for in the sum over all rows, float64 [k]; `draws` how often each was drawn.

    In the last stage, `exhaustive`, every row that has energy is measured, once, and counts for itself.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    draws: NDArray[np.int64]
    exhaustive: bool


def stages(expected: NDArray[np.float64], massive: NDArray[np.float64], seed: int, name: str) -> Iterator[Stage]:
    """Yield stages of draws until all rows are in.

    `expected` and `massive` are the rows' expected errors in ordinary and massive channels, float64 [rows], up to a
    factor. Where there are massive channels, half of the probability goes to each. Rows expected to have none are
    left out.
    """
    probability = _normalized(expected)
    if massive.any():
        probability = (probability + _normalized(massive)) / 2
    cumulated = np.cumsum(probability)
    cumulated /= cumulated[-1]
    positive = np.flatnonzero(probability > 0)
    offset = _uniform(seed, name)
    drawn, step = FIRST_DRAWS, 1
    seen: set[int] = set()
    while True:
        # step 1 at first: k = 0, 1, 2 …; later only odd k are new among k / drawn
        positions = (offset / FIRST_DRAWS + np.arange(step - 1, drawn, step) / drawn) % 1.0
        rows, draws = np.unique(np.searchsorted(cumulated, positions, side="right"), return_counts=True)
        rows = np.minimum(rows, len(expected) - 1)
        seen.update(rows.tolist())
        if 2 * len(seen) > len(positive) or drawn > _MOST_DRAWS * len(positive):
            yield Stage(positive, np.ones(len(positive)), np.ones(len(positive), dtype=np.int64), True)
            return
        yield Stage(rows, 1.0 / probability[rows], draws, False)
        drawn, step = 2 * drawn, 2


def _normalized(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    total = expected.sum()
    return expected / total if total > 0 else np.full(len(expected), 1.0 / len(expected))


def _uniform(seed: int, name: str) -> float:
    """Return a number in [0, 1) from the seed and the tensor's name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:6], "big") / 2**48
