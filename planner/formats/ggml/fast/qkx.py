"""Formats of a scale and a minimum: q2_K, q4_K, q5_K, q4_1, q5_1, as in ggml-quants.c, many blocks side by side.

Weights x of a block, that count w each, are fitted by `scale * code + minimum`. ggml's names are beside ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml.fast.compiler import compiled
from planner.formats.ggml.fast.lanes import (
    LANES,
    clamped,
    floats,
    from_half,
    half,
    lay,
    load,
    nearest,
    some,
    spread,
    square_root,
    store,
    where,
)

__all__ = ["q4_k"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SUPER = 256  # weights of a super-block, QK_K
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_FAINTEST = np.float32(1e-15)  # GROUP_MAX_EPS


@compiled
def _fit(
    x: Floats, w: Floats, at: int, n: int, top: int, first: float, step: float, steps: int, codes: Any, trial: Any
) -> Any:
    """Return scales and (negative) minima for n weights in each lane, and put codes of 0 to `top`: make_qkx3_quants."""
    most, x0, sum_w = np.float32(top), load(x, at), load(w, at)
    low, high, sum_x = x0, x0, sum_w * x0
    for i in range(LANES, n * LANES, LANES):
        v, weight = load(x, at + i), load(w, at + i)
        low, high = where(v < low, v, low), where(v > high, v, high)
        sum_w += weight
        sum_x += weight * v
    low = where(low > _ZERO, _ZERO, low)
    least = low
    flat = high <= low
    inverse = most / (high - low)
    scale = _ONE / inverse
    best, error = low, spread(_ZERO)
    best_inverse = inverse
    for i in range(0, n * LANES, LANES):
        v = load(x, at + i)
        code = floats(clamped(nearest(inverse * (v - low)), 0, top))
        off = scale * code + low - v
        error += load(w, at + i) * (off * off)
    minimum = low
    for turn in range(steps + 1):
        inverse = (np.float32(first) + np.float32(step) * np.float32(turn) + most) / (high - minimum)
        sum_l, sum_l2, sum_xl = spread(_ZERO), spread(_ZERO), spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            v = load(x, at + i)
            code = floats(clamped(nearest(inverse * (v - minimum)), 0, top))
            store(trial, i, code)
            weighed = load(w, at + i) * code
            sum_l += weighed
            sum_l2 += weighed * code
            sum_xl += weighed * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_minimum > _ZERO
        new_scale = where(above, sum_xl / sum_l2, new_scale)
        new_minimum = where(above, _ZERO, new_minimum)
        new_error = spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            off = new_scale * load(trial, i) + new_minimum - load(x, at + i)
            new_error += load(w, at + i) * (off * off)
        better = (determinant > _ZERO) & (new_error < error)
        # Codes are those of the best scale so far and of the minimum before it
        best_inverse, best = where(better, inverse, best_inverse), where(better, minimum, best)
        error, scale = where(better, new_error, error), where(better, new_scale, scale)
        minimum = where(better, new_minimum, minimum)
    for i in range(0, n * LANES, LANES):
        code = clamped(nearest(best_inverse * (load(x, at + i) - best)), 0, top)
        store(codes, at + i, where(flat, 0, code))
    return where(flat, _ZERO, scale), -where(flat, least, minimum)


@compiled
def _fit_positive(x: Floats, w: Floats, n: int, top: int, codes: Any) -> Any:
    """Return scales for n numbers in each lane that are not negative, and put codes of 0 to `top`: make_qp_quants."""
    most, high = np.float32(top), spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        high = where(high > v, high, v)
    none = high < _FAINTEST
    inverse = most / high
    scale, error = _ONE / inverse, spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        off = v - scale * floats(nearest(inverse * v) & 255)
        error += load(w, i) * off * off
    for turn in range(-4, 5):
        if turn == 0:
            continue
        other = (np.float32(0.1) * np.float32(turn) + most) / high
        scale, new_error = _ONE / other, spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            v = load(x, i)
            code = nearest(other * v)
            off = v - scale * floats(where(code > top, top, code))
            new_error += load(w, i) * off * off
        better = new_error < error
        error, inverse = where(better, new_error, error), where(better, other, inverse)
    sum_lx, sum_l2 = spread(_ZERO), spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v, weight = load(x, i), load(w, i)
        code = nearest(inverse * v)
        code = where(code > top, top, code)
        store(codes, i, code & 255)
        sum_lx += weight * v * floats(code)
        sum_l2 += weight * floats(code) * floats(code)
    for _ in range(5):
        changed = none & ~none
        for i in range(0, n * LANES, LANES):
            v, weight, code = load(x, i), load(w, i), load(codes, i)
            old = floats(code)
            lx, l2 = sum_lx - weight * v * old, sum_l2 - weight * old * old
            new = nearest(v * l2 / lx)
            new = where(new > top, top, new)
            m = floats(new)
            new_lx, new_l2 = lx + weight * v * m, l2 + weight * m * m
            better = (lx > _ZERO) & (l2 > _ZERO) & (new != code)
            better = better & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            store(codes, i, where(better, new & 255, code))
            sum_lx, sum_l2 = where(better, new_lx, sum_lx), where(better, new_l2, sum_l2)
            changed = changed | better
        if not some(changed):  # of a lane that is done, nothing changes in another round
            break
    for i in range(0, n * LANES, LANES):
        store(codes, i, where(none, 0, load(codes, i)))
    return where(none | ~(sum_l2 > _ZERO), _ZERO, sum_lx / sum_l2)


@compiled
def _weigh(x: Floats, w: Floats, of_energy: float) -> None:
    """Make weights of imatrix values: w √(σ² + x²), σ² a multiple of the mean square of a super-block."""
    energy = spread(_ZERO)
    for i in range(0, _SUPER * LANES, LANES):
        v = load(x, i)
        energy += v * v
    energy = np.float32(of_energy) * energy / np.float32(_SUPER)
    for i in range(0, _SUPER * LANES, LANES):
        v = load(x, i)
        store(w, i, load(w, i) * square_root(energy + v * v))


@compiled
def _sum(w: Floats, at: int, n: int) -> Any:
    total = spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        total += load(w, at + i)
    return total


@compiled
def _recode(x: Floats, codes: Any, at: int, n: int, top: int, scale: Any, minimum: Any) -> None:
    """Code weights anew for scales and minima as they are stored; lanes without a scale keep the codes they have."""
    kept = scale == _ZERO
    for i in range(at, at + n * LANES, LANES):
        code = clamped(nearest((load(x, i) + minimum) / scale), 0, top)
        store(codes, i, where(kept, load(codes, i), code))


@compiled
def _k45(rows: Floats, weights: Floats, out: Bytes, top: int, limit: int) -> None:
    """q4_K and q5_K: codes of 4 or 5 bits, eight scales and minima of 6 bits (quantize_row_q4_K_impl)."""
    count, per_row = rows.size // _SUPER, rows.shape[1] // _SUPER
    wide, size = top > 15, out.size // max(rows.size // _SUPER, 1)
    flat, data = rows.reshape(-1), out.reshape(-1)
    x, w = np.empty(_SUPER * LANES, np.float32), np.empty(_SUPER * LANES, np.float32)
    codes, trial = np.empty(_SUPER * LANES, np.uint8), np.empty(32 * LANES, np.float32)
    scales, minima, sums = (
        np.empty(8 * LANES, np.float32),
        np.empty(8 * LANES, np.float32),
        np.empty(8 * LANES, np.float32),
    )
    s, m = np.empty(8 * LANES, np.uint8), np.empty(8 * LANES, np.uint8)
    block = np.zeros(176 * LANES, np.uint8)
    from_row, from_weights = np.empty(LANES, np.int64), np.empty(LANES, np.int64)
    for begin in range(0, count, LANES):
        for lane in range(LANES):
            b = min(begin + lane, count - 1)
            from_row[lane], from_weights[lane] = b * _SUPER, b % per_row * _SUPER
        lay(flat, from_row, _SUPER, x)
        lay(weights, from_weights, _SUPER, w)
        _weigh(x, w, 2.0)
        for j in range(8):
            scale, minimum = _fit(x, w, 32 * j * LANES, 32, top, -0.9, 0.05, 36, codes, trial)
            store(scales, j * LANES, scale)
            store(minima, j * LANES, minimum)
            store(sums, j * LANES, _sum(w, 32 * j * LANES, 32))
        d = half(_fit_positive(scales, sums, 8, 63, s))
        dmin = half(_fit_positive(minima, sums, 8, 63, m))
        store(block, 0, d)
        store(block, LANES, d >> 8)
        store(block, 2 * LANES, dmin)
        store(block, 3 * LANES, dmin >> 8)
        for j in range(8):
            ls, lm = load(s, j * LANES), load(m, j * LANES)
            if wide:
                ls, lm = where(ls > 63, 63, ls), where(lm > 63, 63, lm)
            here = (4 + j) * LANES
            if j < 4:
                store(block, here, ls)
                store(block, here + 4 * LANES, lm)
            else:
                store(block, here + 4 * LANES, (ls & 15) | ((lm & 15) << 4))
                store(block, here - 4 * LANES, load(block, here - 4 * LANES) | ((ls >> 4) << 6))
                store(block, here, load(block, here) | ((lm >> 4) << 6))
        for j in range(8):
            here = (4 + j) * LANES
            if j < 4:
                ls, lm = load(block, here) & 63, load(block, here + 4 * LANES) & 63
            else:
                last = load(block, here + 4 * LANES)
                ls = (last & 15) | ((load(block, here - 4 * LANES) >> 6) << 4)
                lm = (last >> 4) | ((load(block, here) >> 6) << 4)
            _recode(x, codes, 32 * j * LANES, 32, top, from_half(d) * floats(ls), from_half(dmin) * floats(lm))
        _pack_k45(codes, block, wide)
        for lane in range(min(LANES, count - begin)):
            for i in range(size):
                data[(begin + lane) * size + i] = block[i * LANES + lane]


@compiled
def _pack_k45(codes: Any, block: Bytes, wide: bool) -> None:
    """Put codes into their bytes: the lowest four bits of two, 32 apart, in one; fifth bits first, eight in one."""
    q = (48 if wide else 16) * LANES
    for j in range(4):
        for i in range(32 * j * 2 * LANES, 32 * (j * 2 + 1) * LANES, LANES):
            first, second = load(codes, i), load(codes, i + 32 * LANES)
            store(block, q, (first & 15) | ((second & 15) << 4))
            q += LANES
            if wide:
                high = (16 + 0) * LANES + i - 64 * j * LANES
                both = ((first >> 4) | ((second >> 4) << 1)) << (2 * j)
                store(block, high, both if j == 0 else both | load(block, high))


@compiled
def q4_k(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows with imatrix values."""
    _k45(rows, weights, out, 15, 63)
