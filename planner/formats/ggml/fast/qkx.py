"""Formats of scales and minima: q2_K, q4_K, q5_K, q4_1, q5_1, as in ggml-quants.c, many blocks side by side.

A super-block of 256 weights has blocks of 16 or 32, each with a scale and a minimum: codes of few bits, times a scale
and a minimum of the super-block in half precision.
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
    square_root,
    store,
    where,
)
from planner.formats.ggml.fast.blocks import SUPER, apart, energy, lay, squares, store_half, weigh
from planner.formats.ggml.fast.fits import fit, fit_positive, fit_to_largest

__all__ = ["q2_k", "q4_1", "q4_k", "q5_1", "q5_k"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_BLOCK = 32  # of a block without one
_ZERO = np.float32(0)
# With imatrix values: of inverse scales that are tried, the first, what is between, and how many follow (in codes)
_FIRST, _STEP, _STEPS = -0.9, 0.05, 36


@part
def _weigh_evenly(x: Floats, w: Floats, n: int) -> None:
    """Make weights of blocks of n where there is no imatrix: |x|, plus the root of the mean square in blocks of 32."""
    for at in range(0, SUPER * LANES, n * LANES):
        level = spread(_ZERO)
        if n == _BLOCK:
            level = square_root(energy(x, at, n) / np.float32(n))
        for i in range(at, at + n * LANES, LANES):
            store(w, i, level + absolute(load(x, i)))


@part
def _sums(w: Floats, n: int, out: Floats) -> None:
    """Put the sums of w over blocks of n into `out`."""
    for j in range(SUPER // n):
        total = spread(_ZERO)
        for i in range(j * n * LANES, (j + 1) * n * LANES, LANES):
            total += load(w, i)
        store(out, j * LANES, total)


@part
def _recode(x: Floats, codes: Bytes, at: int, n: int, top: int, scale: Any, minimum: Any) -> None:
    """Code weights anew for scales and minima as they are stored; lanes without a scale keep the codes they have."""
    kept = scale == _ZERO
    for i in range(at, at + n * LANES, LANES):
        code = clamped(nearest((load(x, i) + minimum) / scale), 0, top)
        store(codes, i, where(kept, load(codes, i), code))


@part
def _scales_of_six_bits(s: Bytes, m: Bytes, block: Bytes, at: int) -> None:
    """Put eight scales and eight minima into twelve bytes of a block."""
    for j in range(4):
        store(block, at + j * LANES, load(s, j * LANES))
        store(block, at + (j + 4) * LANES, load(m, j * LANES))
    for j in range(4, 8):
        scale, minimum = load(s, j * LANES), load(m, j * LANES)
        store(block, at + (j + 4) * LANES, (scale & 15) | ((minimum & 15) << 4))
        low, high = at + (j - 4) * LANES, at + j * LANES
        store(block, low, load(block, low) | ((scale >> 4) << 6))
        store(block, high, load(block, high) | ((minimum >> 4) << 6))


@part
def _scale_of_six_bits(block: Bytes, at: int, j: int) -> Any:
    """Return scale and minimum `j` of those in twelve bytes: get_scale_min_k4."""
    if j < 4:
        return load(block, at + j * LANES) & 63, load(block, at + (j + 4) * LANES) & 63
    both = load(block, at + (j + 4) * LANES)
    scale = (both & 15) | ((load(block, at + (j - 4) * LANES) >> 6) << 4)
    return scale, (both >> 4) | ((load(block, at + j * LANES) >> 6) << 4)


@part
def _pack_by_fours(codes: Bytes, block: Bytes, at: int, fifth: int) -> None:
    """Put the lowest four bits of two codes, 32 apart, into a byte from `at` on, and fifth bits, eight of codes 32
    apart to a byte, from `fifth` on, if there are any."""
    for j in range(4):
        for i in range(0, _BLOCK * LANES, LANES):
            first, second = load(codes, 2 * j * _BLOCK * LANES + i), load(codes, (2 * j + 1) * _BLOCK * LANES + i)
            store(block, at + j * _BLOCK * LANES + i, (first & 15) | ((second & 15) << 4))
            if fifth:
                high = ((first >> 4) | ((second >> 4) << 1)) << (2 * j)
                store(block, fifth + i, high if j == 0 else high | load(block, fifth + i))


@compiled
def _k45(rows: Floats, weights: Floats, out: Bytes, top: int) -> None:
    """q4_K, q5_K: eight blocks of 32; d, dmin, scales and minima of 6 bits, fifth bits, others."""
    x, w = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.float32)
    trial = np.empty(_BLOCK * LANES, np.float32)
    scales, minima = np.empty(8 * LANES, np.float32), np.empty(8 * LANES, np.float32)
    sums, starts = np.empty(8 * LANES, np.float32), np.empty(LANES, np.int64)
    codes, s, m = np.empty(SUPER * LANES, np.uint8), np.empty(8 * LANES, np.uint8), np.empty(8 * LANES, np.uint8)
    fifth = 16 * LANES if top > 15 else 0
    size = 176 if fifth else 144
    block = np.empty(size * LANES, np.uint8)
    flat, count = rows.reshape(-1), rows.size // SUPER
    first, step, steps = _FIRST, _STEP, _STEPS
    if weights.size == 0:
        first, step, steps = (-0.5, 0.1, 15) if fifth else (-1.0, 0.1, 20)
    for begin in range(0, count, LANES):
        lay(flat, begin, count, SUPER, starts, x)
        if weights.size:
            lay(weights, begin, count, SUPER, starts, w)
            weigh(x, w, SUPER, np.float32(2) * energy(x, 0, SUPER) / np.float32(SUPER))
            _sums(w, _BLOCK, sums)
        else:
            _weigh_evenly(x, w, _BLOCK)
        for j in range(8):
            at = j * _BLOCK * LANES
            scale, minimum = fit(x, w, at, _BLOCK, top, first, step, steps, False, codes, trial)
            store(scales, j * LANES, scale)
            store(minima, j * LANES, minimum)
        if weights.size:
            d, dmin = half(fit_positive(scales, sums, 8, 63, s)), half(fit_positive(minima, sums, 8, 63, m))
        else:
            d, dmin = half(fit_to_largest(scales, 8, 63, s)), half(fit_to_largest(minima, 8, 63, m))
        if fifth or weights.size == 0:
            for i in range(0, 8 * LANES, LANES):
                scale, minimum = load(s, i), load(m, i)
                store(s, i, where(scale > 63, 63, scale))
                store(m, i, where(minimum > 63, 63, minimum))
        store_half(block, 0, d)
        store_half(block, 2 * LANES, dmin)
        _scales_of_six_bits(s, m, block, 4 * LANES)
        for j in range(8):
            scale, minimum = _scale_of_six_bits(block, 4 * LANES, j)
            scale, minimum = from_half(d) * floats(scale), from_half(dmin) * floats(minimum)
            _recode(x, codes, j * _BLOCK * LANES, _BLOCK, top, scale, minimum)
        _pack_by_fours(codes, block, (size - 128) * LANES, fifth)
        apart(block, size, begin, count, out)


def q4_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows as quantize_q4_K does."""
    _k45(rows, weights, out, 15)


def q5_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows as quantize_q5_K does."""
    _k45(rows, weights, out, 31)


@compiled
def q2_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows as quantize_q2_K does: sixteen blocks of 16; scales and minima of 4 bits, codes, d, dmin."""
    x, w = np.empty(SUPER * LANES, np.float32), np.empty(SUPER * LANES, np.float32)
    scales, minima = np.empty(16 * LANES, np.float32), np.empty(16 * LANES, np.float32)
    sums, trial = np.empty(16 * LANES, np.float32), np.empty(16 * LANES, np.float32)
    codes, s, m = np.empty(SUPER * LANES, np.uint8), np.empty(16 * LANES, np.uint8), np.empty(16 * LANES, np.uint8)
    block, starts = np.empty(96 * LANES, np.uint8), np.empty(LANES, np.int64)
    flat, count, plain = rows.reshape(-1), rows.size // SUPER, weights.size == 0
    first, step, steps = (-0.5, 0.1, 15) if plain else (_FIRST, _STEP, _STEPS)
    for begin in range(0, count, LANES):
        lay(flat, begin, count, SUPER, starts, x)
        if weights.size:
            lay(weights, begin, count, SUPER, starts, w)
            weigh(x, w, SUPER, energy(x, 0, SUPER) / np.float32(SUPER))
            _sums(w, 16, sums)
        else:
            _weigh_evenly(x, w, 16)
        for j in range(16):
            at = j * 16 * LANES
            scale, minimum = fit(x, w, at, 16, 3, first, step, steps, plain, codes, trial)
            store(scales, j * LANES, scale)
            store(minima, j * LANES, minimum)
        if weights.size:
            d, dmin = half(fit_positive(scales, sums, 16, 15, s)), half(fit_positive(minima, sums, 16, 15, m))
        else:
            d, dmin = half(fit_to_largest(scales, 16, 15, s)), half(fit_to_largest(minima, 16, 15, m))
        store_half(block, 80 * LANES, d)
        store_half(block, 82 * LANES, dmin)
        for j in range(16):
            both = (load(s, j * LANES) | (load(m, j * LANES) << 4)) & 255
            store(block, j * LANES, both)
            scale, minimum = from_half(d) * floats(both & 15), from_half(dmin) * floats(both >> 4)
            _recode(x, codes, j * 16 * LANES, 16, 3, scale, minimum)
        for i in range(0, 64 * LANES, LANES):
            at = i if i < 32 * LANES else i + 96 * LANES  # of 128 codes each, four to a byte, 32 apart
            low = load(codes, at) | (load(codes, at + 32 * LANES) << 2)
            high = (load(codes, at + 64 * LANES) << 4) | (load(codes, at + 96 * LANES) << 6)
            store(block, 16 * LANES + i, low | high)
        apart(block, 84, begin, count, out)


@compiled
def _legacy(rows: Floats, weights: Floats, out: Bytes, top: int) -> None:
    """q4_1, q5_1: blocks of 32 weights; d, m, fifth bits, others."""
    x, w = np.empty(_BLOCK * LANES, np.float32), np.empty(_BLOCK * LANES, np.float32)
    trial, codes = np.empty(_BLOCK * LANES, np.float32), np.empty(_BLOCK * LANES, np.uint8)
    starts, sigma2 = np.empty(LANES, np.int64), np.empty(LANES, np.float32)
    size = 24 if top > 15 else 20
    block = np.empty(32 * LANES, np.uint8)
    flat, count, n, sums = rows.reshape(-1), rows.size // _BLOCK, rows.shape[1], squares(rows)
    for begin in range(0, count, LANES):
        lay(flat, begin, count, _BLOCK, starts, x)
        for lane in range(LANES):
            sigma2[lane] = sums[starts[lane] // n] / np.float32(n)
        lay(weights, begin, count, _BLOCK, starts, w)
        weigh(x, w, _BLOCK, load(sigma2, 0))
        scale, minimum = fit(x, w, 0, _BLOCK, top, _FIRST, _STEP, _STEPS, False, codes, trial)
        store_half(block, 0, half(scale))
        store_half(block, 2 * LANES, half(-minimum))
        high = spread(0)
        for i in range(16):
            one, two = load(codes, i * LANES), load(codes, (i + 16) * LANES)
            store(block, (size - 16 + i) * LANES, (one & 15) | ((two & 15) << 4))
            high = high | ((one >> 4) << i) | ((two >> 4) << (i + 16))
        if top > 15:
            for i in range(4):
                store(block, (4 + i) * LANES, high >> (8 * i))
        apart(block, size, begin, count, out)


def q4_1(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows as quantize_q4_1 does where there is an imatrix."""
    _legacy(rows, weights, out, 15)


def q5_1(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows as quantize_q5_1 does where there is an imatrix."""
    _legacy(rows, weights, out, 31)
