"""The statistics of a model's predictions: those of `llama-perplexity --kl-divergence`, flips, and divergence by the
original's confidence.

A field of `Statistics` is all that there is to a statistic: how it is computed, and its place in the tables. Its name
is its name in JSON.

Errors come from blocks of text, as neighbouring tokens are alike: the error of a mean over n_b tokens in each of B
blocks is that of the ratio of sums, sqrt(B / (B - 1) sum_b (sum of the block's values - mean n_b)^2) / sum_b n_b
(Cochran, Sampling Techniques, 6.3). With a block for every token it is llama-perplexity's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from planner.llama.evaluate.divergence import Divergence

__all__ = ["Bucket", "Estimate", "Shown", "Statistics", "Table", "block_starts", "perplexity", "shown_in", "statistics"]

Table = Literal["change", "distribution"]

_MOST = 700.0  # nats, whose exponential is still a float64
_BLOCKS = 16  # at least: of fewer, an error is hardly known
_EDGES = (0.0, 0.5, 0.9, 0.99, 1.0)  # of the probability of the original's most likely token


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what is computed from means, with its standard error. Both are infinite where a model never says what
    comes, or what the original says."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """Mean divergence (nats) of the `tokens` predictions whose most likely token had, by the original, a probability
    from `least` on and below `most` (1: and at most)."""

    least: float
    most: float
    tokens: int
    kld: Estimate


@dataclass(frozen=True, slots=True)
class Shown:
    """A statistic's column: in which table, its heading, the format of a number (an estimate has digits by its error),
    and what values are multiplied with."""

    table: Table
    heading: str
    format: str = ""
    scale: int = 1


class _Predictions:
    """A divergence as statistics use it, each array [n] and computed once; `starts` are where blocks begin."""

    def __init__(self, divergence: Divergence, starts: NDArray[np.intp]) -> None:
        self.starts, self.confidence = starts, divergence.confidence
        self.nll, self.nll_base = divergence.nll.astype(np.float64), divergence.nll_base.astype(np.float64)
        self.kld = divergence.kld
        self.p_diff = divergence.p_diff.astype(np.float64)
        self.right, self.right_base = divergence.top == divergence.tokens, divergence.top_base == divergence.tokens
        self.same_top = divergence.top == divergence.top_base

    @cached_property
    def ordered(self) -> NDArray[np.float32]:
        """Divergences in ascending order."""
        return np.sort(self.kld)

    def mean(self, values: NDArray[Any]) -> Estimate:
        return _mean(values.astype(np.float64), self.starts)

    def bucket(self, least: float, most: float) -> Bucket | None:
        """Return the mean divergence in a range of confidence; None where nothing is in it."""
        below = self.confidence <= most if most == 1 else self.confidence < most
        inside = below & (self.confidence >= least)
        count = int(inside.sum())
        if not count:
            return None
        return Bucket(least, most, count, _mean(self.kld.astype(np.float64), self.starts, inside))

    def buckets(self) -> tuple[Bucket, ...]:
        found = itertools.starmap(self.bucket, itertools.pairwise(_EDGES))
        return tuple(bucket for bucket in found if bucket is not None)


def _statistic(of: Callable[[_Predictions], Any], *shown: Any, **more: Any) -> Any:
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
    on top. `kld_by_confidence` has only those ranges in which there is a token.
    """

    tokens: int = _statistic(lambda found: len(found.nll))
    ppl: Estimate = _statistic(lambda found: perplexity(found.nll, found.starts))
    ppl_base: Estimate = _statistic(lambda found: perplexity(found.nll_base, found.starts))
    ln_ppl_ratio: Estimate = _statistic(lambda found: found.mean(found.nll - found.nll_base), "change", "ln PPL ratio")
    kld: Estimate = _statistic(lambda found: found.mean(found.kld))
    kld_median: float = _statistic(lambda found: float(np.median(found.ordered)), "distribution", "median", ".3g")
    kld_90: float = _kld_at(0.9, "90 %")
    kld_95: float = _kld_at(0.95, "95 %")
    kld_99: float = _kld_at(0.99, "99 %")
    kld_999: float = _kld_at(0.999, "99.9 %")
    kld_max: float = _statistic(lambda found: float(found.ordered[-1]), "distribution", "maximum", ".3g")
    p_diff: Estimate = _statistic(lambda found: found.mean(found.p_diff))
    p_diff_rms: Estimate = _statistic(lambda found: _root(found.mean(found.p_diff**2)), "change", "RMS Δp %", scale=100)
    same_top: Estimate = _statistic(lambda found: found.mean(found.same_top), "change", "same top %", scale=100)
    right_to_wrong: int = _statistic(
        lambda found: int((found.right_base & ~found.right).sum()), "change", "flips −", ","
    )
    wrong_to_right: int = _statistic(lambda found: int((found.right & ~found.right_base).sum()), "change", "+", ",")
    kld_by_confidence: tuple[Bucket, ...] = _statistic(lambda found: found.buckets())


def shown_in(table: Table) -> dict[str, Shown]:
    """Return the columns of a table, by the names of their statistics."""
    columns = {entry.name: entry.metadata["shown"] for entry in fields(Statistics)}
    return {name: shown for name, shown in columns.items() if shown is not None and shown.table == table}


def statistics(divergence: Divergence, windows: Sequence[int]) -> Statistics:
    """Sum up a divergence of at least one token, in so many predictions of each window, by the definitions of
    `kl_divergence` in llama.cpp's tools/perplexity/perplexity.cpp; errors are those between blocks."""
    found = _Predictions(divergence, block_starts(windows))
    return Statistics(**{entry.name: entry.metadata["of"](found) for entry in fields(Statistics)})


def block_starts(windows: Sequence[int]) -> NDArray[np.intp]:
    """Return where blocks of predictions begin, given how many every window has. Windows are blocks; where they are
    fewer than 16, each is cut into as many equal parts as make up for it.

    >>> block_starts([40] * 20)[:3].tolist(), block_starts([64] * 8)[:3].tolist()
    ([0, 40, 80], [0, 32, 64])
    """
    ends = np.cumsum(windows)
    parts = -(-_BLOCKS // len(windows))
    cuts = [
        np.linspace(end - count, end, parts, endpoint=False).astype(np.intp)
        for end, count in zip(ends, windows, strict=True)
    ]
    return np.unique(np.concatenate(cuts))


def perplexity(nll: NDArray[np.floating], starts: NDArray[np.intp]) -> Estimate:
    """Return the perplexity of negative log-likelihoods [n] in nats; its error is that of their mean, carried over,
    between blocks that begin at `starts`."""
    mean = _mean(nll.astype(np.float64), starts)
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


def _root(square: Estimate) -> Estimate:
    root = square.value**0.5
    return Estimate(root, 0.5 / root * square.error if root else 0.0)


def _mean(values: NDArray[np.float64], starts: NDArray[np.intp], counted: NDArray[np.bool_] | None = None) -> Estimate:
    """Return the mean of [n], or of those `counted`, and its standard error between blocks (0 of a single one)."""
    weights = np.ones(len(values)) if counted is None else counted.astype(np.float64)
    values = values if counted is None else np.where(counted, values, 0.0)
    if np.isinf(values).any():
        return Estimate(math.inf, math.inf)
    counts = np.add.reduceat(weights, starts)
    mean = float(values.sum() / counts.sum())
    beyond = np.add.reduceat(values, starts) - mean * counts
    blocks = int((counts > 0).sum())
    if blocks == 1:
        return Estimate(mean, 0.0)
    return Estimate(mean, float((blocks / (blocks - 1) * (beyond**2).sum()) ** 0.5 / counts.sum()))
