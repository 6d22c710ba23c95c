"""The compiled loops: errors times covariance, and the descent over codes and scales.

Every float is the result of the same operations in the same order whatever the number of threads or the processor: the
compiler changes none, and no function of a mathematical library is called. So are the codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled
from planner.formats.ggml.refine.codes import Choices, State

__all__ = ["changes", "descend", "dots", "products"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_DEEP, _WIDE = 64, 128  # of the part of the covariance that rows are multiplied with at a time: 32 KiB, a cache
_LEAST = np.float32(1e-4)  # of what a step changes by itself: gains below are as likely rounding
_PAYS = 0.01  # of all that a row has gained: with less in one sweep, it is done
_TWO = np.float32(2)  # an integer would make a double of a product
_SIGNED = 8  # weights whose signs are stored together


@compiled
def _spread(out: Floats, steps: Floats, h: Floats, top: int, sparing: bool) -> None:
    """Add steps f32[r, m] of the weights from `top` on, times their covariances with all, to `out`, f32[r, n]; not to
    these weights themselves if `sparing`. Steps of zero cost nothing, and eight others are taken at a time."""
    rows, deep = steps.shape
    width = out.shape[1]
    part = np.empty((deep, _WIDE), np.float32)
    sums = np.empty(_WIDE, np.float32)
    taken, places = np.zeros((rows, deep + 8), np.float32), np.zeros((rows, deep + 8), np.uint16)
    counts = np.zeros(rows, np.int64)
    for row in range(rows):
        for j in range(deep):
            if steps[row, j] != 0:
                taken[row, counts[row]], places[row, counts[row]] = steps[row, j], j
                counts[row] += 1
    for left in range(0, width, _WIDE):
        wide = min(_WIDE, width - left)
        for j in range(deep):
            for k in range(wide):
                part[j, k] = h[top + j, left + k]
        if sparing:
            part[:, max(top - left, 0) : max(top + deep - left, 0)] = 0
        for row in range(rows):
            if counts[row] == 0:
                continue
            sums[:] = 0
            for i in range(0, counts[row], 8):
                s, p = taken[row, i : i + 8], places[row, i : i + 8]
                s0, s1, s2, s3, s4, s5, s6, s7 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
                h0, h1, h2, h3 = part[p[0]], part[p[1]], part[p[2]], part[p[3]]
                h4, h5, h6, h7 = part[p[4]], part[p[5]], part[p[6]], part[p[7]]
                for k in range(wide):
                    sums[k] = (
                        sums[k] + s0 * h0[k] + s1 * h1[k] + s2 * h2[k] + s3 * h3[k]
                        + s4 * h4[k] + s5 * h5[k] + s6 * h6[k] + s7 * h7[k]
                    )  # fmt: skip
            for k in range(wide):
                out[row, left + k] += sums[k]


@compiled
def products(errors: Floats, covariance: Floats, out: Floats) -> None:
    """Put errors f32[r, n] times a covariance f32[n, n] into `out`, f32[r, n]. `n` is a multiple of 8."""
    out[:] = 0
    for top in range(0, errors.shape[1], _DEEP):
        _spread(out, errors[:, top : top + _DEEP], covariance, top, False)


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


@compiled
def _move(g: Floats, moved: Floats, h: Floats, a: int, e: int, j: int, step: np.float32) -> None:
    """Change weight `j` of a row by `step`, and what follows of it within the panel from `a` to `e`."""
    moved[j - a] += step
    for k in range(a, e):
        g[k] += step * h[j, k]


@compiled
def _nearest(levels: Floats, value: float) -> int:
    """Return the place of the level that is nearest to a value."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if levels[middle] < value:
            low = middle + 1
        else:
            high = middle
    if low > 0 and value - levels[low - 1] <= levels[low] - value:
        low -= 1
    return low


@compiled
def _codes(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: Floats, a: int, e: int) -> float:
    """Give each weight of a panel the level that is best while all others stay; return what that gains."""
    group = g.shape[0] // state.scales.shape[1]
    levels, reach, top = choices.levels, choices.reach, len(choices.levels) - 1
    places, own_levels, scales, units = state.places[r], state.levels[r], state.scales[r], state.units[r]
    won = 0.0
    for begin in range(a, e, group):
        own = begin // group
        scale = choices.scales[scales[own]] * units[own]
        if scale == 0:
            continue
        inverse = np.float32(1) / scale
        for j in range(begin, begin + group):
            # Most weights have their best level already, which takes neither a search nor a division to see
            weight = h[j, j]
            if abs(g[j]) <= reach[places[j]] * abs(scale) * weight:
                continue
            wanted = own_levels[j] - g[j] / weight * inverse
            if choices.even:
                place = int(min(max(np.rint(wanted - levels[0]), np.float32(0)), np.float32(top)))
            else:
                place = _nearest(levels, wanted)
            if place == places[j]:
                continue
            step = scale * (levels[place] - own_levels[j])
            itself = weight * step * step
            change = _TWO * step * g[j] + itself
            if change < -_LEAST * itself:
                places[j] = place
                own_levels[j] = levels[place]
                _move(g, moved, h, a, e, j, step)
                won -= change
    return won


@compiled
def _points(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: Floats, a: int, e: int) -> float:
    """Move each point of a lattice within a panel to its best neighbour, signs as they are; return what that gains."""
    group, size, count = g.shape[0] // state.scales.shape[1], choices.points.shape[1], choices.near.shape[1]
    along, changes_by, slopes = np.empty(size, np.float32), np.empty(count, np.float32), np.empty(count, np.float32)
    won = 0.0
    for begin in range(a, e, size):
        own = begin // group
        scale = choices.scales[state.scales[r, own]] * state.units[r, own]
        at = state.places[r, begin // size]
        signs = state.signs[r, begin // _SIGNED] >> (begin % _SIGNED) if state.signs.shape[1] else 0
        ways = choices.ways[at]
        for i in range(size):
            along[i] = -scale if signs >> i & 1 else scale
        changes_by[:] = 0
        for i in range(size):
            slopes[:] = _TWO * along[i] * g[begin + i]
            for k in range(i):
                both = _TWO * along[i] * along[k] * h[begin + i, begin + k]
                for m in range(count):
                    slopes[m] += both * ways[k, m]
            itself = along[i] * along[i] * h[begin + i, begin + i]
            for m in range(count):
                changes_by[m] += ways[i, m] * (slopes[m] + itself * ways[i, m])
        best = 0
        for m in range(1, count):
            if changes_by[m] < changes_by[best]:
                best = m
        slope = np.float32(0)
        for i in range(size):
            slope += _TWO * along[i] * ways[i, best] * g[begin + i]
        if changes_by[best] < -_LEAST * (changes_by[best] - slope):
            place = choices.near[at, best]
            state.places[r, begin // size] = place
            for i in range(size):
                level = choices.points[place, i]
                state.levels[r, begin + i] = -level if signs >> i & 1 else level
                step = along[i] * ways[i, best]
                if step != 0:
                    _move(g, moved, h, a, e, begin + i, step)
            won -= float(changes_by[best])
    return won


@compiled
def _signs(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: Floats, a: int, e: int) -> float:
    """Flip signs of a panel, two at a time where their number has to stay even; return what that gains."""
    group = g.shape[0] // state.scales.shape[1]
    won = 0.0
    for begin in range(a, e, _SIGNED):
        own = begin // group
        scale = choices.scales[state.scales[r, own]] * state.units[r, own]
        best, first, second = 0.0, -1, -1
        for i in range(begin, begin + _SIGNED):
            one = -_TWO * scale * state.levels[r, i]
            itself = h[i, i] * one * one
            change = _TWO * one * g[i] + itself
            if not choices.parity:
                if change < best and change < -_LEAST * itself:
                    best, first = change, i
                continue
            for k in range(i + 1, begin + _SIGNED):
                other = -_TWO * scale * state.levels[r, k]
                both = itself + h[k, k] * other * other + _TWO * h[i, k] * one * other
                change_of_both = _TWO * (one * g[i] + other * g[k]) + both
                if change_of_both < best and change_of_both < -_LEAST * both:
                    best, first, second = change_of_both, i, k
        for j in (first, second):
            if j >= 0:
                step = -_TWO * scale * state.levels[r, j]
                state.levels[r, j] = -state.levels[r, j]
                state.signs[r, begin // _SIGNED] ^= 1 << (j - begin)
                _move(g, moved, h, a, e, j, step)
        won -= best
    return won


@compiled
def _scales(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: Floats, a: int, e: int) -> float:
    """Give each group of a panel the scale that is best for its codes, of those that can be stored, then likewise the
    offset; return what that gains."""
    group = g.shape[0] // state.scales.shape[1]
    direction, across = np.empty(group, np.float32), np.empty(e - a, np.float32)
    won = 0.0
    for begin in range(a, e, group):
        own = begin // group
        for second in range(2 if state.offsets.shape[1] else 1):
            table = choices.offsets if second else choices.scales
            unit = state.offset_units[r, own] if second else state.units[r, own]
            place = state.offsets[r, own] if second else state.scales[r, own]
            direction[:] = 1
            if not second:
                direction[:] = state.levels[r, begin : begin + group]
            across[:] = 0
            for i in range(0, group, 8):
                d, part = direction[i : i + 8], h[begin + i : begin + i + 8, a:e]
                d0, d1, d2, d3, d4, d5, d6, d7 = d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]
                for k in range(e - a):
                    across[k] = (
                        across[k] + d0 * part[0, k] + d1 * part[1, k] + d2 * part[2, k] + d3 * part[3, k]
                        + d4 * part[4, k] + d5 * part[5, k] + d6 * part[6, k] + d7 * part[7, k]
                    )  # fmt: skip
            slope, bend = np.float32(0), np.float32(0)
            for i in range(group):
                slope += direction[i] * g[begin + i]
                bend += direction[i] * across[begin - a + i]
            if unit == 0 or not bend > 0:
                continue
            better = _nearest(table, table[place] - slope / bend / unit)
            step = unit * (table[better] - table[place])
            itself = bend * step * step
            change = _TWO * step * slope + itself
            if not change < -_LEAST * itself:
                continue
            if second:
                state.offsets[r, own] = better
            else:
                state.scales[r, own] = better
            for i in range(group):
                moved[begin - a + i] += step * direction[i]
            for k in range(a, e):
                g[k] += step * across[k - a]
            won -= change
    return won


@compiled
def _recode(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: Floats, a: int, e: int) -> float:
    """Improve the codes of a row that lie in a panel; return what that gains."""
    if not choices.points.shape[1]:
        return _codes(state, choices, r, g, moved, h, a, e)
    won = _points(state, choices, r, g, moved, h, a, e)
    if state.signs.shape[1]:
        won += _signs(state, choices, r, g, moved, h, a, e)
    return won


@compiled
def descend(state: State, choices: Choices, gradient: Floats, h: Floats, panel: int, sweeps: int) -> Doubles:
    """Improve rows whose errors times the covariance are `gradient`, f32[r, n], in place; return by how much the error
    of each has become less, f64[r].

    Weights are visited from the first to the last, `panel` of them at a time: within it, every change counts at once;
    what lies outside hears of it when all rows have been through.
    """
    rows, width = gradient.shape
    moved = np.empty((rows, panel), np.float32)
    gains, active = np.zeros(rows), np.ones(rows, np.bool_)
    for sweep in range(sweeps):
        won = np.zeros(rows)
        for a in range(0, width, panel):
            e = min(a + panel, width)
            moved[:] = 0
            for r in range(rows):
                if active[r]:
                    g, m = gradient[r], moved[r]
                    won[r] += _recode(state, choices, r, g, m, h, a, e)
                    if sweep == 0:  # all may move, which costs as much as `products`; a second time gains 0.5 %
                        won[r] += _scales(state, choices, r, g, m, h, a, e)
                    won[r] += _recode(state, choices, r, g, m, h, a, e)
            _spread(gradient, moved[:, : e - a], h, a, True)
        gains += won
        active &= won > _PAYS * gains
        if not active.any():
            break
    return gains
