"""Numbers of a block, wherever their bits lie in its bytes.

Most of ggml's types are told by that alone: which bits of the block are the code of weight `j`, which the scale of its
group. So a type is a table of positions, and reading and writing are the same for all.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "Field", "Places", "Trits", "at", "joined", "word"]

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]
Places = NDArray[np.intp]


class Field(Protocol):
    """`count` numbers of a block."""

    @property
    def count(self) -> int:
        """How many there are."""

    def read(self, blocks: Bytes) -> Numbers:
        """Return the numbers, i32[b, count], of blocks u8[b, bytes]."""

    def write(self, blocks: Bytes, numbers: Numbers) -> None:
        """Put numbers i32[b, count] into blocks u8[b, bytes]."""


@dataclass(frozen=True)
class Bits:
    """Unsigned numbers of up to 32 bits: bit `i` of number `k` is bit `places[k, i]` of the block, which counts from
    the lowest bit of its first byte. `places` is intp[count, bits]."""

    places: Places

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.places)

    @functools.cached_property
    def _pieces(self) -> Numbers:
        """Bits that lie side by side in one byte: that, how far up, as a mask, and how far up in the number,
        i32[count, p, 4]. All numbers are cut alike."""
        bits = self.places.shape[1]
        beside = ((np.diff(self.places) == 1) & (self.places[:, 1:] % 8 != 0)).all(axis=0)
        cuts = [0, *(np.flatnonzero(~beside) + 1), bits]
        pieces = np.empty((self.count, len(cuts) - 1, 4), np.int32)
        for piece, (begin, end) in enumerate(itertools.pairwise(cuts)):
            pieces[:, piece, 0], pieces[:, piece, 1] = np.divmod(self.places[:, begin], 8)
            pieces[:, piece, 2:] = (1 << (end - begin)) - 1, begin
        return pieces

    def read(self, blocks: Bytes) -> Numbers:
        """Return the numbers, i32[b, count], of blocks u8[b, bytes]."""
        from planner.formats.ggml.refine import bits  # loads a compiler

        numbers = np.zeros((len(blocks), self.count), np.int32)
        bits.read(blocks, self._pieces, numbers)
        return numbers

    def write(self, blocks: Bytes, numbers: Numbers) -> None:
        """Put numbers i32[b, count] into blocks u8[b, bytes]."""
        from planner.formats.ggml.refine import bits  # loads a compiler

        bits.write(blocks, self._pieces, np.asarray(numbers, np.int32))


@dataclass(frozen=True, slots=True)
class Trits:
    """Digits 0 to 2, five to a byte (ggml's tq1_0): number `k` is digit `digits[k]`, the first the most significant, of
    byte `places[k]`. A byte is its number of 243 stretched to 256."""

    places: Places
    digits: Places

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.places)

    def read(self, blocks: Bytes) -> Numbers:
        """Return the digits, i32[b, count], of blocks u8[b, bytes]."""
        powers = np.array([1, 3, 9, 27, 81], np.int32)[self.digits]
        return (blocks[:, self.places] * powers % 256 * 3 >> 8).astype(np.int32)

    def write(self, blocks: Bytes, numbers: Numbers) -> None:
        """Put digits i32[b, count] into blocks u8[b, bytes]."""
        worth = np.array([81, 27, 9, 3, 1], np.int32)[self.digits]
        sums = np.zeros(blocks.shape, np.int32)
        for digit in range(5):
            of_digit = np.flatnonzero(self.digits == digit)
            sums[:, self.places[of_digit]] += numbers[:, of_digit] * worth[of_digit]
        used = np.unique(self.places)
        blocks[:, used] = (sums[:, used] * 256 + 242) // 243


def at(byte: Places | int, shift: Places | int, bits: int) -> Places:
    """Return places, intp[count, bits], of numbers whose `bits` bits begin at bit `shift` of byte `byte`."""
    begin = np.atleast_1d(8 * np.asarray(byte) + shift)
    return np.asarray(begin[:, None] + np.arange(bits), np.intp)


def joined(*parts: Places) -> Bits:
    """Return numbers whose lower bits are those of the first part, the next those of the second."""
    return Bits(np.concatenate(parts, axis=1))


def word(byte: int) -> Bits:
    """Return the number of 16 bits at a byte."""
    return Bits(at(byte, 0, 16))
