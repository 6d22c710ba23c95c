"""The iq1 to iq3 types: weights in fours or eights, which together are a point of a lattice, with signs beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from planner.formats.ggml.formats import formats
from planner.formats.ggml.kernels import dequantize_rows
from planner.formats.ggml.refine.fields import Bits, Field, Places, at, joined, word
from planner.formats.ggml.refine.layouts import Floats, Layout, Numbers, Points, Scale, Table

__all__ = ["LATTICES"]

_WEIGHTS = 256  # of a block
_NEIGHBOURS = 32  # of a point that are tried: more gain little (benchmarks/rounding.py)
_ONE = 0x3C00  # as half float
_EIGHTS, _FOURS = np.arange(32), np.arange(64)
_S8, _S16 = np.arange(8), np.arange(16)


def _lattice(name: str, codes: Field, scale: Scale, signs: Bits | None = None, *, shared: bool = False) -> Layout:
    """Return the layout of a type whose points are asked of the library: blocks of all codes, dequantized. `shared`:
    the last bit of codes is common to several, and stays."""
    fmt, width = formats()[name], _WEIGHTS // codes.count
    bits = codes.read(np.full((1, fmt.block_bytes), 255, np.uint8)).max() + 1
    blocks = np.zeros((bits // codes.count, fmt.block_bytes), np.uint8)
    assert scale.unit is not None
    scale.unit.write(blocks, np.full((len(blocks), 1), _ONE, np.int32))
    # a bit that several codes have in common is right if they are written together: halves of all codes do not mix
    codes.write(blocks, np.arange(bits, dtype=np.int32).reshape(len(blocks), -1))
    points = dequantize_rows(fmt, blocks, _WEIGHTS).reshape(bits, width) / scale.table.levels[scale.table.places[0]]
    near = _neighbours(points, 2 if shared else 1)
    ways = np.ascontiguousarray((points[near] - points[:, None]).transpose(0, 2, 1))
    return Layout(codes, Points(points, near, ways, signs), scale)


def _neighbours(points: Floats, parts: int) -> Numbers:
    """Return the nearest other points of each, i32[p, m], within its part of the points; of those as near, the first
    ones."""
    size = len(points) // parts
    near = np.empty((len(points), min(_NEIGHBOURS, size - 1)), np.int32)
    squares = np.square(points).sum(axis=1)
    for begin in range(0, len(points), 256):
        first = begin // size * size
        own, others = slice(begin, begin + 256), slice(first, first + size)
        products = np.einsum("ik,jk->ij", points[own], points[others], optimize=False)
        distances = np.rint(64 * (squares[own, None] + squares[None, others] - 2 * products)).astype(np.int64)
        # all coordinates are multiples of an eighth. No two keys are alike, so none depends on how numpy sorts
        keys = distances * size + np.arange(size)
        rows = np.arange(len(keys))
        keys[rows, rows + begin - first] = np.iinfo(np.int64).max
        near[own] = np.sort(np.partition(keys, near.shape[1], axis=1)[:, : near.shape[1]], axis=1) % size + first
    return near


def _levels(count: int, factor: float, more: float) -> Table:
    return Table((np.arange(count) * factor + more).astype(np.float32))


def _iq1_s() -> Layout:
    high = 34 + 2 * (_EIGHTS // 4)
    codes = joined(at(2 + _EIGHTS, 0, 8), at(high, 3 * (_EIGHTS % 4), 3), at(high, 15, 1))
    return _lattice("iq1_s", codes, Scale(Bits(at(34 + 2 * _S8, 12, 3)), _levels(8, 2, 1), word(0)), shared=True)


def _iq1_m() -> Layout:
    high, shift = 32 + _EIGHTS // 2, 4 * (_EIGHTS % 2)
    codes = joined(at(_EIGHTS, 0, 8), at(high, shift, 4))
    unit = Bits(at(48 + 2 * np.arange(4), 12, 4).reshape(1, 16))
    return _lattice("iq1_m", codes, Scale(Bits(at(48 + 2 * (_S16 // 4), 3 * (_S16 % 4), 3)), _levels(8, 2, 1), unit))


def _iq2_xxs() -> Layout:
    pair = 2 + 8 * (_EIGHTS // 4)
    scale = Scale(Bits(at(6 + 8 * _S8, 28, 4)), _levels(16, 0.25, 0.125), word(0))
    return _lattice("iq2_xxs", Bits(at(pair + _EIGHTS % 4, 0, 8)), scale, Bits(at(pair + 4, 7 * (_EIGHTS % 4), 7)))


def _nibbles(byte: int, factor: float, more: float, count: Places) -> Scale:
    return Scale(Bits(at(byte + count // 2, 4 * (count % 2), 4)), _levels(16, factor, more), word(0))


def _iq2_xs() -> Layout:
    words = 2 + 2 * _EIGHTS
    return _lattice("iq2_xs", Bits(at(words, 0, 9)), _nibbles(66, 0.25, 0.125, _S16), Bits(at(words, 9, 7)))


def _iq2_s() -> Layout:
    codes = joined(at(2 + _EIGHTS, 0, 8), at(66 + _EIGHTS // 4, 2 * (_EIGHTS % 4), 2))
    return _lattice("iq2_s", codes, _nibbles(74, 0.25, 0.125, _S16), Bits(at(34 + _EIGHTS, 0, 8)))


def _iq3_xxs() -> Layout:
    scale = Scale(Bits(at(66 + 4 * _S8, 28, 4)), _levels(16, 0.5, 0.25), word(0))
    signs = Bits(at(66 + 4 * (_EIGHTS // 4), 7 * (_EIGHTS % 4), 7))
    return _lattice("iq3_xxs", Bits(at(2 + _FOURS, 0, 8)), scale, signs)


def _iq3_s() -> Layout:
    codes = joined(at(2 + _FOURS, 0, 8), at(66 + _FOURS // 8, _FOURS % 8, 1))
    return _lattice("iq3_s", codes, _nibbles(106, 2, 1, _S8), Bits(at(74 + _EIGHTS, 0, 8)))


LATTICES: Mapping[str, Callable[[], Layout]] = MappingProxyType(
    {
        name: functools.cache(make)
        for name, make in {
            "iq1_s": _iq1_s,
            "iq1_m": _iq1_m,
            "iq2_xxs": _iq2_xxs,
            "iq2_xs": _iq2_xs,
            "iq2_s": _iq2_s,
            "iq3_xxs": _iq3_xxs,
            "iq3_s": _iq3_s,
        }.items()
    }
)
"""What makes the layout of each lattice type."""
