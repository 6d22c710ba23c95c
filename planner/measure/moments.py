"""Moments of a tensor's inputs from the imatrix, as the error metric uses them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.gguf import Imatrix, Tensor
from planner.gguf.reach import LOGITS_REACH
from planner.gguf.refinement import LatestMetric, Refinement

__all__ = ["Moments", "moments"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of a tensor's input channels, per matrix (expert); n is the row length.

    `second` is E[a²] and `mean` E[a] (zeros where unknown), float64 [matrices, n]. `usage` is how many tokens each
    matrix sees, as a multiple of their mean, float64 [matrices]. `weights` are the values for the kernels,
    float32 [matrices, n], or None without an imatrix; `has_mean` tells whether `mean` is known, `known` whether the
    imatrix says anything of the tensor.

    Of a tensor that writes to the residual stream, where the imatrix says how large that is: `seen` is its energy, the
    harmonic mean of |s|², `stream` that as far as errors are concerned, times √(share that varies), and both moments
    weight tokens by 1/|s|². `massive_second` and `massive_mean` weight all tokens alike (None: as the others do), since
    a massive activation is one of few tokens.

    `reach` is the divergence in nats that noise behind the tensor makes, by its share of the stream, and `logits` that
    of noise in the logits; `inside`, of a tensor that does not write, what a relative error of 1 in what varies and in
    means costs, in nats. None where the imatrix does not say.

    `outputs` is what energy in each of the tensor's outputs is worth, float64 [rows_per_matrix], where the imatrix
    knows them not to be alike: of a tensor that writes to the stream through a norm.

    `pairs` has the covariances of the channels, where they are known and codes are to be refined against them.
    """

    second: Doubles
    mean: Doubles
    usage: Doubles
    weights: NDArray[np.float32] | None
    has_mean: bool
    known: bool
    stream: float | None = None
    seen: float | None = None
    reach: float | None = None
    logits: float | None = None
    inside: tuple[float, float] | None = None
    massive_second: Doubles | None = None
    massive_mean: Doubles | None = None
    outputs: Doubles | None = None
    pairs: LatestMetric | None = None

    @property
    def token_second(self) -> Doubles:
        """E[a²] with all tokens alike, float64 [matrices, n]."""
        return self.second if self.massive_second is None else self.massive_second

    def with_massive(self, massive: NDArray[np.bool_]) -> Moments:
        """Return the moments with all tokens alike in massive channels, bool [matrices, n]."""
        if self.massive_second is None or self.massive_mean is None:
            return self
        second, mean = (
            np.where(massive, few, many)
            for few, many in ((self.massive_second, self.second), (self.massive_mean, self.mean))
        )
        return replace(self, second=second, mean=mean)

    @functools.cached_property
    def variance(self) -> Doubles:
        """Variance of the channels, float64 [matrices, n]."""
        return np.maximum(self.second - self.mean**2, 0.0)


def moments(tensor: Tensor, imatrix: Imatrix | None, refinement: Refinement | None = None) -> Moments:
    """Return the moments from the tensor's imatrix entry; every channel alike (E[a²] = 1) when there is none.
    Covariances are those that codes are refined against.

    Zeros in an entry say that nothing was seen, not that nothing can be lost. A channel that no activation reached
    counts as the median of those of its matrix that were; a matrix without any, as an expert that was never used.
    """
    shape = (tensor.matrices, tensor.row_length)
    entry = imatrix.match(tensor) if imatrix else None
    reach, logits = (None if imatrix is None else imatrix.nats(name) for name in (tensor.name, LOGITS_REACH))
    inside = None if imatrix is None else imatrix.inside(tensor.name)
    if imatrix is None or entry is None:
        return Moments(
            np.ones(shape), np.zeros(shape), np.ones(shape[0]), None, False, False, reach=reach, logits=logits
        )
    seen, reached = entry.seen, entry.seen.any(axis=1)
    mean = np.zeros(shape) if entry.means is None else entry.means.astype(np.float64)
    mean[~seen] = 0.0
    counts = entry.counts * reached
    total = float(counts.sum())
    # An imatrix in which no expert was ever used says nothing about their usage
    usage = counts * (len(counts) / total) if total > 0 else np.ones(shape[0])
    weights = np.ascontiguousarray(entry.values, dtype=np.float32)
    second = weights.astype(np.float64)
    second[~reached] = 1.0
    for matrix in np.flatnonzero(reached & ~seen.all(axis=1)):
        # not their mean, which a single massive channel can rule
        second[matrix, ~seen[matrix]] = np.median(second[matrix, seen[matrix]])
    known = bool(reached.any())
    outputs = imatrix.worth(tensor)
    pairs = LatestMetric(refinement, tensor) if refinement and refinement.covariances.covers(tensor) else None
    plain = Moments(
        second, mean, usage, weights, entry.means is not None, known, reach=reach, logits=logits,
        inside=inside, outputs=outputs, pairs=pairs,
    )  # fmt: skip
    stream = entry.stream
    if stream is None or not stream.known or not plain.has_mean:
        return plain
    by_stream, mean_by_stream = stream.moments()
    used = seen & (by_stream > 0)
    return replace(
        plain,
        second=np.where(used, by_stream, second),
        mean=np.where(used, mean_by_stream, mean),
        stream=stream.energy * math.sqrt(stream.varying),
        seen=stream.energy,
        massive_second=second,
        massive_mean=mean,
    )
