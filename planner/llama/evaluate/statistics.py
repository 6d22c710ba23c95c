"""What evaluation says of a model: the statistics of `llama-perplexity --kl-divergence`, and flips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.llama.evaluate.divergence import Divergence

__all__ = ["Estimate", "Statistics", "perplexity", "statistics"]

_MOST = 700.0  # nats, whose exponential is still a float64


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what is computed from means, with its standard error. Both are infinite where a model never says what
    comes, or what the original says."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of `tokens` predictions; KL divergences (kld) and logarithms in nats, everything else as shares of 1.

    `ln_ppl_ratio` is ln(PPL / PPL of the original), its error that of the paired difference. `p_diff` is the change of
    the probability of the token that came. `same_top` is how often both find the same token most likely;
    `right_to_wrong` and `wrong_to_right` count where only the original, or only this model, had the token that came
    on top.
    """

    tokens: int
    ppl: Estimate
    ppl_base: Estimate
    ln_ppl_ratio: Estimate
    kld: Estimate
    kld_median: float
    kld_90: float
    kld_95: float
    kld_99: float
    kld_999: float
    kld_max: float
    p_diff: Estimate
    p_diff_rms: Estimate
    same_top: Estimate
    right_to_wrong: int
    wrong_to_right: int


def statistics(divergence: Divergence) -> Statistics:
    """Sum up a divergence of at least one token, by the definitions of `kl_divergence` in llama.cpp's
    tools/perplexity/perplexity.cpp."""
    nll, nll_base = divergence.nll.astype(np.float64), divergence.nll_base.astype(np.float64)
    difference = divergence.p_diff.astype(np.float64)
    square = _mean(difference**2)
    rms = square.value**0.5
    right, right_base = divergence.top == divergence.tokens, divergence.top_base == divergence.tokens
    ordered = np.sort(divergence.kld)
    return Statistics(
        tokens=len(nll),
        ppl=perplexity(nll),
        ppl_base=perplexity(nll_base),
        ln_ppl_ratio=_mean(nll - nll_base),
        kld=_mean(divergence.kld.astype(np.float64)),
        kld_median=float(np.median(ordered)),
        kld_90=_quantile(ordered, 0.9),
        kld_95=_quantile(ordered, 0.95),
        kld_99=_quantile(ordered, 0.99),
        kld_999=_quantile(ordered, 0.999),
        kld_max=float(ordered[-1]),
        p_diff=_mean(difference),
        p_diff_rms=Estimate(rms, 0.5 / rms * square.error if rms else 0.0),
        same_top=_mean((divergence.top == divergence.top_base).astype(np.float64)),
        right_to_wrong=int((right_base & ~right).sum()),
        wrong_to_right=int((right & ~right_base).sum()),
    )


def perplexity(nll: NDArray[np.floating]) -> Estimate:
    """Perplexity of negative log-likelihoods [n] in nats; its error is that of their mean, carried over."""
    mean = _mean(nll.astype(np.float64))
    if mean.value >= _MOST:
        return Estimate(math.inf, math.inf)
    value = math.exp(mean.value)
    return Estimate(value, value * mean.error)


def _quantile(ordered: NDArray[np.float32], share: float) -> float:
    """Between neighbours, linearly. In float32 as there: among many tokens, the place is another than in float64."""
    place = np.float32(share) * np.float32(len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    part = np.float32(place - np.float32(below))
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return float((1 - part) * low + part * high if part else low)  # 0 times infinity is NaN


def _mean(values: NDArray[np.float64]) -> Estimate:
    """Mean of [n] and its standard error (0 of a single value), tokens taken as independent."""
    count = len(values)
    if np.isinf(values).any():
        return Estimate(math.inf, math.inf)
    return Estimate(float(values.mean()), float(values.std() / (count - 1) ** 0.5) if count > 1 else 0.0)
