"""One tensor of a GGUF file: its position, and its division into matrices and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

__all__ = ["Tensor"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a model.

    `shape` is in ggml order, row length first, without trailing ones; `offset` counts from the beginning of the
    file; `part` is the index of the file that holds it.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    part: int
    offset: int
    nbytes: int

    @property
    def row_length(self) -> int:
        """Number of weights in a row."""
        return self.shape[0]

    @property
    def rows(self) -> int:
        """Number of rows over all matrices."""
        return prod(self.shape[1:])

    @property
    def rows_per_matrix(self) -> int:
        """Number of rows of one matrix."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def matrices(self) -> int:
        """Number of matrices stacked in the tensor: its experts, or 1."""
        return prod(self.shape[2:])

    def slices(self, weights: int) -> Iterator[tuple[int, int, int]]:
        """Yield (matrix, first row, last row + 1) over all rows, at most `weights` weights (but at least a row) at a
        time; none crosses matrices. Rows are numbered over all matrices."""
        step = max(1, weights // self.row_length)
        for matrix in range(self.matrices):
            begin = matrix * self.rows_per_matrix
            end = begin + self.rows_per_matrix
            for start in range(begin, end, step):
                yield matrix, start, min(start + step, end)

    @property
    def elements(self) -> int:
        """Number of weights in the tensor."""
        return prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as the file stores it."""
        return self.nbytes // self.rows
