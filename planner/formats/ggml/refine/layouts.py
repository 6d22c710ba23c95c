"""What the numbers in a block mean: a row for every type whose weights are levels on a scale.

    weight = scale · level[code] + offset        scale = unit · level[scale code], offset = unit · level[minimum's code]

`unit` is 1 or a number that the block stores once. Positions and levels are those of ggml-common.h and of the
`dequantize_row_*` in ggml-quants.c.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from planner.formats.ggml.refine.fields import Bits, Field, Trits, at, joined, word

__all__ = ["LAYOUTS", "Floats", "Layout", "Numbers", "Points", "Scale", "Table", "half_floats"]

Floats = NDArray[np.float32]
Numbers = NDArray[np.int32]

_SIGNED = 8  # weights whose signs are stored together
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # kvalues_mxfp4, doubled


class Table:
    """Levels by code, f32; NaN for codes that are not to be chosen.

    `levels` are those to choose from in ascending order, f32[k]; `codes` the code of each, i32[k]; `places` the place
    of each code among them, i32: of the nearest, for a code that is not to be chosen. `even`: levels are one apart;
    `reach`, f32[k]: half of the way to the nearest other. `halves`: codes are half floats.
    """

    def __init__(self, by_code: Floats, *, halves: bool = False) -> None:
        self.halves = halves
        chosen = np.flatnonzero(np.isfinite(by_code))
        self.levels, first = np.unique(by_code[chosen], return_index=True)
        self.codes = chosen[first].astype(np.int32)
        near = np.searchsorted(self.levels, np.nan_to_num(by_code, nan=0.0, posinf=0.0, neginf=0.0))
        self.places = np.minimum(near, len(self.levels) - 1).astype(np.int32)
        gaps = np.diff(self.levels, prepend=np.float32(-np.inf), append=np.float32(np.inf))
        self.reach = (np.minimum(gaps[1:], gaps[:-1]) / 2).astype(np.float32)
        self.even = bool((np.diff(self.levels) == 1).all())


@dataclass(frozen=True, slots=True)
class Points:
    """Points of a lattice by code, f32[p, 4 or 8], the nearest others of each, i32[p, m], what leads to them,
    f32[p, 4 or 8, m], and where the signs of eight weights are: eight bits, or seven, where the number of minuses is
    even; None where the points have signs."""

    points: Floats
    near: Numbers
    ways: Floats
    signs: Bits | None

    @property
    def parity(self) -> bool:
        """True if the number of minuses among eight weights is even."""
        return self.signs is not None and self.signs.places.shape[1] == _SIGNED - 1


@dataclass(frozen=True, slots=True)
class Scale:
    """What weights of a group have in common: a number a group, and what it means in units of `unit`, a half float of
    the block (1 where there is none)."""

    field: Field
    table: Table
    unit: Field | None = None
    sign: float = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """A type: the code of each weight of a block and its level, or the code of several and the point that they are; the
    scales and offsets of groups of `group` weights."""

    codes: Field
    table: Table | Points
    scale: Scale
    offset: Scale | None = None

    @property
    def block(self) -> int:
        """Weights in a block."""
        return self.codes.count * (self.table.points.shape[1] if isinstance(self.table, Points) else 1)

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.block // self.scale.field.count

    @property
    def halves(self) -> list[Field]:
        """Half floats of a block that make all its weights longer or shorter together; none, where scales are not in
        half floats."""
        found = []
        for scale in (self.scale,) if self.offset is None else (self.scale, self.offset):
            if scale.unit is not None:
                found.append(scale.unit)
            elif scale.table.halves:
                found.append(scale.field)
        return found


def half_floats(numbers: Numbers) -> Floats:
    """Return the values of half floats given by their 16 bits."""
    return numbers.astype(np.uint16).view(np.float16).astype(np.float32)


@functools.cache
def _halves() -> Table:
    return Table(half_floats(np.arange(1 << 16, dtype=np.int32)), halves=True)


def _even(count: int, least: int = 0) -> Table:
    """Return the table of codes 0 … count - 1 for levels from `least` on."""
    return Table(np.arange(least, least + count, dtype=np.float32))


def _table(levels: tuple[float, ...]) -> Table:
    return Table(np.array(levels, np.float32))


def _e8m0() -> Table:
    """Powers of two by exponent, halved as the levels are doubled: ggml_e8m0_to_fp32_half."""
    levels = np.ldexp(np.ones(256), np.arange(256) - 128).astype(np.float32)
    return Table(levels)


def _ue4m3() -> Table:
    """Unsigned floats of 4 bits of exponent and 3 of mantissa, halved likewise; the last is NaN, and reads as 0."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent == 0, mantissa / 512, np.ldexp(1 + mantissa / 8, exponent - 7)) / 2
    levels = np.zeros(256, np.float32)
    levels[:127] = value
    levels[127:] = np.nan
    return Table(levels)


def _halves_of(byte: int, weights: int = 32) -> Bits:
    """Nibbles of which a byte holds the one of weight `j` and, above it, of `j + weights / 2`."""
    j = np.arange(weights)
    return Bits(at(byte + j % (weights // 2), 4 * (j // (weights // 2)), 4))


_J = np.arange(256)
_S8, _S16 = np.arange(8), np.arange(16)
_NIBBLES = 32 * (_J // 64) + _J % 32, 4 * (_J % 64 // 32)  # byte and shift, as q4_K and q5_K have them
_PAIRS = 32 * (_J // 128) + _J % 32, 2 * (_J % 128 // 32)  # likewise, of two bits: q2_K, q3_K, tq2_0


def _half(byte: int = 0) -> Scale:
    return Scale(word(byte), _halves())


def _six_bits(first: int) -> Bits:
    """The eight scales (`first` 0) or minimums (1) of q4_K and q5_K: get_scale_min_k4."""
    low = np.concatenate([at(4 + 4 * first + _S8[:4], 0, 4), at(12 + _S8[:4], 4 * first, 4)])
    high = np.concatenate([at(4 + 4 * first + _S8[:4], 4, 2), at(4 + 4 * first + _S8[:4], 6, 2)])
    return joined(low, high)


def _q2_k() -> Layout:
    scale = Scale(Bits(at(_S16, 0, 4)), _even(16), word(80))
    offset = Scale(Bits(at(_S16, 4, 4)), _even(16), word(82), -1)
    return Layout(Bits(at(16 + _PAIRS[0], _PAIRS[1], 2)), _even(4), scale, offset)


def _q3_k() -> Layout:
    codes = joined(at(32 + _PAIRS[0], _PAIRS[1], 2), at(_J % 32, _J // 32, 1))
    scales = joined(at(96 + _S16 % 8, 4 * (_S16 // 8), 4), at(104 + _S16 % 4, 2 * (_S16 // 4), 2))
    return Layout(codes, _even(8, -4), Scale(scales, _even(64, -32), word(108)))


def _q4_k() -> Layout:
    scale, offset = Scale(_six_bits(0), _even(64), word(0)), Scale(_six_bits(1), _even(64), word(2), -1)
    return Layout(Bits(at(16 + _NIBBLES[0], _NIBBLES[1], 4)), _even(16), scale, offset)


def _q5_k() -> Layout:
    scale, offset = Scale(_six_bits(0), _even(64), word(0)), Scale(_six_bits(1), _even(64), word(2), -1)
    codes = joined(at(48 + _NIBBLES[0], _NIBBLES[1], 4), at(16 + _J % 32, _J // 32, 1))
    return Layout(codes, _even(32), scale, offset)


def _q6_k() -> Layout:
    low = at(64 * (_J // 128) + _J % 64, 4 * (_J % 128 // 64), 4)
    codes = joined(low, at(128 + 32 * (_J // 128) + _J % 32, 2 * (_J % 128 // 32), 2))
    signed = Table(np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32))
    return Layout(codes, _even(64, -32), Scale(Bits(at(192 + _S16, 0, 8)), signed, word(208)))


def _q8_0() -> Layout:
    levels = np.arange(256).astype(np.uint8).view(np.int8).astype(np.float32)
    levels[128] = np.nan  # -128, which ggml never writes
    return Layout(Bits(at(2 + np.arange(32), 0, 8)), Table(levels), _half())


def _with_fifth_bit(byte: int) -> Bits:
    """Nibbles after 32 bits, at `byte`, that are the highest bits of the codes: q5_0 and q5_1."""
    return joined(_halves_of(byte + 4).places, at(byte, np.arange(32), 1))


def _iq4_xs() -> Layout:
    codes = Bits(at(8 + 16 * (_J // 32) + _J % 16, 4 * (_J % 32 // 16), 4))
    scales = joined(at(4 + _S8 // 2, 4 * (_S8 % 2), 4), at(2, 2 * _S8, 2))
    return Layout(codes, _table(_IQ4), Scale(scales, _even(64, -32), word(0)))


def _nvfp4() -> Layout:
    j = np.arange(64)
    codes = Bits(at(4 + 8 * (j // 16) + j % 8, 4 * (j % 16 // 8), 4))
    return Layout(codes, _table(_FP4), Scale(Bits(at(np.arange(4), 0, 8)), _ue4m3()))


def _tq1_0() -> Layout:
    parts = ((160, 32, 0), (80, 16, 32), (16, 4, 48))  # weights, bytes, first byte
    places = np.concatenate([first + np.arange(weights) % size for weights, size, first in parts])
    digits = np.concatenate([np.arange(weights) // size for weights, size, _ in parts])
    return Layout(Trits(places, digits), _even(3, -1), _half(52))


def _tq2_0() -> Layout:
    return Layout(Bits(at(*_PAIRS, 2)), Table(np.array([-1, 0, 1, np.nan], np.float32)), _half(64))


_ROWS: dict[str, Callable[[], Layout]] = {
    "q4_0": lambda: Layout(_halves_of(2), _even(16, -8), _half()),
    "q4_1": lambda: Layout(_halves_of(4), _even(16), _half(), _half(2)),
    "q5_0": lambda: Layout(_with_fifth_bit(2), _even(32, -16), _half()),
    "q5_1": lambda: Layout(_with_fifth_bit(4), _even(32), _half(), _half(2)),
    "q8_0": _q8_0,
    "q2_K": _q2_k,
    "q3_K": _q3_k,
    "q4_K": _q4_k,
    "q5_K": _q5_k,
    "q6_K": _q6_k,
    "iq4_nl": lambda: Layout(_halves_of(2), _table(_IQ4), _half()),
    "iq4_xs": _iq4_xs,
    "mxfp4": lambda: Layout(_halves_of(1), _table(_FP4), Scale(Bits(at(0, 0, 8)), _e8m0())),
    "nvfp4": _nvfp4,
    "tq1_0": _tq1_0,
    "tq2_0": _tq2_0,
}


LAYOUTS: Mapping[str, Callable[[], Layout]] = MappingProxyType(
    {name: functools.cache(make) for name, make in _ROWS.items()}
)
"""What makes the layout of each type, by ggml's name."""
