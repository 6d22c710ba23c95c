"""Types of flat arrays, and sums of integers that cannot overflow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST_TOTAL", "FloatArray", "IntArray", "exact_sum"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Sums of weights stay below this, so that no difference of two of them leaves 64 bits.
LARGEST_TOTAL = 2**62


def exact_sum(values: IntArray) -> int:
    """Return the sum of 64-bit integers, whatever its size."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())
