"""iq3_xxs and iq3_s, as in ggml-quants.c."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled, part
from planner.compiled.lanes import LANES, load, square_root, store
from planner.formats.ggml.fast.grids import Grid, grid_of
from planner.formats.ggml.fast.search import (
    ALL_OR_NONE,
    DOUBTED,
    SUPER,
    Room,
    best_points,
    energy,
    new_room,
    put_half,
    put_word,
    scale_code,
    set_scales,
    split,
    weigh,
)

__all__ = ["iq3_s", "iq3_xxs"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_SUB = 32  # weights that share a scale
_TOP = 7
_FAINTEST = np.float32(1e-8)  # GROUP_MAX_EPS_IQ3_XXS
_STEP = np.float32(0.2)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_ALL, _MOST = np.float32(SUPER), np.float32(31)


@part
def _weigh(x: Floats, at: int, weights: Floats, place: int, sigma2: Any, room: Room) -> None:
    if len(weights):
        weigh(x, at, weights, place, _SUB, sigma2, room)
        return
    for i in range(0, _SUB, LANES):
        weight = load(x, at + i) * load(x, at + i)
        store(room.w, i, weight)
        store(room.root, i, square_root(weight))


@compiled
def _xxs(rows: Floats, weights: Floats, out: Bytes, grid: Grid) -> None:
    x, length = rows.reshape(-1), rows.shape[1]
    data = out.reshape(-1)
    room = new_room()
    scales, words = np.zeros(8, np.float32), np.zeros(8, np.int64)
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, 98 * block
        data[y : y + 98] = 0
        sigma2 = _TWO * energy(x, begin) / _ALL
        most = _ZERO
        for ib in range(8):
            at = begin + _SUB * ib
            scales[ib], words[ib] = 0, 0
            _weigh(x, at, weights, at % length, sigma2, room)
            largest = split(x, at, _SUB, True, room)
            if largest < _FAINTEST:
                continue
            count = set_scales(largest, _TOP, 15, _STEP, room)
            scale = best_points(_SUB, count, largest / np.float32(15), DOUBTED, False, grid, room)
            flipped = 0
            if scale < 0:
                scale, flipped = -scale, 127
            for k in range(8):
                data[y + 2 + 8 * ib + k] = grid.place[room.codes[k]]
            for k in range(4):
                words[ib] |= np.int64(room.signs[k] ^ flipped) << 7 * k
            scales[ib] = scale
            most = max(most, scale)
        if most == 0:
            data[y : y + 98] = 0
            continue
        d = most / _MOST
        put_half(data, y, d * np.float32(1.0125), room)
        inverse = _ONE / d
        for ib in range(8):
            put_word(data, y + 66 + 4 * ib, words[ib] | scale_code(inverse, scales[ib]) << 28)


@compiled
def _s(rows: Floats, weights: Floats, out: Bytes, grid: Grid) -> None:
    x, length = rows.reshape(-1), rows.shape[1]
    data = out.reshape(-1)
    room = new_room()
    scales = np.zeros(8, np.float32)
    for block in range(len(x) // SUPER):
        begin, y = SUPER * block, 110 * block
        data[y : y + 110] = 0
        sigma2 = _TWO * energy(x, begin) / _ALL
        most = _ZERO
        stored = 0  # sub-blocks: one without weights leaves no gap among codes and signs
        for ib in range(8):
            at = begin + _SUB * ib
            scales[ib] = 0
            _weigh(x, at, weights, at % length, sigma2, room)
            largest = split(x, at, _SUB, False, room)
            if largest == 0:
                continue
            count = set_scales(largest, _TOP, 9, _STEP, room)
            scale = best_points(_SUB, count, largest / np.float32(15), ALL_OR_NONE, True, grid, room)
            flipped = 0
            if scale < 0:
                scale, flipped = -scale, 255
            high = 0
            for k in range(8):
                place = grid.place[room.codes[k]]
                data[y + 2 + 8 * stored + k] = place & 255
                high |= place >> 8 << k
            data[y + 66 + ib] = high
            for k in range(4):
                data[y + 74 + 4 * stored + k] = room.signs[k] ^ flipped
            stored += 1
            scales[ib] = scale
            most = max(most, scale)
        if most == 0:
            continue
        d = most / _MOST
        put_half(data, y, d * np.float32(1.033), room)
        inverse = _ONE / d
        for ib in range(0, 8, 2):
            low, up = scale_code(inverse, scales[ib]), scale_code(inverse, scales[ib + 1])
            data[y + 106 + ib // 2] = low | up << 4


def iq3_xxs(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq3_xxs: see the package."""
    _xxs(rows, weights, out, grid_of("iq3_xxs"))


def iq3_s(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize to iq3_s: see the package."""
    _s(rows, weights, out, grid_of("iq3_s"))
