"""The search for points of a lattice, as iq2 and iq3 do it: many scales side by side.

ggml tries a number of scales, one after another, and for each of them goes over the neighbours of each group's point.
The same sums, in the same order, are made here of all scales at once. What a weight adds to a distance depends on its
level alone, and there are few: these terms are made once, and a neighbour costs an addition for each weight. Scales
that round a group to the same point share the work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import part
from planner.compiled.lanes import (
    LANES,
    clamped,
    floats,
    half,
    load,
    nearest,
    spread,
    square_root,
    store,
    where,
)
from planner.formats.ggml.fast.grids import Grid

__all__ = [
    "ALL_OR_NONE",
    "ALWAYS",
    "DOUBTED",
    "SUPER",
    "Room",
    "best_points",
    "energy",
    "half_of",
    "nearest_int",
    "nearest_point",
    "new_room",
    "put_half",
    "put_word",
    "scale_code",
    "set_scales",
    "split",
    "weigh",
]

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

SUPER = 256  # weights of a block, QK_K
DOUBTED, ALL_OR_NONE, ALWAYS = range(3)
"""Groups to round again: whose point was not of the lattice; all if there is such a one; all."""
_SCALES = 2 * LANES  # room for scales that are tried; 31 are most
_MOST = 32  # weights that share a scale, at most
_LEVELS = 8 * 8  # levels of a group's weights, and room for lanes of each
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_MAGIC = np.float32(12582912)
_VALUES = np.arange(1, 16, 2).astype(np.float32)  # of levels
_LARGEST = np.float32(np.finfo(np.float32).max)


class Room(NamedTuple):
    """What one sub-block needs while it is worked on; made once a call."""

    x: Floats  # magnitudes, f32[32]: signs are apart
    w: Floats  # weights
    root: Floats  # their roots, by which neighbours are found
    signs: Numbers  # a bit a weight, eight to a number, i32[4]
    inverses: Floats  # f32[_SCALES]
    scales: Floats
    rounded: Numbers  # codes of points, i32[groups * _SCALES]
    tried: Numbers  # of the lattice's
    qx: Floats  # f32[_SCALES]
    q2: Floats
    codes: Numbers  # chosen, i32[8]
    terms: Floats
    spare: Numbers  # i32[LANES]


@part
def new_room() -> Room:
    """Return room for a sub-block."""
    f, i = np.float32, np.int32
    return Room(
        np.zeros(_MOST, f), np.zeros(_MOST, f), np.zeros(_MOST, f), np.zeros(4, i),
        np.zeros(_SCALES, f), np.zeros(_SCALES, f), np.zeros(8 * _SCALES, i), np.zeros(8 * _SCALES, i),
        np.zeros(_SCALES, f), np.zeros(_SCALES, f), np.zeros(8, i), np.zeros(_LEVELS * LANES, f), np.zeros(LANES, i),
    )  # fmt: skip


@part
def nearest_int(value: Any) -> Any:
    """Return the nearest integer, ties to even; for numbers beyond 22 bits what C's bits then are (nearest_int)."""
    return np.int64(np.float32(value + _MAGIC).view(np.int32) & 0x007FFFFF) - 0x00400000


@part
def scale_code(inverse: Any, scale: Any) -> Any:
    """Return the code, 0 to 15, of a sub-block's scale."""
    return max(0, min(15, nearest_int(_HALF * (inverse * scale - _ONE))))


@part
def half_of(value: Any, room: Room) -> Any:
    """Return the bits of the nearest half-precision float."""
    store(room.spare, 0, half(spread(np.float32(value))))
    return room.spare[0]


@part
def put_half(data: Any, at: int, value: Any, room: Room) -> None:
    """Put the nearest half-precision float into two bytes."""
    half = half_of(value, room)
    data[at], data[at + 1] = half & 255, half >> 8


@part
def put_word(data: Any, at: int, word: Any) -> None:
    """Put 32 bits into four bytes."""
    for k in range(4):
        data[at + k] = word >> 8 * k & 255


@part
def energy(x: Floats, begin: int) -> Any:
    """Return the sum of squares of a block."""
    total = _ZERO
    for i in range(begin, begin + SUPER):
        total += x[i] * x[i]
    return total


@part
def weigh(x: Floats, at: int, weights: Floats, place: int, n: int, sigma2: Any, room: Room) -> None:
    """Put weights of n numbers, a multiple of `LANES`, into `room`: of their imatrix values and squares."""
    for i in range(0, n, LANES):
        value = load(x, at + i)
        weight = load(weights, place + i) * square_root(value * value + sigma2)
        store(room.w, i, weight)
        store(room.root, i, square_root(weight))


@part
def split(x: Floats, at: int, n: int, even: bool, room: Room) -> Any:
    """Put magnitudes and signs of n numbers into `room`, and return the largest magnitude. `even`: of eight weights an
    even number is negative; the one that matters least is of the other sign where there is an odd one."""
    for k in range(n // 8):
        signs, flips = 0, 0
        for i in range(8 * k, 8 * k + 8):
            value = x[at + i]
            if value >= 0:
                room.x[i] = value
            else:
                room.x[i] = -value
                signs |= 1 << (i - 8 * k)
                flips += 1
        if even:
            if flips & 1:
                least, which = room.w[8 * k] * x[at + 8 * k] * x[at + 8 * k], 8 * k
                for i in range(8 * k + 1, 8 * k + 8):
                    matter = room.w[i] * x[at + i] * x[at + i]
                    if matter < least:
                        least, which = matter, i
                room.x[which] = -room.x[which]
                signs ^= 1 << (which - 8 * k)
            signs &= 127
        room.signs[k] = signs
    most = room.x[0]
    for i in range(1, n):
        most = max(most, room.x[i])
    return most


@part
def set_scales(most: Any, top: int, steps: int, step: Any, room: Room) -> int:
    """Put the scales that are tried into `room`, from -steps to steps, and return how many there are."""
    count = 2 * steps + 1
    for s in range(_SCALES):
        by = np.float32(min(s, count - 1) - steps)
        inverse = (np.float32(2 * top + 1) + by * step) / most
        room.inverses[s] = inverse
        room.scales[s] = _ONE / inverse
    return count


@part
def _rounded(x: Floats, begin: int, inverse: Any, grid: Grid) -> int:
    """Return the code of the point that a group's weights round to, with the inverse of a scale."""
    code = 0
    for i in range(grid.width):
        level = nearest_int(_HALF * (inverse * x[begin + i] - _ONE))
        code |= max(0, min(grid.top, level)) << (grid.shift * i)
    return code


@part
def nearest_point(
    x: Floats, at: int, w: Floats, begin: int, scale: Any, code: int, values: Floats, grid: Grid, terms: Floats
) -> Any:
    """Return the code of the neighbour of a point that is nearest to the weights of a group, from x[at] and w[begin]
    on, the first of such (iq2_find_best_neighbour and its like). `values`: of levels."""
    levels = grid.top + 1
    for i in range(grid.width):
        for level in range(levels):
            gap = scale * values[level] - x[at + i]
            terms[i * levels + level] = w[begin + i] * gap * gap
    best, found = _LARGEST, np.int64(grid.codes[grid.first[code]])
    for j in range(grid.first[code], grid.first[code] + grid.counts[code]):
        distance = _ZERO
        for i in range(grid.width):
            distance += terms[grid.near[j, i]]
        if distance < best:
            best, found = distance, np.int64(grid.codes[j])
    return found


@part
def _try_scales(n: int, count: int, grid: Grid, room: Room) -> None:
    """Put the codes of points for `count` scales into room.rounded and room.tried, and sums of w x q and w q q into
    room.qx and room.q2."""
    rounded, tried, terms, spare = room.rounded, room.tried, room.terms, room.spare
    x, w, root = room.x, room.w, room.root
    place, first, counts, near, codes = grid.place, grid.first, grid.counts, grid.near, grid.codes
    width, shift, top = grid.width, grid.shift, grid.top
    mask = (1 << shift) - 1
    for v in range(0, count, LANES):
        inverse, scale = load(room.inverses, v), load(room.scales, v)
        last = min(v + LANES, count)
        qx, q2 = spread(_ZERO), spread(_ZERO)
        for begin in range(0, n, width):
            at = begin // width * _SCALES
            code = spread(np.int32(0))
            for i in range(width):
                level = clamped(nearest((inverse * x[begin + i] - _ONE) * _HALF), 0, top)
                code = code | (level << (shift * i))
            store(rounded, at + v, code)
            store(tried, at + v, code)
            laid = False
            s = v
            while s < last:
                point = rounded[at + s]
                end = s + 1
                while end < last and rounded[at + end] == point:
                    end += 1
                if place[point] < 0:
                    if not laid:
                        laid = True
                        for i in range(width):
                            value, weight = x[begin + i], root[begin + i]
                            for level in range(top + 1):
                                gap = scale * np.float32(2 * level + 1) - value
                                store(terms, (i * (top + 1) + level) * LANES, gap * weight * gap)
                    best, found = spread(_LARGEST), spread(np.int32(0))
                    for j in range(first[point], first[point] + counts[point]):
                        distance = load(terms, near[j, 0] * LANES)
                        for i in range(1, 4):
                            distance += load(terms, near[j, i] * LANES)
                        if width == 8:
                            for i in range(4, 8):
                                distance += load(terms, near[j, i] * LANES)
                        nearer = distance < best
                        best = where(nearer, distance, best)
                        found = where(nearer, codes[j], found)
                    store(spare, 0, found)
                    for k in range(s, end):
                        tried[at + k] = spare[k - v]
                s = end
            code = load(tried, at + v)
            for i in range(width):
                q = floats((((code >> (shift * i)) & mask) << 1) | 1)
                weight = w[begin + i]
                qx += q * (weight * x[begin + i])
                q2 += q * weight * q
        store(room.qx, v, qx)
        store(room.q2, v, q2)


@part
def _fitted(n: int, scale: Any, grid: Grid, room: Room) -> Any:
    """Return the best scale for the codes that are chosen."""
    qx, q2 = _ZERO, _ZERO
    mask = (1 << grid.shift) - 1
    for begin in range(0, n, grid.width):
        code = room.codes[begin // grid.width]
        for i in range(grid.width):
            q = np.float32(2 * ((code >> (grid.shift * i)) & mask) + 1)
            w = room.w[begin + i]
            qx += w * room.x[begin + i] * q
            q2 += w * q * q
    return qx / q2 if q2 > 0 else scale


@part
def best_points(n: int, count: int, scale: Any, again: int, doubted: bool, grid: Grid, room: Room) -> Any:
    """Choose codes of points for n weights, room.codes, and return their scale.

    Of `count` scales the best is taken, or `scale` where none is good. Then groups are rounded once more with the scale
    that fits best: `again` says which. `doubted`: where no scale is good, no group's point is taken for one of the
    lattice.
    """
    groups = n // grid.width
    _try_scales(n, count, grid, room)
    best, chosen = _ZERO, -1
    for s in range(count):
        qx, q2 = room.qx[s], room.q2[s]
        if q2 > 0 and qx * qx > best * q2:
            scale = qx / q2
            best, chosen = scale * qx, s
    off: Any = 0
    for k in range(groups):
        room.codes[k] = room.tried[k * _SCALES + chosen] if chosen >= 0 else 0
        doubt = grid.place[room.rounded[k * _SCALES + chosen]] < 0 if chosen >= 0 else doubted
        off |= np.int64(doubt) << k
    if (off != 0 or again == ALWAYS) and scale > 0:
        inverse = _ONE / scale
        for k in range(groups):
            if again != DOUBTED or off >> k & 1:
                begin = k * grid.width
                code = _rounded(room.x, begin, inverse, grid)
                if grid.place[code] < 0:
                    code = nearest_point(room.x, begin, room.root, begin, scale, code, _VALUES, grid, room.terms)
                room.codes[k] = code
        scale = _fitted(n, scale, grid, room)
    return scale
