"""The statistics of a model's predictions: those of `llama-perplexity --kl-divergence`, and flips.

A field of `Statistics` is all that there is to a statistic: how it is computed, and its place in the tables. Its name
is its name in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.llama.evaluate.divergence import Divergence

__all__ = ["Estimate", "Shown", "Statistics", "Table", "perplexity", "shown_in", "statistics"]

Table = Literal["change", "distribution"]

_MOST = 700.0  # nats, whose exponential is still a float64


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what is computed from means, with its standard error. Both are infinite where a model never says what
    comes, or what the original says."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A statistic's column: in which table, its heading, the format of a number (an estimate has digits by its error),
    and what values are multiplied with."""

    table: Table
    heading: str
    format: str = ""
    scale: int = 1


class _Predictions:
    """A divergence as statistics use it, each array [n] and computed once."""

    def __init__(self, divergence: Divergence) -> None:
        self.nll, self.nll_base = divergence.nll.astype(np.float64), divergence.nll_base.astype(np.float64)
        self.kld = divergence.kld
        self.p_diff = divergence.p_diff.astype(np.float64)
        self.right, self.right_base = divergence.top == divergence.tokens, divergence.top_base == divergence.tokens
        self.same_top = divergence.top == divergence.top_base

    @cached_property
    def ordered(self) -> NDArray[np.float32]:
        """Divergences in ascending order."""
        return np.sort(self.kld)


def _statistic(of: Callable[[_Predictions], Estimate | float], *shown: Any, **more: Any) -> Any:
    """Declare a field of `Statistics`: its function, and the arguments of `Shown` if it has a column."""
    return field(metadata={"of": of, "shown": Shown(*shown, **more) if shown else None})


def _kld_at(share: float, heading: str) -> Any:
    return _statistic(lambda found: _quantile(found.ordered, share), "distribution", heading, ".3g")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of `tokens` predictions; KL divergences (kld) and logarithms in nats, everything else as shares of 1.

    `ln_ppl_ratio` is ln(PPL / PPL of the original), its error that of the paired difference. `p_diff` is the change of
    the probability of the token that came. `same_top` is how often both find the same token most likely;
    `right_to_wrong` and `wrong_to_right` count where only the original, or only this model, had the token that came
    on top.
    """

    tokens: int = _statistic(lambda found: len(found.nll))
    ppl: Estimate = _statistic(lambda found: perplexity(found.nll))
    ppl_base: Estimate = _statistic(lambda found: perplexity(found.nll_base))
    ln_ppl_ratio: Estimate = _statistic(lambda found: _mean(found.nll - found.nll_base), "change", "ln PPL ratio")
    kld: Estimate = _statistic(lambda found: _mean(found.kld.astype(np.float64)))
    kld_median: float = _statistic(lambda found: float(np.median(found.ordered)), "distribution", "median", ".3g")
    kld_90: float = _kld_at(0.9, "90 %")
    kld_95: float = _kld_at(0.95, "95 %")
    kld_99: float = _kld_at(0.99, "99 %")
    kld_999: float = _kld_at(0.999, "99.9 %")
    kld_max: float = _statistic(lambda found: float(found.ordered[-1]), "distribution", "maximum", ".3g")
    p_diff: Estimate = _statistic(lambda found: _mean(found.p_diff))
    p_diff_rms: Estimate = _statistic(lambda found: _root_mean_square(found.p_diff), "change", "RMS Δp %", scale=100)
    same_top: Estimate = _statistic(
        lambda found: _mean(found.same_top.astype(np.float64)), "change", "same top %", scale=100
    )
    right_to_wrong: int = _statistic(
        lambda found: int((found.right_base & ~found.right).sum()), "change", "flips: worse", ","
    )
    wrong_to_right: int = _statistic(
        lambda found: int((found.right & ~found.right_base).sum()), "change", "better", ","
    )


def shown_in(table: Table) -> dict[str, Shown]:
    """Return the columns of a table, by the names of their statistics."""
    columns = {entry.name: entry.metadata["shown"] for entry in fields(Statistics)}
    return {name: shown for name, shown in columns.items() if shown is not None and shown.table == table}


def statistics(divergence: Divergence) -> Statistics:
    """Sum up a divergence of at least one token, by the definitions of `kl_divergence` in llama.cpp's
    tools/perplexity/perplexity.cpp."""
    found = _Predictions(divergence)
    return Statistics(**{entry.name: entry.metadata["of"](found) for entry in fields(Statistics)})


def perplexity(nll: NDArray[np.floating]) -> Estimate:
    """Return the perplexity of negative log-likelihoods [n] in nats; its error is that of their mean, carried over."""
    mean = _mean(nll.astype(np.float64))
    if mean.value >= _MOST:
        return Estimate(math.inf, math.inf)
    value = math.exp(mean.value)
    return Estimate(value, value * mean.error)


def _quantile(ordered: NDArray[np.float32], share: float) -> float:
    """Interpolate linearly between neighbours, in float32 as llama.cpp: among many tokens, float64 gives another
    place."""
    place = np.float32(share) * np.float32(len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    part = np.float32(place - np.float32(below))
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return float((1 - part) * low + part * high if part else low)  # 0 times infinity is NaN


def _root_mean_square(values: NDArray[np.float64]) -> Estimate:
    square = _mean(values**2)
    root = square.value**0.5
    return Estimate(root, 0.5 / root * square.error if root else 0.0)


def _mean(values: NDArray[np.float64]) -> Estimate:
    """Return the mean of [n] and its standard error (0 of a single value), tokens taken as independent."""
    count = len(values)
    if np.isinf(values).any():
        return Estimate(math.inf, math.inf)
    return Estimate(float(values.mean()), float(values.std() / (count - 1) ** 0.5) if count > 1 else 0.0)
