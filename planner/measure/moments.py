"""Moments of a tensor's inputs from the imatrix, as the error metric uses them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.gguf import Imatrix, Tensor

__all__ = ["Moments", "moments"]

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Moments of a tensor's input channels, per matrix (expert); n is the row length.

    `second` is E[a²] and `mean` E[a] (zeros where unknown), float64 [matrices, n]. `usage` is how many tokens each
    matrix sees, as a multiple of their mean, float64 [matrices]. `weights` are the values for the kernels,
    float32 [matrices, n], or None without an imatrix; `has_mean` tells whether `mean` is known, `known` whether the
    imatrix says anything of the tensor.
    """

    second: Doubles
    mean: Doubles
    usage: Doubles
    weights: NDArray[np.float32] | None
    has_mean: bool
    known: bool

    @functools.cached_property
    def variance(self) -> Doubles:
        """Variance of the channels, float64 [matrices, n]."""
        return np.maximum(self.second - self.mean**2, 0.0)


def moments(tensor: Tensor, imatrix: Imatrix | None) -> Moments:
    """Return the moments from the tensor's imatrix entry; every channel alike (E[a²] = 1) when there is none.

    Zeros in an entry say that nothing was seen, not that nothing can be lost. A channel that no activation reached
    counts as the median of those of its matrix that were; a matrix without any, as an expert that was never used.
    """
    shape = (tensor.matrices, tensor.row_length)
    entry = imatrix.match(tensor) if imatrix else None
    if entry is None:
        return Moments(np.ones(shape), np.zeros(shape), np.ones(shape[0]), None, has_mean=False, known=False)
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
    return Moments(second, mean, usage, weights, entry.means is not None, known=bool(reached.any()))
