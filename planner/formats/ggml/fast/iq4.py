"""Formats of a scale and a table of sixteen levels: iq4_nl and iq4_xs, as in ggml-quants.c, many blocks side by side.

A block of weights x, of weight w each, is fitted by `scale * level`. ggml seeks the level that is nearest to a weight
for each of the scales that it tries (best_index_int8). We find out where between two levels a weight begins, and then
only ask whether it has passed the middle.
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
    half,
    load,
    nearest,
    spread,
    store,
    where,
)
from planner.formats.ggml.fast.blocks import FAINTEST, SUPER, apart, energy, extreme, lay, store_half, weigh

__all__ = ["iq4_nl", "iq4_xs"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# kvalues_iq4nl of ggml-common.h, and the middles between them, which float32 holds: ggml's search compares
# differences, which are exact where they are about equal, and so has the same borders; ties go up
_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MIDDLES = np.append((_LEVELS[:-1] + _LEVELS[1:]) / np.float32(2), np.float32(np.inf))
_STEPS = np.diff(_LEVELS)
_ZERO, _ONE = np.float32(0), np.float32(1)
_TRIES = 7  # of other scales, to either side


@part
def _level(v: Any) -> Any:
    """Return the levels that are nearest to numbers; the last for NaN, as in ggml."""
    level = spread(_LEVELS[0])
    for k in range(15):
        level += where(v < _MIDDLES[k], spread(_ZERO), _STEPS[k])
    return level


@part
def _code(v: Any) -> Any:
    """Return the codes of the levels that are nearest to numbers; the last for NaN."""
    code = spread(0)
    for k in range(15):
        code += where(v < _MIDDLES[k], spread(0), 1)
    return code


@part
def _neighbours(v: Any) -> Any:
    """Return the levels that are nearest to numbers, the next above, and the middle between these two."""
    level, above, middle = spread(_LEVELS[0]), spread(_LEVELS[1]), spread(_MIDDLES[0])
    for k in range(15):
        passed = v >= _MIDDLES[k]
        level, above = where(passed, _LEVELS[k + 1], level), where(passed, _LEVELS[min(k + 2, 15)], above)
        middle = where(passed, _MIDDLES[k + 1], middle)
    return level, above, middle


@part
def _fit(x: Floats, w: Floats, at: int, scratch: Floats) -> Any:
    """Return scales for 32 weights in each lane: quantize_row_iq4_nl_impl, within a block.

    From the first to the last scale tried, a weight in units of it, from -134/127 to -120/127 of what it is of the
    largest times 127, grows or shrinks by a factor below 1.12. From one middle to the next it is 1.23 and more, so
    that a weight has at most two levels. `scratch` is f32[5, 32 * LANES].
    """
    middles, lower_x, upper_x, lower_2, upper_2 = scratch
    size, largest = extreme(x, at, 32)
    inverse = _ONE / (-largest / _LEVELS[0])
    first = (_LEVELS[0] - np.float32(_TRIES)) / largest
    last = (_LEVELS[0] + np.float32(_TRIES)) / largest
    sum_x, sum_2 = spread(_ZERO), spread(_ZERO)
    for i in range(0, 32 * LANES, LANES):
        v, weight = load(x, at + i), load(w, at + i)
        level = _level(inverse * v)
        sum_x += weight * level * v
        sum_2 += weight * level * level
        one, other = first * v, last * v
        level, above, middle = _neighbours(where(one < other, one, other))
        store(middles, i, middle)
        store(lower_x, i, weight * level * v)
        store(lower_2, i, weight * level * level)
        store(upper_x, i, weight * above * v)
        store(upper_2, i, weight * above * above)
    scale = where(sum_2 > _ZERO, sum_x / sum_2, _ZERO)
    best = scale * sum_x
    for turn in range(-_TRIES, _TRIES + 1, 3):
        inverse1 = (np.float32(turn) + _LEVELS[0]) / largest
        inverse2 = (np.float32(turn + 1) + _LEVELS[0]) / largest
        inverse3 = (np.float32(turn + 2) + _LEVELS[0]) / largest
        x1, x2, x3, s1, s2, s3 = (
            spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO), spread(_ZERO)
        )  # fmt: skip
        for i in range(0, 32 * LANES, LANES):
            v, middle = load(x, at + i), load(middles, i)
            below1, below2, below3 = inverse1 * v < middle, inverse2 * v < middle, inverse3 * v < middle
            lower, upper = load(lower_x, i), load(upper_x, i)
            x1 += where(below1, lower, upper)
            x2 += where(below2, lower, upper)
            x3 += where(below3, lower, upper)
            lower, upper = load(lower_2, i), load(upper_2, i)
            s1 += where(below1, lower, upper)
            s2 += where(below2, lower, upper)
            s3 += where(below3, lower, upper)
        for sum_x, sum_2 in ((x1, s1), (x2, s2), (x3, s3)):
            better = (sum_2 > _ZERO) & (sum_x * sum_x > best * sum_2)
            scale = where(better, sum_x / sum_2, scale)
            best = where(better, scale * sum_x, best)
    return where(size < FAINTEST, _ZERO, scale)


@part
def _inverse(scale: Any) -> Any:
    return where(scale != _ZERO, _ONE / scale, _ZERO)


@part
def _put(x: Floats, at: int, inverse: Any, stage: Bytes, to: int) -> None:
    """Put the codes of the levels of 32 weights in each lane, two in a byte."""
    for i in range(0, 16 * LANES, LANES):
        lower, upper = _code(inverse * load(x, at + i)), _code(inverse * load(x, at + i + 16 * LANES))
        store(stage, to + i, lower | (upper << 4))


@part
def _lay_weighed(rows: Floats, weights: Floats, block: int, count: int, n: int, x: Floats, w: Floats) -> None:
    """Lay blocks of n weights side by side, and what each counts; without imatrix values, that is its square."""
    starts = np.empty(LANES, np.int64)
    lay(rows.reshape(rows.size), block, count, n, starts, x)
    if weights.size:
        lay(weights, block, count, n, starts, w)
        weigh(x, w, n, energy(x, 0, n) * (np.float32(2) / np.float32(n)))
        return
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        store(w, i, v * v)


@compiled
def iq4_nl(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n], or none, to u8[r, bytes]: quantize_iq4_nl."""
    count = rows.size // 32
    x, w = np.empty((2, 32 * LANES), np.float32)
    scratch = np.empty((5, 32 * LANES), np.float32)
    stage = np.empty(32 * LANES, np.uint8)
    for block in range(0, count, LANES):
        _lay_weighed(rows, weights, block, count, 32, x, w)
        scale = _fit(x, w, 0, scratch)
        word = half(scale)
        store_half(stage, 0, word)
        _put(x, 0, _inverse(scale), stage, 2 * LANES)
        apart(stage, 18, block, count, out)


@compiled
def iq4_xs(rows: Floats, weights: Floats, out: Bytes) -> None:
    """Quantize rows f32[r, n] with imatrix values f32[n], or none, to u8[r, bytes]: quantize_iq4_xs."""
    count = rows.size // SUPER
    x, w = np.empty((2, SUPER * LANES), np.float32)
    scratch, scales = np.empty((5, 32 * LANES), np.float32), np.empty(8 * LANES, np.float32)
    stage = np.empty(144 * LANES, np.uint8)
    for block in range(0, count, LANES):
        _lay_weighed(rows, weights, block, count, SUPER, x, w)
        size, scale = spread(_ZERO), spread(_ZERO)
        for sub in range(8):
            own = _fit(x, w, sub * 32 * LANES, scratch)
            store(scales, sub * LANES, own)
            larger = absolute(own) > size
            size, scale = where(larger, absolute(own), size), where(larger, own, scale)
        unit = -scale / np.float32(32)
        word, inverse = half(unit), _inverse(unit)
        upper, lower = spread(0), spread(0)
        for sub in range(8):
            multiple = clamped(nearest(inverse * load(scales, sub * LANES)), -32, 31)
            _put(x, sub * 32 * LANES, _inverse(unit * floats(multiple)), stage, (8 + 16 * sub) * LANES)
            multiple = multiple + 32
            upper = upper | ((multiple >> 4) << (2 * sub))
            lower = multiple & 15 if sub % 2 == 0 else lower | ((multiple & 15) << 4)
            store(stage, (4 + sub // 2) * LANES, lower)
        store_half(stage, 0, word)
        store(stage, 2 * LANES, upper)
        store(stage, 3 * LANES, upper >> 8)
        apart(stage, 136, block, count, out)
