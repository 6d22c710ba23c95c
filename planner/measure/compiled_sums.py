"""Sums over rows of weights, sixteen channels side by side: what `sums` does with numpy, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from planner.compiled.compiler import compiled
from planner.compiled.lanes import LANES, from_half, largest, load, spread, store, total, where

__all__ = ["add_up"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Weights = NDArray[np.float32] | NDArray[np.uint16]


def _floats(numbers: Any, at: Any) -> Any:
    """Return `LANES` weights from place `at` on, as floats."""
    raise NotImplementedError  # it is compiled, or not called


@overload(_floats)  # type: ignore[untyped-decorator]
def _by_kind(numbers: Any, at: Any) -> Any:
    def of_singles(numbers: Any, at: Any) -> Any:
        return load(numbers, at)

    def of_halves(numbers: Any, at: Any) -> Any:
        return from_half(load(numbers, at))

    return of_halves if numbers.dtype == types.uint16 else of_singles


@compiled
def add_up(
    rows: Weights, mean: Floats, variance: Floats, second: Doubles, step: int, columns: Doubles, of_rows: Doubles
) -> None:
    """Do what `sums.add_up` does, for blocks of two times `LANES` weights, of F16 in u16."""
    count, width = rows.shape
    weights, zero, of_columns = rows.reshape(-1), spread(np.float32(0)), np.zeros(width, np.float32)
    for row in range(count):
        means, variances, energy, peaks = zero, zero, 0.0, 0.0
        for block in range(width // (2 * LANES)):
            left = 2 * LANES * block
            right, at = left + LANES, width * row + left
            a, b = _floats(weights, at), _floats(weights, at + LANES)
            aa, bb = a * a, b * b
            store(of_columns, left, load(of_columns, left) + aa)
            store(of_columns, right, load(of_columns, right) + bb)
            means = means + a * load(mean, left) + b * load(mean, right)
            variances = variances + aa * load(variance, left) + bb * load(variance, right)
            energy += np.float64(total(aa + bb)) * second[block]
            peaks += np.float64(largest(where(aa > bb, aa, bb))) * second[block]
        of_rows[0, row], of_rows[1, row] = total(means), total(variances)
        of_rows[2, row], of_rows[3, row] = energy, peaks
        if (row + 1) % step == 0 or row + 1 == count:
            for channel in range(width):
                columns[channel] += np.float64(of_columns[channel])
            of_columns[:] = 0
