"""Checking a plan: its recipe and those that it has to stand against, on the same text; the best is kept.

All are rounded in memory as `planner quantize` would write them, llama.cpp's mixes too, so that only the choice of
formats differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.llama.evaluate.baseline import Baseline
from planner.llama.passes.kld import by_window, mean_kld
from planner.llama.passes.recipes import Bar, Followed, diverging, run_recipes
from planner.llama.passes.weights import Weights
from planner.plan.rivals import Rival

__all__ = ["Checked", "best_of", "check"]


@dataclass(frozen=True)
class Checked:
    """A recipe and its KL divergences f64[windows, tokens] (nats)."""

    rival: Rival
    klds: NDArray[np.float64]

    @property
    def kld(self) -> tuple[float, float]:
        """Their mean, and its standard error; infinite where the recipe never says what the original does."""
        return mean_kld(self.klds) if np.isfinite(self.klds).all() else (math.inf, 0.0)

    def beside(self, other: Checked) -> tuple[float, float]:
        """Return by how much the mean is above that of `other`, and the standard error of that, as a share of the mean
        of `other`. The tokens are the same, so that this is known better than either."""
        own, whole = self.kld[0], other.kld[0]
        if not (math.isfinite(own) and math.isfinite(whole)):
            return (0.0 if own == whole else math.copysign(math.inf, own - whole)), 0.0
        difference, stderr = mean_kld(self.klds - other.klds)
        return (difference / whole, stderr / whole) if whole > 0 else (0.0, 0.0)


def check(
    weights: Weights, rivals: Sequence[tuple[Rival, Followed]], baseline: Baseline, bar: Bar
) -> Iterator[Checked]:
    """Evaluate one after the other, and yield each. Raises what `run_recipes` raises."""
    found = run_recipes(weights, [followed for _, followed in rivals], diverging(baseline, bar), bar)
    for (rival, _), divergence in zip(rivals, found, strict=True):
        yield Checked(rival, by_window(divergence.kld, baseline))


def best_of(checked: Sequence[Checked]) -> Checked:
    """Return the least divergence of a recipe that may be kept; the first is one."""
    return min((entry for entry in checked if entry.rival.plan is not None), key=lambda entry: entry.kld[0])
