"""The tables that the lattice types are searched with: iq2xs_init_impl and iq3xs_init_impl in ggml-quants.c.

A group of weights is rounded to levels, a number each; where the point of these is not of the lattice, the nearest ones
that are get tried. ggml sorts the whole lattice for each of 4,096 or 43,692 points; there are only 4,096 or 6,561 that
rounding leads to, and distances are small integers. So the tables take a fraction of a second.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml import library
from planner.formats.ggml.formats import formats
from planner.formats.ggml.reference import address
from planner.formats.ggml.types import type_of

__all__ = ["Grid", "grid_of"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]

_ONE = 0x3C00  # as half float
_EIGHTS, _FOURS = np.arange(32), np.arange(64)
_DISTANCES = {"iq1_s": 3, "iq2_s": 1, "iq2_xs": 2, "iq2_xxs": 2, "iq3_s": 3, "iq3_xxs": 2}
# Bytes of a block that are the lowest eight bits of points, and words that are made of a pattern of all higher ones
_PLACES = {
    "iq1_s": (2 + _EIGHTS, slice(17, 25), 0x249),
    "iq2_xxs": (2 + 8 * (_EIGHTS // 4) + _EIGHTS % 4, slice(0, 0), 0),
    "iq2_xs": (2 + 2 * _EIGHTS, slice(1, 33), 0x100),
    "iq2_s": (2 + _EIGHTS, slice(33, 37), 0x5555),
    "iq3_xxs": (2 + _FOURS, slice(0, 0), 0),
    "iq3_s": (2 + _FOURS, slice(33, 37), 0xFFFF),
}
_EIGHT = 8  # weights of a group of iq1 and iq2; of iq3 there are four


class Grid(NamedTuple):
    """A lattice of groups of `width` weights with levels 0 to `top`, `shift` bits each in the code of a point.

    `place`, i32[codes]: the number of the lattice's point, -1 for others; for these `first` and `counts`, i32[codes]:
    where their neighbours are among `codes`, i32[neighbours], and `near`, u8[neighbours, width]: weight's place among
    `width` times the number of levels, and its level.
    """

    width: int
    shift: int
    top: int
    place: Numbers
    first: Numbers
    counts: Numbers
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
        width,
        shift,
        count - 1,
        place,
        first,
        counts,
        (near + count * np.arange(width)).astype(np.uint8),
        (near @ weights).astype(np.int32),
    )


def _distances(points: NDArray[np.int64], lattice: NDArray[np.int64]) -> NDArray[np.int16]:
    """Return squared distances of points i64[n, w] and those of a lattice i64[p, w], i16[n, p]."""
    a, b = points.astype(np.float32), lattice.astype(np.float32)  # small integers: products are exact
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    return np.asarray((squares - 2 * (a @ b.T)).astype(np.int16))


@functools.cache
def grid_of(name: str) -> Grid:
    """Return the tables of a lattice type, by ggml's name; iq1_m has those of iq1_s."""
    return build_grid(_points(name), _DISTANCES[name])


def _points(name: str) -> Floats:
    """Return the points of a type's lattice, f32[p, 4 or 8], on some scale: what the library makes of blocks in which
    there is each of them."""
    fmt, lattice = formats()[name], type_of(name).lattice
    assert lattice is not None
    dimensions, count = lattice
    low, high, pattern = _PLACES[name]
    numbers = np.arange(count).reshape(-1, fmt.block // dimensions)
    blocks = np.zeros((len(numbers), fmt.block_bytes), np.uint8)
    blocks[:, low] = numbers & 255
    words = blocks.view(np.uint16)
    words[:, high] |= ((numbers[:, :1] >> 8) * pattern).astype(np.uint16)
    words[:, 0] = _ONE
    rows = np.empty((len(blocks), fmt.block), np.float32)
    library.load().type_traits(fmt.id).contents.to_float(address(blocks), address(rows), rows.size)
    return rows.reshape(count, dimensions)
