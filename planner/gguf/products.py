"""Sums of products of activations, from which correlations are made: accumulated, added up, and normalized.

    S = Σ a aᵀ  [n, n]        C_ij = S_ij / sqrt(S_ii S_jj)

Sums are kept in float32: a batch's product is added to at most some thousand others, which costs a relative 1e-5 at
most, where a correlation in f16 is known to 2e-4 and, from T tokens, to about 1/sqrt(T). Double precision would take
twice the memory, which is what decides how many tensors fit a pass over the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Products", "correlations"]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# Rows of S that are one product of matrices: measured, from 64 to 512, on n of 576 to 4096. Smaller ones are slower,
# larger ones compute (and keep) more of what lies below the diagonal
_BLOCK = 128


class Products:
    """`S` of one matrix's input: the upper triangle in blocks of rows, f32[<= 128, n - first row]."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.blocks: list[Floats] = [
            np.zeros((min(_BLOCK, width - begin), width - begin), np.float32) for begin in range(0, width, _BLOCK)
        ]

    @staticmethod
    def nbytes(width: int) -> int:
        """Return how many bytes the sums for so many channels take.

        >>> Products.nbytes(200) == sum(block.nbytes for block in Products(200).blocks)
        True
        """
        return sum(4 * min(_BLOCK, width - begin) * (width - begin) for begin in range(0, width, _BLOCK))

    def additions(self, rows: Floats) -> list[Callable[[], None]]:
        """Return what adds `rows`, f32[tokens, n], as pieces of work that may run at the same time."""

        def adding(block: Floats, begin: int) -> Callable[[], None]:
            def add() -> None:
                with np.errstate(all="ignore"):  # what is not finite is found by who asks for the diagonal
                    block.__iadd__(rows[:, begin : begin + len(block)].T @ rows[:, begin:])

            return add

        return [adding(block, number * _BLOCK) for number, block in enumerate(self.blocks)]

    def matrix(self) -> Floats:
        """Return `S`, f32[n, n], symmetric."""
        result = np.empty((self.width, self.width), np.float32)
        for number, block in enumerate(self.blocks):
            begin = number * _BLOCK
            end = begin + len(block)
            result[begin:end, begin:] = block
            result[end:, begin:end] = block[:, len(block) :].T
        return result

    def part(self) -> Part:
        """Return the sums for `correlations`."""
        diagonal = np.concatenate([np.diagonal(block) for block in self.blocks]).astype(np.float64)
        return Part(diagonal, self._rows)

    def _rows(self) -> Iterator[Doubles]:
        for block in self.blocks:
            for row, values in enumerate(block):
                yield values[row + 1 :].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Part:
    """Sums of products over some of the tokens: their `diagonal` f64[n], and what lies right of it, row by row, f64."""

    diagonal: Doubles
    rows: Callable[[], Iterator[Doubles]]

    @classmethod
    def of_correlations(cls, diagonal: Doubles, values: NDArray[np.float16]) -> Part:
        """Return the sums with this diagonal that have these correlations, f16[n (n - 1) / 2]."""
        roots = np.sqrt(diagonal)

        def rows() -> Iterator[Doubles]:
            at = 0
            for row in range(len(roots)):
                own = values[at : at + len(roots) - 1 - row]
                at += len(own)
                yield own.astype(np.float64) * roots[row] * roots[row + 1 :]

        return cls(diagonal, rows)


def correlations(parts: Sequence[Part]) -> Iterator[NDArray[np.float16]]:
    """Yield the correlations of the parts' sum right of the diagonal, row by row; 0 for a channel that was never
    reached."""
    diagonal = np.sum([part.diagonal for part in parts], axis=0)
    inverse = np.divide(1.0, np.sqrt(diagonal), out=np.zeros_like(diagonal), where=diagonal > 0)
    for row, values in enumerate(zip(*(part.rows() for part in parts), strict=True)):
        total = sum(values[1:], start=values[0])
        scaled = total * inverse[row] * inverse[row + 1 :]
        yield np.clip(scaled, -1, 1).astype(np.float16)  # rounding may lead beyond
