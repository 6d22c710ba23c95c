"""Sums over rows of weights: with numpy, or compiled once that pays, with the same bits.

Floats are added up in an order of their own, so that nothing depends on the processor, on the version of a library, or
on when the compiled loop is ready: along a row every 16th weight, then the first half and the second half of what is
left.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.loading import loaded, spending

__all__ = ["add_up", "block_width", "compiled_sums", "sums"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Weights = Floats | NDArray[np.float16]
Adding = Callable[..., None]

_BLOCK = 32  # the smallest of the usual formats
_LANES = 16  # of the compiled loop: half a block
_STEP = 1 << 16  # weights that a core's cache holds
_NAME = "sums"


def block_width(row_length: int) -> int:
    """Return how many weights a block has: one, where no usual block divides the row."""
    return _BLOCK if row_length % _BLOCK == 0 else 1


def sums(rows: Weights, mean: Floats, variance: Floats, second: Doubles) -> tuple[Doubles, Doubles]:
    """Return sums over rows W f32[r, n] or f16[r, n], C-contiguous, for channels' `mean` m and `variance` v, f32[n],
    and blocks' `second` s, f64[n / block]: of columns Σ_i W_ij², f64[n], and of rows, f64[4, r]: Σ_j m_j W_ij,
    Σ_j v_j W_ij², and Σ s times the sum and times the largest of a block's squares.

    Sums are float32 along n / 16 weights of a row, over 2¹⁶ weights' rows and within a block, beyond that float64.
    Where rows have NaN or Inf, so do columns. The compiled loop releases the GIL.
    """
    columns, of_rows = np.zeros(rows.shape[1]), np.empty((4, len(rows)))
    step = max(1, _STEP // rows.shape[1])
    compiled = loaded(_NAME, compiled_sums) if len(second) < rows.shape[1] else None
    if compiled is not None:
        compiled(_compilable(rows), mean, variance, second, step, columns, of_rows)
    else:
        with spending(_NAME):
            add_up(rows, mean, variance, second, step, columns, of_rows)
    return columns, of_rows


def _compilable(rows: Weights) -> NDArray[Any]:
    """Return rows of a kind that is compiled: aligned, as a mapped file need not be, and read-only, as it is."""
    kind = np.uint16 if rows.dtype == np.float16 else np.float32
    aligned: NDArray[Any] = np.require(rows, requirements="A").view(kind)
    aligned.flags.writeable = False
    return aligned


def add_up(
    rows: Weights, mean: Floats, variance: Floats, second: Doubles, step: int, columns: Doubles, of_rows: Doubles
) -> None:
    """Add sums to `columns`, f64[n], and put sums into `of_rows`, f64[4, r] (`sums`), `step` rows at a time."""
    for start in range(0, len(rows), step):
        few = rows[start : start + step].astype(np.float32, copy=False)
        out = of_rows[:, start : start + step]
        columns += np.add.reduce(few * few, axis=0, initial=0)
        # Channels first: numpy then adds vector after vector, in that order
        turned = np.ascontiguousarray(few.T)
        squares = turned * turned
        blocks = squares.reshape(len(second), -1, len(few))
        for into, values, weights in ((out[0], turned, mean), (out[1], squares, variance)):
            weighted = (values * weights[:, None]).reshape(-1, min(_LANES, blocks.shape[1]), len(few))
            into[:] = _folded(np.add, np.add.reduce(weighted, axis=0, keepdims=True, initial=0))[0]
        for into, join in ((out[2], np.add), (out[3], np.maximum)):
            # `reduce` would take another order for a single row
            into[:] = np.add.accumulate(_folded(join, blocks) * second[:, None], axis=0)[-1]


def _folded(join: np.ufunc, values: Floats) -> Floats:
    """Join the halves of values f32[k, l, r], l a power of two, until they are f32[k, r]."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = join(values[:, :half], values[:, half:])
    return values[:, 0]


def compiled_sums() -> Adding | None:
    """Return `add_up` compiled; None where numba is missing or fails, or a bit differs."""
    random = np.random.default_rng(20)
    sizes = 10.0 ** random.uniform(-25, 18, (9, 20)).repeat(_BLOCK, axis=1)
    singles = (random.standard_normal(sizes.shape) * sizes).astype(np.float32)
    finite = random.integers(1 << 16, size=sizes.shape, dtype=np.uint16) & 0xFBFF
    halves = finite.view(np.float16)
    mean, variance = random.standard_normal((2, sizes.shape[1])).astype(np.float32)
    weights = mean, variance**2, random.random(sizes.shape[1] // _BLOCK), 4
    try:
        function: Adding = importlib.import_module("planner.measure.compiled_sums").add_up
        for rows in (singles, halves):
            expected, ours = ((np.zeros(rows.shape[1]), np.empty((4, len(rows)))) for _ in range(2))
            with np.errstate(invalid="ignore", over="ignore"):
                add_up(rows, *weights, *expected)
            function(_compilable(rows), *weights, *ours)
            if not all(np.array_equal(a, b) for a, b in zip(expected, ours, strict=True)):
                return None
    except Exception:  # whatever numba of another version stumbles over, numpy can do it
        return None
    return function
