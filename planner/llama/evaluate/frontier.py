"""Which of several results are worth their size: the frontier of sizes and divergences, with what chance may explain.

Divergences of two models are of the same tokens, so their difference is known much better than either. It is taken
window by window, as tokens within a window are correlated; of few windows, errors are taken as independent, which errs
to the side of calling it a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.llama.evaluate.results import Compared

__all__ = ["SURE", "Standing", "difference", "standings"]

SURE = 3.0
"""Standard errors by which one has to be better: among twenty files there are nearly two hundred pairs."""
_FEWEST_WINDOWS = 8


@dataclass(frozen=True, slots=True)
class Standing:
    """`frontier`: better than whatever is as small or smaller; `beaten`: something of that size or smaller is better,
    beyond chance; `tie`: something is as good, as far as can be told. `by` is its name."""

    kind: Literal["frontier", "tie", "beaten"]
    by: str | None = None


def difference(a: Compared, b: Compared) -> tuple[float, float]:
    """Return the mean divergence (nats) of `a` less that of `b`, and its standard error."""
    first, second = a.statistics.kld, b.statistics.kld
    if not (math.isfinite(first.value) and math.isfinite(second.value)):
        return (0.0 if first.value == second.value else math.inf * (1 if first.value > second.value else -1)), 0.0
    windows = min(len(a.klds), len(b.klds))
    if windows < _FEWEST_WINDOWS or len(a.klds) != len(b.klds):
        return first.value - second.value, math.hypot(first.error, second.error)
    pairs = np.array(a.klds) - np.array(b.klds)
    return float(pairs.mean()), float(pairs.std(ddof=1) / math.sqrt(windows))


def standings(results: Sequence[Compared]) -> dict[str, Standing]:
    """Return how each stands among all, by its name.

    A recipe in memory, whose activations are exact, is not held against a file, whose activations are rounded; a file
    is held against it.
    """
    return {result.name: _standing(result, results) for result in results}


def _standing(result: Compared, results: Sequence[Compared]) -> Standing:
    better, tied = [], []
    for other in results:
        if other is result or other.bytes > result.bytes or (other.exact_activations and not result.exact_activations):
            continue
        value, error = difference(result, other)
        if value > SURE * error and value > 0:
            better.append(other)
        elif not value < -SURE * error:
            tied.append(other)
    if better:
        return Standing("beaten", min(better, key=_divergence).name)
    return Standing("tie", min(tied, key=_divergence).name) if tied else Standing("frontier")


def _divergence(result: Compared) -> tuple[float, int]:
    return result.statistics.kld.value, result.bytes
