"""The compiled loops of the descent over codes and scales.

Every float is the result of the same operations in the same order whatever the number of threads or the processor: the
compiler changes none, and no function of a mathematical library is called. So are the codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import compiled
from planner.compiled.lanes import LANES, absolute, first, fused, largest, load, spread, store, total
from planner.formats.ggml.refine.codes import Choices, State
from planner.formats.ggml.refine.products import carry

__all__ = ["descend"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_LEAST = np.float32(1e-4)  # of what a step changes by itself: gains below are as likely rounding
_PAYS = 0.01  # of all that a row has gained: with less in one sweep, it is done
_HALF, _TWO = np.float32(0.5), np.float32(2)  # an integer would make a double of a product
_SIGNED = 8  # weights whose signs are stored together


class _Covariance(NamedTuple):
    """A covariance row by row, f32[n * n], its diagonal, f32[n]; ones, f32[n], and of the panel that is looked at the
    sums of each group's rows, f32[panel / group, panel]: what an offset moves."""

    flat: Floats
    diagonal: Floats
    ones: Floats
    sums: Floats


@compiled
def _move(g: Floats, moved: Floats, h: _Covariance, a: int, e: int, j: int, step: np.float32) -> None:
    """Change weight `j` of a row by `step`, and what follows of it within the panel from `a` to `e`."""
    moved[j - a] += step
    start = j * len(g)
    for k in range(a, e, LANES):
        store(g, k, fused(load(h.flat, start + k), step, load(g, k)))


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
def _codes(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: _Covariance, a: int, e: int) -> float:
    """Give each weight of a panel the level that is best while all others stay; return what that gains."""
    group = g.shape[0] // state.scales.shape[1]
    levels, all_scales, all_reach, top = choices.levels, choices.scales, choices.reach, len(choices.levels) - 1
    diagonal = h.diagonal
    places, own_levels, reach, scales, units = (
        state.places[r], state.levels[r], state.reach[r], state.scales[r], state.units[r]
    )  # fmt: skip
    won = 0.0
    for begin in range(a, e, group):
        own = begin // group
        scale = all_scales[scales[own]] * units[own]
        if scale == 0:
            continue
        inverse = np.float32(1) / scale
        for some in range(begin, begin + group, LANES):
            # Most weights have their best level already, which takes neither a search nor a division to see
            lane = 0
            while True:
                far = absolute(load(g, some)) > load(reach, some) * abs(scale) * load(diagonal, some)
                lane = first(far, lane)
                if lane == LANES:
                    break
                j = some + lane
                weight = diagonal[j]
                wanted = own_levels[j] - g[j] / weight * inverse
                if choices.even:
                    place = int(min(max(wanted - levels[0], np.float32(0)), np.float32(top)) + _HALF)
                else:
                    place = _nearest(levels, wanted)
                step = scale * (levels[place] - own_levels[j])
                itself = weight * step * step
                change = _TWO * step * g[j] + itself
                if change < -_LEAST * itself:
                    places[j] = place
                    own_levels[j] = levels[place]
                    reach[j] = all_reach[place]
                    _move(g, moved, h, a, e, j, step)
                    won -= change
                lane += 1
    return won


@compiled
def _points(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: _Covariance, a: int, e: int) -> float:
    """Move each point of a lattice within a panel to its best neighbour, signs as they are; return what that gains."""
    width = g.shape[0]
    group, size, count = width // state.scales.shape[1], choices.points.shape[1], choices.near.shape[1]
    ways = choices.ways.reshape(-1)
    along = np.empty(size, np.float32)
    won = 0.0
    for begin in range(a, e, size):
        own = begin // group
        scale = choices.scales[state.scales[r, own]] * state.units[r, own]
        at = state.places[r, begin // size]
        signs = state.signs[r, begin // _SIGNED] >> (begin % _SIGNED) if state.signs.shape[1] else 0
        for i in range(size):
            along[i] = -scale if signs >> i & 1 else scale
        least, best = np.float32(np.inf), 0
        for some in range(0, count, LANES):
            changes = spread(np.float32(0))
            for i in range(size):
                slopes = spread(_TWO * along[i] * g[begin + i])
                for k in range(i):
                    both = _TWO * along[i] * along[k] * h.flat[(begin + i) * width + begin + k]
                    slopes = fused(load(ways, (at * size + k) * count + some), both, slopes)
                way = load(ways, (at * size + i) * count + some)
                itself = along[i] * along[i] * h.diagonal[begin + i]
                changes = fused(way, fused(way, itself, slopes), changes)
            change = -largest(-changes)
            if change < least:
                least, best = change, some + first(changes == change, 0)
        slope = np.float32(0)
        for i in range(size):
            slope += _TWO * along[i] * ways[(at * size + i) * count + best] * g[begin + i]
        if least < -_LEAST * (least - slope):
            place = choices.near[at, best]
            state.places[r, begin // size] = place
            for i in range(size):
                level = choices.points[place, i]
                state.levels[r, begin + i] = -level if signs >> i & 1 else level
                step = along[i] * ways[(at * size + i) * count + best]
                if step != 0:
                    _move(g, moved, h, a, e, begin + i, step)
            won -= float(least)
    return won


@compiled
def _signs(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: _Covariance, a: int, e: int) -> float:
    """Flip signs of a panel, two at a time where their number has to stay even; return what that gains."""
    width = g.shape[0]
    group = width // state.scales.shape[1]
    won = 0.0
    for begin in range(a, e, _SIGNED):
        own = begin // group
        scale = choices.scales[state.scales[r, own]] * state.units[r, own]
        best, first, second = 0.0, -1, -1
        for i in range(begin, begin + _SIGNED):
            one = -_TWO * scale * state.levels[r, i]
            itself = h.diagonal[i] * one * one
            change = _TWO * one * g[i] + itself
            if not choices.parity:
                if change < best and change < -_LEAST * itself:
                    best, first = change, i
                continue
            for k in range(i + 1, begin + _SIGNED):
                other = -_TWO * scale * state.levels[r, k]
                both = itself + h.diagonal[k] * other * other + _TWO * h.flat[i * width + k] * one * other
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
def _across(direction: Floats, h: _Covariance, a: int, begin: int, group: int, across: Floats) -> None:
    """Put what a group of weights in a direction, f32[n], means for those of its panel from `a` on into `across`."""
    width = len(direction)
    for k in range(0, len(across), 2 * LANES):
        first_half = second_half = spread(np.float32(0))
        for i in range(begin, begin + group):
            at = i * width + a + k
            first_half = fused(load(h.flat, at), direction[i], first_half)
            second_half = fused(load(h.flat, at + LANES), direction[i], second_half)
        store(across, k, first_half)
        store(across, k + LANES, second_half)


@compiled
def _rescaled(
    direction: Floats, across: Floats, table: Floats, place: int, unit: np.float32, g: Floats, moved: Floats, a: int,
    begin: int, group: int,
) -> tuple[int, float]:  # fmt: skip
    """Move a group of weights along a direction, f32[n], by what leads from one place in a table to the best; return
    that, and how the error changes."""
    slopes = bends = spread(np.float32(0))
    for i in range(0, group, LANES):
        some = load(direction, begin + i)
        slopes = fused(some, load(g, begin + i), slopes)
        bends = fused(some, load(across, begin - a + i), bends)
    slope, bend = total(slopes), total(bends)
    if unit == 0 or not bend > 0:
        return place, 0.0
    better = _nearest(table, table[place] - slope / bend / unit)
    step = unit * (table[better] - table[place])
    itself = bend * step * step
    change = _TWO * step * slope + itself
    if not change < -_LEAST * itself:
        return place, 0.0
    for i in range(group):
        moved[begin - a + i] += step * direction[begin + i]
    for k in range(len(across)):
        g[a + k] += step * across[k]
    return better, change


@compiled
def _scales(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: _Covariance, a: int, e: int) -> float:
    """Give each group of a panel the scale that is best for its codes, of those that can be stored, then likewise the
    offset; return what that gains."""
    group = g.shape[0] // state.scales.shape[1]
    across = np.empty(e - a, np.float32)
    won = 0.0
    for begin in range(a, e, group):
        own = begin // group
        _across(state.levels[r], h, a, begin, group, across)
        place, unit = state.scales[r, own], state.units[r, own]
        better, change = _rescaled(state.levels[r], across, choices.scales, place, unit, g, moved, a, begin, group)
        state.scales[r, own] = better
        won -= change
        if state.offsets.shape[1]:
            place, unit = state.offsets[r, own], state.offset_units[r, own]
            sums = h.sums[(begin - a) // group, : e - a]
            better, change = _rescaled(h.ones, sums, choices.offsets, place, unit, g, moved, a, begin, group)
            state.offsets[r, own] = better
            won -= change
    return won


@compiled
def _recode(state: State, choices: Choices, r: int, g: Floats, moved: Floats, h: _Covariance, a: int, e: int) -> float:
    """Improve the codes of a row that lie in a panel; return what that gains."""
    if not choices.points.shape[1]:
        return _codes(state, choices, r, g, moved, h, a, e)
    won = _points(state, choices, r, g, moved, h, a, e)
    if state.signs.shape[1]:
        won += _signs(state, choices, r, g, moved, h, a, e)
    return won


@compiled
def descend(state: State, choices: Choices, gradient: Floats, covariance: Floats, panel: int, sweeps: int) -> Doubles:
    """Improve rows whose errors times the covariance are `gradient`, f32[r, n], in place; return by how much the error
    of each has become less, f64[r].

    Weights are visited from the first to the last, `panel` of them at a time: within it, every change counts at once;
    what lies outside hears of it when all rows have been through.
    """
    rows, width = gradient.shape
    group = width // state.scales.shape[1]
    moved = np.empty((rows, panel), np.float32)
    h = _Covariance(
        covariance.reshape(-1), np.diag(covariance).copy(), np.ones(width, np.float32),
        np.empty((panel // group, panel), np.float32),
    )  # fmt: skip
    gains, active = np.zeros(rows), np.ones(rows, np.bool_)
    for sweep in range(sweeps):
        won = np.zeros(rows)
        for a in range(0, width, panel):
            e = min(a + panel, width)
            if sweep == 0 and state.offsets.shape[1]:
                for begin in range(a, e, group):
                    _across(h.ones, h, a, begin, group, h.sums[(begin - a) // group, : e - a])
            moved[:] = 0
            for r in range(rows):
                if active[r]:
                    g, m = gradient[r], moved[r]
                    won[r] += _recode(state, choices, r, g, m, h, a, e)
                    if sweep == 0:  # all may move, which costs as much as `products`; a second time gains 0.5 %
                        won[r] += _scales(state, choices, r, g, m, h, a, e)
                        won[r] += _recode(state, choices, r, g, m, h, a, e)
            carry(gradient, moved[:, : e - a], covariance, a)
        gains += won
        active &= won > _PAYS * gains
        if not active.any():
            break
    return gains
