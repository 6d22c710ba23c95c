"""iq1_m, as in ggml-quants.c. Sums are made for as many second places of a split at once as there are `LANES`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import LANES, load, spread, store, where
from planner.formats.ggml.fast.grids import Grid, grid_of
from planner.formats.ggml.fast.search import SUPER, Room, energy, half_of, nearest_int, nearest_point, new_room, weigh
from planner.formats.ggml.fast.splits import LEVELS, LOWEST, add, assign, choose, code_of, largest, sort

__all__ = ["iq1_m"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]

_FAINTEST_M = np.float32(1e-7)  # GROUP_MAX_EPS_IQ1_M
_ZERO, _ONE, _TWO, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_ALL, _MOST = np.float32(SUPER), np.float32(15)


@part
def _split_sums(
    x: Floats,
    at: int,
    w: Floats,
    begin: int,
    order: Numbers,
    i1: int,
    i2: int,
    lanes: Numbers,
    table: Floats,
    qx: Floats,
    q2: Floats,
) -> None:
    """Put the sums of 16 weights for a first place and `LANES` second ones into `qx` and `q2`, in four ways: each half
    with either set of levels."""
    second = load(lanes, 0) + np.int32(i2)
    x0, x1, x2, x3 = spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO)
    w0, w1, w2, w3 = spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO)
    for j in range(16):
        i = order[j]
        value, weight = x[at + i], w[begin + i]
        kind = 0 if j < i1 else 1
        middle = second > np.int32(j)
        p, p2 = weight * table[0, kind], weight * table[0, 2]
        m, m2 = weight * table[1, kind], weight * table[1, 2]
        if j < i1:
            px, pw = spread(p * value), spread(p * table[0, 0])
            mx, mw = spread(m * value), spread(m * table[1, 0])
        else:
            px, pw = (
                where(middle, p * value, spread(p2 * value)),
                where(middle, p * table[0, 1], spread(p2 * table[0, 2])),
            )
            mx, mw = (
                where(middle, m * value, spread(m2 * value)),
                where(middle, m * table[1, 1], spread(m2 * table[1, 2])),
            )
        if i < 8:
            x0, x1, x2, x3 = x0 + px, x1 + px, x2 + mx, x3 + mx
            w0, w1, w2, w3 = w0 + pw, w1 + pw, w2 + mw, w3 + mw
        else:
            x0, x1, x2, x3 = x0 + px, x1 + mx, x2 + px, x3 + mx
            w0, w1, w2, w3 = w0 + pw, w1 + mw, w2 + pw, w3 + mw
    store(qx, 0, x0)
    store(qx, LANES, x1)
    store(qx, 2 * LANES, x2)
    store(qx, 3 * LANES, x3)
    store(q2, 0, w0)
    store(q2, LANES, w1)
    store(q2, 2 * LANES, w2)
    store(q2, 3 * LANES, w3)


@part
def _split_short(
    x: Floats, at: int, w: Floats, begin: int, lanes: Numbers, table: Floats, sums: Any, found: Numbers
) -> Any:
    """Find where 16 weights, sorted, are split into levels best, and return the scale."""
    order, qx, q2 = sums
    sort(x, at, 16, order)
    best = LOWEST
    found[0] = -1
    for i1 in range(17):
        found[3] = i1
        for i2 in range(i1, 17, LANES):
            _split_sums(x, at, w, begin, order, i1, i2, lanes, table, qx, q2)
            best = choose(qx, q2, 4, lanes, i2, min(LANES, 17 - i2), best, found)
    return qx[-1]


@part
def _place_short(
    x: Floats,
    at: int,
    w: Floats,
    begin: int,
    scale: Any,
    shift: int,
    levels: Numbers,
    codes: Numbers,
    grid: Grid,
    table: Floats,
    terms: Floats,
) -> Any:
    """Put the codes of two groups' points into `codes`, and return their scale."""
    moved = False
    for k in range(2):
        code, i, values = code_of(levels, 8 * k), begin + 8 * k, table[shift >> (1 - k) & 1]
        if grid.place[code] < 0:
            moved = True
            code = nearest_point(x, at + 8 * k, w, i, scale, code, values, grid, terms)
        codes[i // 8] = code
    if moved:
        a, b = _ZERO, _ZERO
        for k in range(2):
            i, values = begin + 8 * k, table[shift >> (1 - k) & 1]
            a, b = add(a, b, x, at + 8 * k, w, i, codes[i // 8], values, _ONE)
        if a > 0 and b > 0:
            scale = a / b
    return scale


@part
def _finish_short(
    x: Floats,
    begin: int,
    w: Floats,
    most: Any,
    scales: Floats,
    shifts: Numbers,
    codes: Numbers,
    table: Floats,
    data: Bytes,
    y: int,
    room: Room,
) -> None:
    """Put the codes of scales, the sets of levels and the scale of all into a block's bytes."""
    d = most / _MOST
    inverse = _ONE / d
    a, b = _ZERO, _ZERO
    for ib in range(16):
        code = max(0, min(7, nearest_int(_HALF * (inverse * scales[ib] - _ONE))))
        bits = code << 3 * (ib % 4)
        data[y + 48 + ib // 4 * 2] |= bits & 255
        data[y + 49 + ib // 4 * 2] |= bits >> 8
        data[y + 32 + ib] |= (shifts[ib] >> 1) << 3 | (shifts[ib] & 1) << 7
        factor = np.float32(2 * code + 1)
        for k in range(2):
            i, values = 16 * ib + 8 * k, table[shifts[ib] >> (1 - k) & 1]
            a, b = add(a, b, x, begin + i, w, i, codes[2 * ib + k], values, factor)
    if b > 0:
        d = a / b
    half = half_of(d * np.float32(1.1125), room)
    for i in range(4):
        data[y + 49 + 2 * i] |= (half >> 4 * i & 15) << 4


@compiled
def _m(rows: Floats, weights: Floats, out: Bytes, grid: Grid, table: Floats) -> None:
    x, data, length = rows.reshape(-1), out.reshape(-1), rows.shape[1]
    room, lanes, w = new_room(), np.arange(LANES).astype(np.int32), np.zeros(SUPER, np.float32)
    order, levels, found = np.zeros(16, np.int32), np.zeros(16, np.int32), np.zeros(4, np.int32)
    scales, shifts, codes = np.zeros(16, np.float32), np.zeros(16, np.int32), np.zeros(32, np.int32)
    sums = (order, np.zeros(4 * LANES + 1, np.float32), np.zeros(4 * LANES, np.float32))
    data[:] = 0
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, 56 * block
        sigma2 = _TWO * energy(x, begin) / _ALL
        most = _ZERO
        for ib in range(16):
            at = begin + 16 * ib
            scales[ib], shifts[ib] = 0, 0
            codes[2 * ib] = codes[2 * ib + 1] = 0
            if len(weights):
                weigh(x, at, weights, at % length, 16, sigma2, room)
                store(w, 16 * ib, load(room.w, 0))
            else:
                store(w, 16 * ib, load(x, at) * load(x, at))
            if largest(x, at, 16) < _FAINTEST_M:
                continue
            scale = _split_short(x, at, w, 16 * ib, lanes, table, sums, found)
            if found[0] < 0:
                continue
            shift, flip = found[2], scale < 0
            assign(order, 16, found, flip, levels)
            if flip:
                scale, shift = -scale, 3 - shift
            scale = _place_short(x, at, w, 16 * ib, scale, shift, levels, codes, grid, table, room.terms)
            places = np.int64(grid.place[codes[2 * ib]]), np.int64(grid.place[codes[2 * ib + 1]])
            data[y + 2 * ib], data[y + 2 * ib + 1] = places[0] & 255, places[1] & 255
            data[y + 32 + ib] = places[0] >> 8 | places[1] >> 8 << 4
            scales[ib], shifts[ib] = scale, shift
            most = max(most, scale)
        if most != 0:
            _finish_short(x, begin, w, most, scales, shifts, codes, table, data, y, room)


def iq1_m(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq1_m: see the package."""
    _m(rows, weights, out, grid_of("iq1_s"), LEVELS)
