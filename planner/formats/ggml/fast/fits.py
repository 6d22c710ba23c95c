"""How blocks are fitted by a scale and a minimum, and scales by one scale: searches of ggml-quants.c, side by side.

Tables are flat, the numbers of one lane `LANES` apart. Each function does what the one of ggml does that it names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.compiled.compiler import part
from planner.compiled.lanes import (
    LANES,
    absolute,
    clamped,
    floats,
    load,
    nearest,
    some,
    spread,
    store,
    where,
)
from planner.formats.ggml.fast.blocks import FAINTEST

__all__ = ["fit", "fit_positive", "fit_to_largest"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_ZERO, _ONE = np.float32(0), np.float32(1)
_INTEGERS = np.float32(12582912)  # 1.5 * 2^23: floats of its size are integers
_NEAR = np.float32(4e6)  # what is nearer to zero is rounded to an integer when that is added


@part
def _coded(value: Any, top: int, near: bool) -> Any:
    """Return the nearest codes from 0 to `top`, as floats; values are `near`, or C's bits are anything (`nearest`)."""
    if near:
        last = _INTEGERS + np.float32(top)
        code = value + _INTEGERS
        code = where(code < _INTEGERS, _INTEGERS, code)
        return where(code > last, last, code) - _INTEGERS
    return floats(clamped(nearest(value), 0, top))


@part
def _all_near(inverse: Any, low: Any, high: Any, minimum: Any) -> bool:
    """Return whether codes of all numbers from `low` to `high` are near, in every lane."""
    first, last = absolute(inverse * (low - minimum)), absolute(inverse * (high - minimum))
    return not some(~((first < _NEAR) & (last < _NEAR)))


@part
def _size(error: Any, plain: bool) -> Any:
    return absolute(error) if plain else error * error


@part
def fit(
    x: Floats, w: Floats, at: int, n: int, top: int, first: float, step: float, steps: int, plain: bool,
    codes: Bytes, trial: Floats,
) -> Any:  # fmt: skip
    """Fit `n` numbers of a lane, from `at` on in `x`, weighed by those in `w`: make_qkx2_quants, make_qkx3_quants.

    Return scales, and minima with their signs turned; put codes of 0 to `top` into `codes`. `steps` inverse scales are
    tried after `first`, `step` apart, in codes; errors count by their squares, or as they are if `plain`. `trial` is
    room for n.
    """
    most, x0, sum_w = np.float32(top), load(x, at), load(w, at)
    low, high, sum_x = x0, x0, sum_w * x0
    for i in range(at + LANES, at + n * LANES, LANES):
        v, weight = load(x, i), load(w, i)
        low, high = where(v < low, v, low), where(v > high, v, high)
        sum_w += weight
        sum_x += weight * v
    lowest = low
    low = where(low > _ZERO, _ZERO, low)
    flat = high <= low
    inverse = most / (high - low)
    scale, minimum, error = _ONE / inverse, low, spread(_ZERO)
    near = _all_near(inverse, lowest, high, minimum)
    for i in range(at, at + n * LANES, LANES):
        v = load(x, i)
        off = scale * _coded(inverse * (v - minimum), top, near) + minimum - v
        error += load(w, i) * _size(off, plain)
    # What the best codes so far are made of: an inverse scale, and the minimum of the time
    best, origin = inverse, minimum
    for turn in range(steps + 1):
        inverse = (np.float32(first) + np.float32(step) * np.float32(turn) + most) / (high - minimum)
        near = _all_near(inverse, lowest, high, minimum)
        sum_l, sum_l2, sum_xl = spread(_ZERO), spread(_ZERO), spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            v = load(x, at + i)
            code = _coded(inverse * (v - minimum), top, near)
            store(trial, i, code)
            weighed = load(w, at + i) * code
            sum_l += weighed
            sum_l2 += weighed * code
            sum_xl += weighed * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_minimum > _ZERO
        new_scale, new_minimum = where(above, sum_xl / sum_l2, new_scale), where(above, _ZERO, new_minimum)
        new_error = spread(_ZERO)
        for i in range(0, n * LANES, LANES):
            off = new_scale * load(trial, i) + new_minimum - load(x, at + i)
            new_error += load(w, at + i) * _size(off, plain)
        better = (determinant > _ZERO) & (new_error < error)
        best, origin = where(better, inverse, best), where(better, minimum, origin)
        scale, minimum = where(better, new_scale, scale), where(better, new_minimum, minimum)
        error = where(better, new_error, error)
    for i in range(at, at + n * LANES, LANES):
        store(codes, i, where(flat, 0, clamped(nearest(best * (load(x, i) - origin)), 0, top)))
    return where(flat, _ZERO, scale), -where(flat, low, minimum)


@part
def fit_positive(x: Floats, w: Floats, n: int, top: int, codes: Bytes) -> Any:
    """Fit `n` numbers of a lane that are not negative by codes times a scale: make_qp_quants.

    Return scales, put codes of 0 to `top` into `codes`. (Where the numbers are negative after all, codes are those of
    a byte that is too small for them, in C and here.)
    """
    most, high = np.float32(top), spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        high = where(high > v, high, v)
    none = high < FAINTEST
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
        store(codes, i, code)
        sum_lx += weight * v * floats(code)
        sum_l2 += weight * floats(code) * floats(code)
    for _ in range(5):
        changed = none & ~none
        for i in range(0, n * LANES, LANES):
            v, weight, code = load(x, i), load(w, i), load(codes, i)
            old = floats(code)
            lx, l2 = sum_lx - weight * v * old, sum_l2 - weight * old * old
            code_of_rest = nearest(v * l2 / lx)
            code_of_rest = where(code_of_rest > top, top, code_of_rest)
            new = floats(code_of_rest)
            may = (lx > _ZERO) & (l2 > _ZERO) & (code_of_rest != code)
            lx += weight * v * new
            l2 += weight * new * new
            better = may & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
            store(codes, i, where(better, code_of_rest, code))
            sum_lx, sum_l2 = where(better, lx, sum_lx), where(better, l2, sum_l2)
            changed = changed | better
        if not some(changed):  # in a lane where nothing did, nothing would in another round
            break
    for i in range(0, n * LANES, LANES):
        store(codes, i, where(none, 0, load(codes, i)))
    return where(none | ~(sum_l2 > _ZERO), _ZERO, sum_lx / sum_l2)


@part
def fit_to_largest(x: Floats, n: int, top: int, codes: Bytes) -> Any:
    """Fit `n` numbers of a lane by codes times a scale that gives the largest `top`, as quantize_row_q4_K_ref does.

    Return scales, put the lowest eight bits of codes, whatever they are, into `codes`.
    """
    most, high = np.float32(top), spread(_ZERO)
    for i in range(0, n * LANES, LANES):
        v = load(x, i)
        high = where(v > high, v, high)
    inverse = where(high > _ZERO, most / high, _ZERO)
    for i in range(0, n * LANES, LANES):
        store(codes, i, nearest(inverse * load(x, i)))
    return high / most
