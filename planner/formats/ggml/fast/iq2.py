"""iq2_xxs, iq2_xs and iq2_s, as in ggml-quants.c."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import LANES, floats, load, nearest, spread, square_root, store, where
from planner.formats.ggml.fast.grids import Grid, grid_of
from planner.formats.ggml.fast.search import (
    ALWAYS,
    DOUBTED,
    SUPER,
    Room,
    best_points,
    energy,
    nearest_int,
    new_room,
    put_half,
    put_word,
    scale_code,
    set_scales,
    split,
    weigh,
)

__all__ = ["iq2_s", "iq2_xs", "iq2_xxs"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]

_TOP = 2
_FAINTEST, _FAINTEST_S = np.float32(1e-15), np.float32(1e-8)  # GROUP_MAX_EPS, GROUP_MAX_EPS_IQ2_S
_STEP = np.float32(0.1)
_ZERO, _ONE, _TWO, _QUARTER = np.float32(0), np.float32(1), np.float32(2), np.float32(0.25)
_ALL, _MOST, _FIVE, _THREE = np.float32(SUPER), np.float32(31), np.float32(5), np.float32(3)
_FOUR = np.float32(4)


@part
def _first_scale(largest: Any, levels: Numbers, room: Room) -> Any:
    """Return the scale of 32 weights in levels 0 to 4: make_qp_quants. `levels`: room for them, i32[32]. As ggml keeps
    them in a byte each, -1 is 255 now and then."""
    x, w = room.x, room.w
    for s in range(LANES):
        room.inverses[s] = (_STEP * np.float32(s - 4) + _FOUR) / largest
        room.spare[s] = s
    inverses, first = load(room.inverses, 0), load(room.spare, 0) == 4
    scales, errors = _ONE / inverses, spread(_ZERO)
    for i in range(32):
        level = nearest(inverses * x[i])
        level = where(first, level & 255, where(level > 4, 4, level))
        gap = x[i] - scales * floats(level)
        errors += gap * w[i] * gap
    store(room.qx, 0, errors)
    best, which = room.qx[4], 4
    for s in range(9):
        if s != 4 and room.qx[s] < best:
            best, which = room.qx[s], s
    inverse = room.inverses[which]
    qx, q2 = _ZERO, _ZERO
    for i in range(32):
        level = min(4, nearest_int(inverse * x[i]))
        levels[i] = level & 255
        q = np.float32(level)
        qx += w[i] * x[i] * q
        q2 += w[i] * q * q
    for _ in range(5):
        changed = False
        for i in range(32):
            q = np.float32(levels[i])
            qx_rest = qx - w[i] * x[i] * q
            q2_rest = q2 - w[i] * q * q
            if qx_rest > 0 and q2_rest > 0:
                level = min(4, nearest_int(x[i] * q2_rest / qx_rest))
                if level != levels[i]:
                    q = np.float32(level)
                    qx_rest += w[i] * x[i] * q
                    q2_rest += w[i] * q * q
                    if qx_rest * qx_rest * q2 > qx * qx * q2_rest:
                        levels[i] = level & 255
                        qx, q2 = qx_rest, q2_rest
                        changed = True
        if not changed:
            break
    return qx / q2 if q2 > 0 else _ZERO


@compiled
def _xxs(rows: Floats, weights: Floats, out: Bytes, grid: Grid) -> None:
    x, data, length = rows.reshape(-1), out.reshape(-1), rows.shape[1]
    room, levels = new_room(), np.zeros(32, np.int32)
    scales, words = np.zeros(8, np.float32), np.zeros(8, np.int64)
    data[:] = 0
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, 66 * block
        sigma2 = energy(x, begin) / _ALL
        most = _ZERO
        for ib in range(8):
            at = begin + 32 * ib
            scales[ib], words[ib] = 0, 0
            weigh(x, at, weights, at % length, 32, sigma2, room)
            largest = split(x, at, 32, True, room)
            if largest < _FAINTEST:
                continue
            scale = _first_scale(largest, levels, room)
            if scale * _THREE <= 0:
                continue
            count = set_scales(scale * _THREE, _TOP, 6, _STEP, room)
            scale = best_points(32, count, scale, ALWAYS, False, grid, room)
            flipped = 0
            if scale < 0:
                scale, flipped = -scale, 127
            for k in range(4):
                data[y + 2 + 8 * ib + k] = grid.place[room.codes[k]]
                words[ib] |= np.int64(room.signs[k] ^ flipped) << 7 * k
            scales[ib] = scale
            most = max(most, scale)
        if most == 0:
            data[y : y + 66] = 0
            continue
        d = most / _MOST
        put_half(data, y, d, room)
        inverse = _ONE / d
        for ib in range(8):
            put_word(data, y + 6 + 8 * ib, words[ib] | scale_code(inverse, scales[ib]) << 28)


@part
def _weigh(x: Floats, at: int, weights: Floats, place: int, sigma2: Any, room: Room) -> None:
    if len(weights):
        weigh(x, at, weights, place, 16, sigma2, room)
        return
    value = load(x, at)
    weight = value * value + _QUARTER * sigma2
    store(room.w, 0, weight)
    store(room.root, 0, square_root(weight))


@compiled
def _sixteens(rows: Floats, weights: Floats, out: Bytes, grid: Grid, small: bool) -> None:
    """iq2_s, or iq2_xs if `small`: sub-blocks of 16."""
    x, data, length = rows.reshape(-1), out.reshape(-1), rows.shape[1]
    room, scales = new_room(), np.zeros(16, np.float32)
    size = 74 if small else 82
    faintest = _FAINTEST if small else _FAINTEST_S
    data[:] = 0
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, size * block
        sigma2 = energy(x, begin) / _ALL if small else _TWO * energy(x, begin) / _ALL
        most = _ZERO
        for ib in range(16):
            at = begin + 16 * ib
            scales[ib] = 0
            _weigh(x, at, weights, at % length, sigma2, room)
            largest = split(x, at, 16, small, room)
            if largest < faintest:
                continue
            count = set_scales(largest, _TOP, 9, _STEP, room)
            scale = best_points(16, count, largest / _FIVE, DOUBTED, False, grid, room)
            flipped = 0
            if scale < 0:
                scale, flipped = -scale, 127 if small else 255
            for k in range(2):
                i, place, signs = 2 * ib + k, grid.place[room.codes[k]], room.signs[k] ^ flipped
                if small:
                    word = place | signs << 9
                    data[y + 2 + 2 * i], data[y + 3 + 2 * i] = word & 255, word >> 8
                else:
                    data[y + 2 + i], data[y + 34 + i] = place & 255, signs
                    data[y + 66 + i // 4] |= place >> 8 << 2 * (i % 4)
            scales[ib] = scale
            most = max(most, scale)
        if most == 0:
            if small:
                data[y : y + size] = 0
            continue
        d = most / _MOST
        put_half(data, y, d if small else d * np.float32(0.9875), room)
        inverse = _ONE / d
        for ib in range(8):
            low, high = scale_code(inverse, scales[2 * ib]), scale_code(inverse, scales[2 * ib + 1])
            data[y + size - 8 + ib] = low | high << 4


def iq2_xxs(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq2_xxs: see the package."""
    _xxs(rows, weights, out, grid_of("iq2_xxs"))


def iq2_xs(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq2_xs: see the package."""
    _sixteens(rows, weights, out, grid_of("iq2_xs"), True)


def iq2_s(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq2_s: see the package."""
    _sixteens(rows, weights, out, grid_of("iq2_s"), False)
