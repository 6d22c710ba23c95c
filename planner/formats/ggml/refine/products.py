"""Compiled: errors times covariance, as a matrix and of the few weights that moved.

Every sum is of the same numbers in the same order, multiplied and added in one rounding (IEEE 754's fusedMultiplyAdd),
whatever the processor and however many rows there are. So a step of zero changes nothing, and may be left out or not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import LANES, fused, load, spread, store

__all__ = ["DEEP", "carry", "changes", "dots", "products"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

DEEP = 64
"""Products that are summed at a time; then the sum is added to those before."""
_WIDE = 128  # with DEEP, the part of the covariance that rows are multiplied with: 32 KiB, a cache
_ROWS, _STRIP = 4, 2 * LANES  # what is summed in registers: eight of AVX-512's, or AVX2's sixteen
_DENSE = 4  # times fewer weights moved than there are: then only those are multiplied
_ALIGNED = 64  # bytes of a line of a cache


@part
def _aligned(count: int) -> Floats:
    """Return room for numbers that begins with a line of the cache: a vector that lies in two takes twice as long."""
    room = np.empty(count + _ALIGNED // 4, np.float32)
    return room[-room.ctypes.data % _ALIGNED // 4 :]


@part
def _strips(h: Floats, top: int, deep: int, left: int, wide: int, begin: int, end: int, strips: Floats) -> None:
    """Lay out `deep` rows of a covariance from `top` on, `wide` columns from `left` on, as strips of columns, filled up
    with zeros; zeros for columns from `begin` to `end`, too."""
    flat, width = h.reshape(-1), h.shape[1]
    for c in range(0, wide, _STRIP):
        whole = c + _STRIP <= wide
        for j in range(deep):
            at, source = c * DEEP + j * _STRIP, (top + j) * width + left + c
            if whole:
                store(strips, at, load(flat, source))
                store(strips, at + LANES, load(flat, source + LANES))
                continue
            strips[at : at + _STRIP] = 0
            for k in range(wide - c):
                strips[at + k] = flat[source + k]
    for column in range(max(begin - left, 0), min(end - left, wide)):
        for j in range(deep):
            strips[column // _STRIP * _STRIP * DEEP + j * _STRIP + column % _STRIP] = 0


@part
def _four(steps: Floats, at: int, deep: int, strips: Floats, strip: int, sums: Floats) -> None:
    """Put products of four rows, whose steps lie side by side, with a strip into `sums`, f32[4 * _STRIP]."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = spread(np.float32(0))
    for _ in range(deep):
        a, b = load(strips, strip), load(strips, strip + LANES)
        s0, s1, s2, s3 = steps[at], steps[at + 1], steps[at + 2], steps[at + 3]
        a0, a1, a2, a3 = fused(a, s0, a0), fused(a, s1, a1), fused(a, s2, a2), fused(a, s3, a3)
        b0, b1, b2, b3 = fused(b, s0, b0), fused(b, s1, b1), fused(b, s2, b2), fused(b, s3, b3)
        at += _ROWS
        strip += _STRIP
    store(sums, 0, a0)
    store(sums, LANES, b0)
    store(sums, 2 * LANES, a1)
    store(sums, 3 * LANES, b1)
    store(sums, 4 * LANES, a2)
    store(sums, 5 * LANES, b2)
    store(sums, 6 * LANES, a3)
    store(sums, 7 * LANES, b3)


@part
def _all(out: Floats, steps: Floats, h: Floats, top: int, begin: int, end: int) -> None:
    """Add steps f32[r, m], m <= DEEP, times a covariance to `out`, but for columns from `begin` to `end`."""
    (rows, deep), width = steps.shape, out.shape[1]
    strips, sums = _aligned(DEEP * _WIDE), _aligned(_ROWS * _STRIP)
    beside = np.zeros(-(-rows // _ROWS) * _ROWS * deep, np.float32)
    for row in range(rows):
        for j in range(deep):
            beside[(row // _ROWS * deep + j) * _ROWS + row % _ROWS] = steps[row, j]
    for left in range(0, width, _WIDE):
        wide = min(_WIDE, width - left)
        _strips(h, top, deep, left, wide, begin, end, strips)
        for first in range(0, rows, _ROWS):
            for c in range(0, wide, _STRIP):
                _four(beside, first * deep, deep, strips, c * DEEP, sums)
                for i in range(min(_ROWS, rows - first)):
                    for k in range(min(_STRIP, wide - c)):
                        out[first + i, left + c + k] += sums[i * _STRIP + k]


@part
def _few(out: Floats, steps: Floats, h: Floats, top: int, begin: int, end: int) -> None:
    """Do as `_all`, with steps of which few are not zero; `n`, `begin` and `end` are multiples of LANES."""
    (rows, deep), width = steps.shape, out.shape[1]
    sums, covariances = out.reshape(-1), h.reshape(-1)
    moved, starts = np.empty(deep, np.float32), np.empty(deep, np.int64)
    for row in range(rows):
        count = 0
        for j in range(deep):
            if steps[row, j] != 0:
                moved[count], starts[count] = steps[row, j], (top + j) * width
                count += 1
        if count == 0:
            continue
        for left, right in ((0, begin), (end, width)):
            k = left
            while k < right:
                at = row * width + k
                if k + 4 * LANES <= right:
                    a = b = c = d = spread(np.float32(0))
                    for i in range(count):
                        start, step = starts[i] + k, moved[i]
                        a = fused(load(covariances, start), step, a)
                        b = fused(load(covariances, start + LANES), step, b)
                        c = fused(load(covariances, start + 2 * LANES), step, c)
                        d = fused(load(covariances, start + 3 * LANES), step, d)
                    store(sums, at, load(sums, at) + a)
                    store(sums, at + LANES, load(sums, at + LANES) + b)
                    store(sums, at + 2 * LANES, load(sums, at + 2 * LANES) + c)
                    store(sums, at + 3 * LANES, load(sums, at + 3 * LANES) + d)
                    k += 4 * LANES
                    continue
                a = spread(np.float32(0))
                for i in range(count):
                    a = fused(load(covariances, starts[i] + k), moved[i], a)
                store(sums, at, load(sums, at) + a)
                k += LANES


@compiled
def carry(out: Floats, steps: Floats, h: Floats, top: int) -> None:
    """Add steps f32[r, m] of the weights from `top` on, times their covariances with all others, f32[n, n], to `out`,
    f32[r, n]. Steps of zero cost little. `n`, m and `top` are multiples of LANES."""
    end = top + steps.shape[1]
    for begin in range(top, end, DEEP):
        some = steps[:, begin - top : begin - top + DEEP]
        if np.count_nonzero(some) * _DENSE < some.size:
            _few(out, some, h, begin, top, end)
        else:
            _all(out, some, h, begin, top, end)


@compiled
def products(errors: Floats, covariance: Floats, out: Floats) -> None:
    """Put errors f32[r, n] times a covariance f32[n, n] into `out`, f32[r, n]."""
    out[:] = 0
    for top in range(0, errors.shape[1], DEEP):
        _all(out, errors[:, top : top + DEEP], covariance, top, 0, 0)


@compiled
def dots(first: Floats, second: Floats) -> Doubles:
    """Return the sum of products of each row, f64[r], of f32[r, n]."""
    found = np.zeros(len(first))
    for row in range(len(first)):
        for k in range(first.shape[1]):
            found[row] += np.float64(first[row, k]) * np.float64(second[row, k])
    return found


@compiled
def changes(before: Floats, after: Floats, covariance: Floats, chosen: NDArray[np.bool_]) -> Doubles:
    """Return by how much the error of chosen rows differs, f64[r]: a H aᵀ - b H bᵀ = (a - b) H (a + b)ᵀ in float64."""
    rows, width = before.shape
    found = np.zeros(rows)
    sums = np.empty(width)
    for row in range(rows):
        if not chosen[row]:
            continue
        sums[:] = 0
        for j in range(width):
            step = np.float64(after[row, j]) - np.float64(before[row, j])
            if step != 0:
                for k in range(width):
                    sums[k] += step * covariance[j, k]
        for k in range(width):
            found[row] += sums[k] * (np.float64(after[row, k]) + np.float64(before[row, k]))
    return found
