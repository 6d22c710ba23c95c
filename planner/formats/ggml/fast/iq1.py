"""iq1_s, as in ggml-quants.c. Sums are made for as many second places of a split at once as there are `LANES`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import LANES, load, store
from planner.formats.ggml.fast.grids import Grid, grid_of
from planner.formats.ggml.fast.search import SUPER, Room, energy, nearest_int, nearest_point, new_room, put_half, weigh
from planner.formats.ggml.fast.splits import LEVELS, LOWEST, add, assign, choose, code_of, largest, sort

__all__ = ["iq1_s"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]

_FAINTEST_S = np.float32(1e-12)  # GROUP_MAX_EPS_IQ1_S
_ZERO, _ONE, _TWO, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_ALL, _MOST = np.float32(SUPER), np.float32(15)
_ROOM = 64 + LANES


@part
def _split_long(x: Floats, at: int, lanes: Numbers, table: Floats, sums: Any, found: Numbers, room: Room) -> Any:
    """Find where 32 weights, sorted, are split into levels best, and return the scale."""
    order, sx, sw, qx, q2 = sums
    sort(x, at, 32, order)
    for j in range(32):
        i = order[j]
        sx[j + 1] = sx[j] + room.w[i] * x[at + i]
        sw[j + 1] = sw[j] + room.w[i]
    best = LOWEST
    found[0] = -1
    for i1 in range(33):
        found[3] = i1
        for i2 in range(i1, 33, LANES):
            second, weight = load(sx, i2), load(sw, i2)
            for kind in range(2):
                low, middle, high = table[kind, 0], table[kind, 1], table[kind, 2]
                part_x = (second - sx[i1]) * middle + (sx[i1] - sx[0]) * low
                store(qx, kind * LANES, part_x + (sx[32] - second) * high)
                part_2 = (weight - sw[i1]) * middle * middle + (sw[i1] - sw[0]) * low * low
                store(q2, kind * LANES, part_2 + (sw[32] - weight) * high * high)
            best = choose(qx, q2, 2, lanes, i2, min(LANES, 33 - i2), best, found)
    return qx[-1]


@part
def _place_long(
    x: Floats, at: int, scale: Any, values: Floats, levels: Numbers, codes: Numbers, grid: Grid, room: Room
) -> Any:
    """Put the codes of four groups' points into `codes`, and return their scale."""
    moved = False
    for k in range(4):
        code = code_of(levels, 8 * k)
        if grid.place[code] < 0:
            moved = True
            code = nearest_point(x, at + 8 * k, room.w, 8 * k, scale, code, values, grid, room.terms)
        codes[k] = code
    if moved:
        a, b = _ZERO, _ZERO
        for k in range(4):
            a, b = add(a, b, x, at + 8 * k, room.w, 8 * k, codes[k], values, _ONE)
        if a > 0 and b > 0:
            scale = a / b
    return scale


@compiled
def _s(rows: Floats, weights: Floats, out: Bytes, grid: Grid, table: Floats) -> None:
    x, data, length = rows.reshape(-1), out.reshape(-1), rows.shape[1]
    room, lanes = new_room(), np.arange(LANES).astype(np.int32)
    order, levels, found = np.zeros(32, np.int32), np.zeros(32, np.int32), np.zeros(4, np.int32)
    scales, shifts, codes = np.zeros(8, np.float32), np.zeros(8, np.int32), np.zeros(4, np.int32)
    sx, sw = np.zeros(_ROOM, np.float32), np.zeros(_ROOM, np.float32)
    sums = (order, sx, sw, np.zeros(2 * LANES + 1, np.float32), np.zeros(2 * LANES, np.float32))
    data[:] = 0
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, 50 * block
        sigma2 = _TWO * energy(x, begin) / _ALL
        most = _ZERO
        for ib in range(8):
            at = begin + 32 * ib
            scales[ib], shifts[ib] = 0, 0
            weigh(x, at, weights, at % length, 32, sigma2, room)
            if largest(x, at, 32) < _FAINTEST_S:
                continue
            scale = _split_long(x, at, lanes, table, sums, found, room)
            if found[0] < 0:
                continue
            shift, flip = found[2], scale < 0
            assign(order, 32, found, flip, levels)
            if flip:
                scale, shift = -scale, 1 - shift
            scale = _place_long(x, at, scale, table[shift], levels, codes, grid, room)
            high: Any = 0
            for k in range(4):
                place = np.int64(grid.place[codes[k]])
                data[y + 2 + 4 * ib + k] = place & 255
                high |= place >> 8 << 3 * k
            data[y + 34 + 2 * ib], data[y + 35 + 2 * ib] = high & 255, high >> 8
            scales[ib], shifts[ib] = scale, shift
            most = max(most, scale)
        if most == 0:
            continue
        d = most / _MOST
        put_half(data, y, d * np.float32(1.125), room)
        inverse = _ONE / d
        for ib in range(8):
            code = max(0, min(7, nearest_int(_HALF * (inverse * scales[ib] - _ONE))))
            data[y + 35 + 2 * ib] |= (code | shifts[ib] << 3) << 4


def iq1_s(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq1_s: see the package."""
    _s(rows, weights, out, grid_of("iq1_s"), LEVELS)
