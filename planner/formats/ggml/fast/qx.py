"""Formats of a scale alone: q3_K, q6_K, q4_0, q5_0, as in ggml-quants.c, many blocks side by side.

A block of weights x, of weight w each, is fitted by `scale * (code - top)`; names of ggml's functions are beside ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import (
    LANES,
    absolute,
    clamped,
    floats,
    from_half,
    half,
    load,
    nearest,
    spread,
    store,
    where,
)
from planner.formats.ggml.fast.blocks import FAINTEST, SUPER, apart, energy, extreme, lay, squares, store_half, weigh

__all__ = ["q3_k", "q4_0", "q5_0", "q6_k"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO, _ONE, _TWO, _TENTH = np.float32(0), np.float32(1), np.float32(2), np.float32(0.1)
_ROUNDER = np.float32(12582912)  # 1.5 * 2**23: added to a number below 2**22, it leaves no room for a fraction


@part
def _rounded(v: Any, low: Any, high: Any) -> Any:
    """Return the nearest integers to numbers of less than 22 bits, as floats within limits."""
    v = (v + _ROUNDER) - _ROUNDER
    v = where(v > high, high, v)
    return where(v < low, low, v)


@part
def _fit(x: Floats, w: Floats, at: int, n: int, top: int, wx: Floats, codes: NDArray[np.int32]) -> Any:
    """Return scales for n weights in each lane, and put codes below 2 * top: make_qx_quants.

    The weights are at `at` in tables of lanes, as the codes will be; `wx` is scratch for n of each lane.
    """
    size, largest = extreme(x, at, n)
    low, high, most = spread(np.float32(-top)), spread(np.float32(top - 1)), np.float32(top)
    inverse = -most / largest
    sum_lx, sum_l2 = spread(_ZERO), spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v, weight = load(x, at + i), load(w, at + i)
        code = _rounded(inverse * v, low, high)
        store(wx, i, weight * v)
        sum_lx += weight * v * code
        sum_l2 += weight * code * code
    scale = where(sum_l2 != _ZERO, sum_lx / sum_l2, _ZERO)
    best = scale * sum_lx
    for pair in range(9):  # of the tries from -9 to 9 without 0
        one = 2 * pair - 9 + (pair > 4)
        two = 2 * pair - 8 + (pair > 3)
        first = -(most + _TENTH * np.float32(one)) / largest
        second = -(most + _TENTH * np.float32(two)) / largest
        lx1, l21, lx2, l22 = spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            v, weight, product = load(x, at + i), load(w, at + i), load(wx, i)
            code1, code2 = _rounded(first * v, low, high), _rounded(second * v, low, high)
            lx1 += product * code1
            l21 += weight * code1 * code1
            lx2 += product * code2
            l22 += weight * code2 * code2
        better = (l21 > _ZERO) & (lx1 * lx1 > best * l21)
        scale = where(better, lx1 / l21, scale)
        best, inverse = where(better, scale * lx1, best), where(better, first, inverse)
        better = (l22 > _ZERO) & (lx2 * lx2 > best * l22)
        scale = where(better, lx2 / l22, scale)
        best, inverse = where(better, scale * lx2, best), where(better, second, inverse)
    none = size < FAINTEST
    for i in range(at, at + n * LANES, LANES):
        store(codes, i, where(none, 0, clamped(nearest(inverse * load(x, i)), -top, top - 1) + top))
    return where(none, _ZERO, scale)


@part
def _recode(x: Floats, at: int, d: Any, top: int, codes: NDArray[np.int32]) -> None:
    """Put codes for 16 weights in each lane of a scale d, where it is not zero."""
    empty = d == _ZERO
    for i in range(at, at + 16 * LANES, LANES):
        code = clamped(nearest(load(x, i) / d), -top, top - 1) + top
        store(codes, i, where(empty, load(codes, i), code))


@compiled
def q6_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n], or none, to u8[r, bytes]: quantize_row_q6_K_impl and _ref."""
    flat = rows.reshape(rows.size)
    count = rows.size // SUPER
    x, w = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.float32)
    wx, scales = np.empty(16 * LANES, np.float32), np.empty(16 * LANES, np.float32)
    codes, starts = np.empty(SUPER * LANES, np.int32), np.empty(LANES, np.int64)
    stage = np.empty(224 * LANES, np.uint8)
    for block in range(0, count, LANES):
        lay(flat, block, count, SUPER, starts, x)
        if weights.size:
            lay(weights, block, count, SUPER, starts, w)
        else:
            for i in range(0, SUPER * LANES, LANES):
                store(w, i, load(x, i) * load(x, i))
        most, scale = spread(_ZERO), spread(_ZERO)
        for sub in range(16):
            own = _fit(x, w, sub * 16 * LANES, 16, 32, wx, codes)
            store(scales, sub * LANES, own)
            larger = absolute(own) > most
            most, scale = where(larger, absolute(own), most), where(larger, own, scale)
        none = most < FAINTEST
        inverse = np.float32(-128) / scale
        word = where(none, 0, half(_ONE / inverse))
        for sub in range(16):
            multiple = nearest(inverse * load(scales, sub * LANES))
            multiple = where(none, 0, where(multiple > 127, 127, multiple))
            store(stage, (192 + sub) * LANES, multiple)
            _recode(x, sub * 16 * LANES, from_half(word) * floats(multiple), 32, codes)
        _pack6(codes, none, stage)
        store_half(stage, 208 * LANES, word)
        apart(stage, 210, block, count, out)


@part
def _pack6(codes: NDArray[np.int32], none: Any, stage: Bytes) -> None:
    """Put the lower four bits of codes, then the upper two."""
    for half_block in range(2):
        for i in range(32):
            at = (128 * half_block + i) * LANES
            a, b = load(codes, at), load(codes, at + 32 * LANES)
            c, d = load(codes, at + 64 * LANES), load(codes, at + 96 * LANES)
            upper = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
            store(stage, (64 * half_block + i) * LANES, where(none, 0, (a & 15) | ((c & 15) << 4)))
            store(stage, (64 * half_block + 32 + i) * LANES, where(none, 0, (b & 15) | ((d & 15) << 4)))
            store(stage, (128 + 32 * half_block + i) * LANES, where(none, 0, upper))


@compiled
def q3_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n] to u8[r, bytes]: quantize_row_q3_K_impl."""
    flat = rows.reshape(rows.size)
    count = rows.size // SUPER
    x, w = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.float32)
    wx, scales, sums = np.empty((3, 16 * LANES), np.float32)
    codes, multiples = np.empty(SUPER * LANES, np.int32), np.empty(16 * LANES, np.int32)
    stage = np.empty(112 * LANES, np.uint8)
    starts = np.empty(LANES, np.int64)
    for block in range(0, count, LANES):
        lay(flat, block, count, SUPER, starts, x)
        lay(weights, block, count, SUPER, starts, w)
        weigh(x, w, SUPER, _TWO * energy(x, 0, SUPER) / np.float32(SUPER))
        for sub in range(16):
            at, total = sub * 16 * LANES, spread(_ZERO)
            for i in range(at, at + 16 * LANES, LANES):
                total += load(w, i)
            store(sums, sub * LANES, total)
            store(scales, sub * LANES, _fit(x, w, at, 16, 4, wx, codes))
        word = half(_fit(scales, sums, 0, 16, 32, wx, multiples))
        for sub in range(16):
            multiple = load(multiples, sub * LANES) - 32
            _recode(x, sub * 16 * LANES, from_half(word) * floats(multiple), 4, codes)
        _pack3(codes, multiples, stage)
        store_half(stage, 108 * LANES, word)
        apart(stage, 110, block, count, out)


@part
def _pack3(codes: NDArray[np.int32], multiples: NDArray[np.int32], stage: Bytes) -> None:
    """Put the highest bits of codes, the lower two, and the 6 bits of each multiple of the scale."""
    for i in range(0, 32 * LANES, LANES):
        bits = spread(0)
        for k in range(8):
            bits = bits | ((load(codes, i + k * 32 * LANES) >> 2) << k)
        store(stage, i, bits)
        for half_block in range(2):
            bits = spread(0)
            for k in range(4):
                bits = bits | ((load(codes, i + (4 * half_block + k) * 32 * LANES) & 3) << (2 * k))
            store(stage, i + (1 + half_block) * 32 * LANES, bits)
    for sub in range(0, 8 * LANES, LANES):
        store(stage, 96 * LANES + sub, (load(multiples, sub) & 15) | ((load(multiples, sub + 8 * LANES) & 15) << 4))
    for sub in range(0, 4 * LANES, LANES):
        bits = spread(0)
        for k in range(4):
            bits = bits | ((load(multiples, sub + k * 4 * LANES) >> 4) << (2 * k))
        store(stage, 104 * LANES + sub, bits)


@part
def _simple(rows: Floats, weights: Floats, out: Bytes, top: int) -> None:
    """Quantize rows to q4_0 (codes below 16, top 8) or q5_0 (below 32, top 16): quantize_row_q4_0_impl and _q5_0."""
    n = rows.shape[1]
    flat, sums = rows.reshape(rows.size), squares(rows)
    count, size = rows.size // 32, out.shape[1] // (n // 32)
    x, w, wx = np.empty((3, 32 * LANES), np.float32)
    sigma2, codes, starts = np.empty(LANES, np.float32), np.empty(32 * LANES, np.int32), np.empty(LANES, np.int64)
    stage = np.empty(32 * LANES, np.uint8)
    for block in range(0, count, LANES):
        lay(flat, block, count, 32, starts, x)
        for lane in range(LANES):
            sigma2[lane] = sums[starts[lane] // n] / np.float32(n)
        lay(weights, block, count, 32, starts, w)
        weigh(x, w, 32, load(sigma2, 0))
        word = half(_fit(x, w, 0, 32, top, wx, codes))
        store_half(stage, 0, word)
        if top == 16:
            for i in range(4):
                bits = spread(0)
                for j in range(8):
                    bits = bits | ((load(codes, (8 * i + j) * LANES) >> 4) << j)
                store(stage, (2 + i) * LANES, bits)
        for i in range(16):
            lower, upper = load(codes, i * LANES) & 15, load(codes, (16 + i) * LANES) & 15
            store(stage, (size - 16 + i) * LANES, lower | (upper << 4))
        apart(stage, size, block, count, out)


@compiled
def q4_0(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n] to u8[r, bytes]: quantize_row_q4_0_impl."""
    _simple(rows, weights, out, 8)


@compiled
def q5_0(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n] to u8[r, bytes]: quantize_row_q5_0_impl."""
    _simple(rows, weights, out, 16)
