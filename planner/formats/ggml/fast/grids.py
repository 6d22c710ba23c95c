"""The tables that the lattice types are searched with: iq2xs_init_impl and iq3xs_init_impl in ggml-quants.c.

A group of weights is rounded to levels, a number each; where the point of these is not of the lattice, the nearest ones
that are get tried. ggml sorts the whole lattice for each of 4,096 or 43,692 points; there are only 4,096 or 6,561 that
rounding leads to, and distances are small integers. So the tables take a fraction of a second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grid", "grid_of"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]

_EIGHT = 8  # weights of a group of iq1 and iq2; of iq3 there are four


class Grid(NamedTuple):
    """A lattice of groups of `width` weights with levels 0 to `top`, `shift` bits each in the code of a point.

    `place`, i32[codes]: the number of the lattice's point, -1 for others; for these `first` and `count`, i32[codes]:
    where their neighbours are among `near`, u8[neighbours, width], levels, and `codes`, i32[neighbours].
    """

    width: int
    shift: int
    top: int
    place: Numbers
    first: Numbers
    count: Numbers
    near: Bytes
    codes: Numbers


def build_grid(points: Floats, distances: int) -> Grid:
    """Return the tables of a lattice, f32[p, width], in which each other point has as neighbours those at the
    `distances` smallest distances, the nearest first, and of those as near the ones with smaller numbers."""
    width = points.shape[1]
    levels, ranks = np.unique(points, return_inverse=True)
    ranks = ranks.reshape(points.shape)
    count, shift = len(levels), 2 if width == _EIGHT else 3
    weights = 1 << shift * np.arange(width)
    place = np.full(1 << shift * width, -1, np.int32)
    place[ranks @ weights] = np.arange(len(ranks))
    everywhere = np.indices((count,) * width).reshape(width, -1).T
    others = everywhere[place[everywhere @ weights] < 0]
    apart = _distances(others, ranks)
    reach = np.full((len(others), 1), -1, np.int16)
    for _ in range(distances):
        reach = np.where(apart > reach, apart, np.iinfo(np.int16).max).min(axis=1, keepdims=True)
    whose, which = np.nonzero(apart <= reach)
    keys = np.sort((whose << 32) | (apart[whose, which].astype(np.int64) << 16) | which)
    which = keys & 0xFFFF
    found = np.bincount(whose, minlength=len(others))
    first, counts = np.zeros_like(place), np.zeros_like(place)
    first[others @ weights] = np.cumsum(found) - found
    counts[others @ weights] = found
    near = ranks[which]
    return Grid(
        width, shift, count - 1, place, first, counts, (near + count * np.arange(width)).astype(np.uint8), (near @ weights).astype(np.int32)
    )


def _distances(points: NDArray[np.int64], lattice: NDArray[np.int64]) -> NDArray[np.int16]:
    """Return squared distances of points i64[n, w] and those of a lattice i64[p, w], i16[n, p]."""
    a, b = points.astype(np.float32), lattice.astype(np.float32)  # small integers: products are exact
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return (squares - 2 * (a @ b.T)).astype(np.int16)


_DISTANCES = {"iq1": 3, "iq2_s": 1, "iq2_xs": 2, "iq2_xxs": 2, "iq3_s": 3, "iq3_xxs": 2}

@functools.cache
def grid_of(name: str) -> Grid:
    from planner.formats.ggml.refine.lattices import LATTICES
    p = LATTICES[name if name != "iq1" else "iq1_s"]().table.points
    if name == "iq1":
        p = p[:2048]
    return build_grid(p, _DISTANCES[name])
