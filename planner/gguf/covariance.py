"""Covariances of what goes into a model's weights: for each input that tensors read, `H = E[a aᵀ]`.

A file of them is an importance matrix with more in it (`docs/rounding.md` describes it): the diagonal of `H` is there,
and beside it, for each input, the correlations `H_ij / sqrt(H_ii H_jj)` above the diagonal, row by row in f16. Whatever
reads an importance matrix reads this file as one, and both have the same digest.

Correlations are read from the mapped file on demand: those of an 8 B model take gigabytes, of which one tensor's are
needed at a time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import CovarianceError, option
from planner.gguf.contents import contents_of, is_imatrix
from planner.gguf.entry import Entry, Floats
from planner.gguf.imatrix import Imatrix, imatrix_of
from planner.gguf.model import Model
from planner.gguf.products import Part
from planner.gguf.reader import GgufFile, Tensor, read_gguf
from planner.inputs.kinds import GGUF
from planner.inputs.reading import kind_at
from planner.work import Reference, reference

__all__ = [
    "CORRELATIONS", "INPUTS", "KIND", "POOLED", "TENSORS", "TOKENS", "VERSION", "VERSION_KEY", "Covariances", "Input",
    "has_covariances", "triangle",
]  # fmt: skip

KIND = "covariance"  # general.type
VERSION_KEY, TENSORS, INPUTS = "covariance.version", "covariance.tensors", "covariance.inputs"
VERSION = 1
CORRELATIONS, POOLED, TOKENS = ".corr", ".corr_all", ".corr_tokens"  # after the name of an input

_ONE = 0x3C00  # 1.0 as f16; larger magnitudes, infinity and NaN are larger as integers too
_PIECE = 1 << 22  # values at a time
_BLOCK = 128  # rows that are mirrored together


def triangle(width: int) -> int:
    """Return how many values a symmetric matrix has above its diagonal."""
    return width * (width - 1) // 2


@dataclass(frozen=True, slots=True)
class Input:
    """What several `tensors` read, named like the first of them: `width` channels, with a covariance for all matrices
    of those tensors together (`matrices` = 1), or one for each."""

    name: str
    tensors: tuple[str, ...]
    width: int
    matrices: int

    @property
    def pooled(self) -> bool:
        """True if the file has correlations of all matrices together beside those of each."""
        return self.matrices > 1


@dataclass(frozen=True, slots=True)
class _Stored:
    """An input as the file has it: tensors of the file, None where there is nothing above the diagonal."""

    input: Input
    each: Tensor | None
    pooled: Tensor | None
    tokens: NDArray[np.float64]


class Covariances(Closing):
    """An open file of covariances; a context manager. `imatrix` is the importance matrix in it.

    `inputs`: name → input; a tensor's covariance is that of the input that it reads. Where the tensors of an input
    are stacks of matrices (experts), each of them has its own mean squares, with correlations that are common to all
    where all read the same; else with those of its own input, shrunk to those of all by how many tokens it saw:

        C = w C_own + (1 - w) C_all        w = tokens / (tokens + n)

    so that an expert with as many tokens as channels counts as much as all together.
    """

    def __init__(self, file: GgufFile, imatrix: Imatrix, stored: Mapping[str, _Stored]) -> None:
        self.path: Path = file.path
        self.imatrix = imatrix
        self.inputs: Mapping[str, Input] = {name: one.input for name, one in stored.items()}
        self._file, self._stored = file, stored
        self._of = {tensor: name for name, one in stored.items() for tensor in one.input.tensors}

    def __reduce__(self) -> Reference[Covariances]:
        """Pickled as a reference."""
        return self._reference

    @functools.cached_property
    def _reference(self) -> Reference[Covariances]:
        return reference(Covariances.open, self.path, [self.path])

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a file of covariances. Raises CovarianceError for one that is damaged or of another kind, ImatrixError
        for mean squares that cannot be."""
        file = read_gguf(Path(path), error=CovarianceError)
        try:
            _check_kind(file)
            imatrix = imatrix_of(file, os.fspath(path))
            return cls(file, imatrix, _read_inputs(file, imatrix))
        except BaseException:
            with contextlib.suppress(BufferError):  # arrays in the error's traceback
                file.data.close()
            raise

    def close(self) -> None:
        """Unmap the file, unless arrays still refer to it: then it is unmapped with the last of them."""
        with contextlib.suppress(BufferError):
            self._file.data.close()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the importance matrix and all correlations. Reads the whole file."""
        sha = hashlib.sha256(self.imatrix.digest.encode())
        for name in sorted(self._stored):
            one = self._stored[name]
            sha.update(f"\n{name}\0{one.input}\n".encode())
            sha.update(one.tokens.tobytes())
            for tensor in (one.each, one.pooled):
                for begin in range(0, tensor.nbytes if tensor else 0, _PIECE):
                    assert tensor is not None
                    at = tensor.offset + begin
                    sha.update(self._file.data[at : min(at + _PIECE, tensor.offset + tensor.nbytes)])
        return sha.hexdigest()

    def covers(self, tensor: Tensor) -> bool:
        """Return whether there is a covariance for a model's tensor. Raises CovarianceError if it is of another size:
        of another model."""
        name = self._of.get(tensor.name)
        if name is None:
            return False
        one, entry = self._stored[name].input, self.imatrix.entries[tensor.name]
        if one.width != tensor.row_length or math.prod(entry.shape) != tensor.row_length * tensor.matrices:
            found = f"{one.width:,} channels and {math.prod(entry.shape) // one.width:,} matrices"
            raise CovarianceError(
                f"{self.path}: the covariances of another model: {tensor.name} has {found} there, and here "
                f"{tensor.row_length:,} and {tensor.matrices:,}.",
                _again(),
            )
        return True

    def require(self, model: Model) -> None:
        """Raise CovarianceError if these are the covariances of another model: sizes differ, or no name is known."""
        if not [tensor for tensor in model.tensors if self.covers(tensor)]:
            raise CovarianceError(
                f"{self.path}: the covariances of another model: {model.path.name} has none of its "
                f"{len(self._of):,} tensors.",
                _again(),
            )

    def matrix(self, tensor: Tensor, matrix: int = 0) -> Floats | None:
        """Return `H` of one of the tensor's matrices, f32[n, n], symmetric; None if there is none for the tensor.

        Its diagonal holds the importance matrix's mean squares (of an expert that was never used: those of all
        together). Raises CovarianceError as `covers`, and for correlations that are none; IndexError.
        """
        if not self.covers(tensor):
            return None
        if not 0 <= matrix < tensor.matrices:
            raise IndexError(f"matrix {matrix} of {tensor.name}, which has {tensor.matrices}")
        stored = self._stored[self._of[tensor.name]]
        diagonal = _diagonal(self.imatrix.entries[tensor.name], matrix, tensor.row_length)
        rows = self._rows(stored, matrix)
        return _symmetric(rows, diagonal)

    def tokens(self, tensor: Tensor, matrix: int = 0) -> int:
        """Return how many tokens went into the covariance of one of the tensor's matrices; 0 where there is none.
        Raises as `covers`."""
        if not self.covers(tensor):
            return 0
        tokens = self._stored[self._of[tensor.name]].tokens
        return int(tokens[matrix if len(tokens) > 1 else 0])

    def _rows(self, stored: _Stored, matrix: int) -> Iterator[Floats]:
        """Yield the correlations right of the diagonal, row by row, f32."""
        width = stored.input.width
        if stored.each is None:
            return
        own = self._values(stored.each, matrix if stored.input.matrices > 1 else 0, width)
        everything = None if stored.pooled is None else self._values(stored.pooled, 0, width)
        tokens = stored.tokens[matrix if len(stored.tokens) > 1 else 0]
        weight = np.float32(tokens / (tokens + width))
        at = 0
        for row in range(width - 1):
            count = width - 1 - row
            values: Floats = own[at : at + count].astype(np.float32)
            if everything is not None:
                values *= weight
                values += (1 - weight) * everything[at : at + count].astype(np.float32)
            at += count
            yield values

    def part(self, name: str, matrix: int | None) -> Part:
        """Return the sums of products that one covariance of an input was made from, to be added to others; of all
        matrices together if `matrix` is None. Raises CovarianceError for correlations that are none."""
        stored = self._stored[name]
        width, entry = stored.input.width, self.imatrix.entries[stored.input.tensors[0]]
        one_for_all = matrix is None or not stored.input.pooled
        squares = _pooled(entry, width) if one_for_all else _diagonal(entry, matrix or 0, width)
        tokens = stored.tokens.sum() if matrix is None else stored.tokens[matrix]
        tensor = stored.pooled if matrix is None else stored.each
        values = np.empty(0, np.float16) if tensor is None else self._values(tensor, matrix or 0, width)
        return Part.of_correlations(squares * tokens, values)

    def tokens_of(self, name: str) -> NDArray[np.int64]:
        """Return how many tokens went into the covariances of an input, i64[matrices]."""
        return self._stored[name].tokens.astype(np.int64)

    def _values(self, tensor: Tensor, matrix: int, width: int) -> NDArray[np.float16]:
        count = triangle(width)
        values = np.frombuffer(self._file.data, "<u2", count, tensor.offset + 2 * count * matrix)
        for begin in range(0, count, _PIECE):
            if int((values[begin : begin + _PIECE] & 0x7FFF).max()) > _ONE:
                raise CovarianceError(
                    f"{self.path}: {tensor.name} holds values that are no correlations (NaN, or beyond 1).", _again()
                )
        return values.view("<f2")


def has_covariances(path: Path) -> bool:
    """Return whether a file says that it holds covariances: false for one that is no GGUF. Raises CovarianceError for a
    GGUF that cannot be read."""
    if kind_at(path, CovarianceError) != GGUF:
        return False
    file = read_gguf(path, error=CovarianceError)
    try:
        return file.metadata.text("general.type") == KIND
    finally:
        file.data.close()


def _diagonal(entry: Entry, matrix: int, width: int) -> Floats:
    """Return the mean squares of one matrix, f32[n]; those of all matrices together where it was never used."""
    if len(entry.counts) > 1 and entry.counts[matrix] == 0 and entry.counts.any():
        return _pooled(entry, width)
    values: Floats = entry.values.reshape(-1, width)[matrix]
    return values


def _pooled(entry: Entry, width: int) -> Floats:
    """Return the mean squares of all matrices together, f32[n]."""
    sums = entry.raw_sum2.reshape(-1, width).sum(axis=0, dtype=np.float64)
    uses = entry.counts.sum() * (entry.shape[1] // width)
    pooled: Floats = (sums / max(1, uses)).astype(np.float32)
    return pooled


def _symmetric(rows: Iterator[Floats], diagonal: Floats) -> Floats:
    """Return the covariance, f32[n, n], of correlations right of the diagonal, row by row, and the diagonal f32[n]."""
    width = len(diagonal)
    roots = np.sqrt(diagonal)
    result = np.empty((width, width), np.float32)
    for row, values in enumerate(rows):
        np.multiply(values, roots[row + 1 :], out=result[row, row + 1 :])
        result[row, row + 1 :] *= roots[row]
        end = min(width, (row // _BLOCK + 1) * _BLOCK)
        result[row + 1 : end, row] = result[row, row + 1 : end]
    for begin in range(0, width, _BLOCK):  # the rest by blocks: writing columns one by one takes many times as long
        end = min(width, begin + _BLOCK)
        result[end:, begin:end] = result[begin:end, end:].T
    np.fill_diagonal(result, diagonal)
    return result


def _check_kind(file: GgufFile) -> None:
    metadata = file.metadata
    if metadata.text("general.type") != KIND:
        plain = is_imatrix(metadata)
        what = "an importance matrix without covariances" if plain else f"{contents_of(metadata)}, not covariances"
        raise CovarianceError(f"{file.path}: {what}.", _again())
    version = metadata.integer(VERSION_KEY)
    if version != VERSION:
        raise CovarianceError(
            f"{file.path}: {VERSION_KEY} is {version}, and only {VERSION} can be read.", "Update planner."
        )


def _read_inputs(file: GgufFile, imatrix: Imatrix) -> dict[str, _Stored]:
    """Read which tensors have which input, and check that all of it is there and of one size."""
    tensors, inputs = file.metadata.brief(TENSORS), file.metadata.brief(INPUTS)
    if not isinstance(tensors, list) or not isinstance(inputs, list) or len(tensors) != len(inputs) or not tensors:
        raise _damaged(file, f"{TENSORS} and {INPUTS} are not lists of the same length")
    if len(set(tensors)) != len(tensors):
        raise _damaged(file, f"{TENSORS} names a tensor twice")
    readers: dict[str, list[str]] = {}
    for tensor, name in zip(tensors, inputs, strict=True):
        readers.setdefault(name, []).append(tensor)
    by_name = {tensor.name: tensor for tensor in file.tensors}
    return {name: _read_input(file, imatrix, name, tuple(own), by_name) for name, own in readers.items()}


def _read_input(
    file: GgufFile, imatrix: Imatrix, name: str, tensors: tuple[str, ...], by_name: Mapping[str, Tensor]
) -> _Stored:
    counts = by_name.get(name + TOKENS)
    if counts is None or counts.format != "f32":
        raise _damaged(file, f"{name}{TOKENS} is missing, or not f32")
    each, pooled = by_name.get(name + CORRELATIONS), by_name.get(name + POOLED)
    # `p = n (n - 1) / 2` values, so `n = (1 + sqrt(1 + 8 p)) / 2`
    width = 1 if each is None else (1 + math.isqrt(1 + 8 * each.shape[0])) // 2
    matrices = counts.elements
    one = Input(name, tensors, width, matrices)
    expected = [(each, matrices)] if width > 1 else []
    expected += [(pooled, 1)] if one.pooled and width > 1 else []
    for tensor, number in expected:
        if tensor is None or tensor.format != "f16" or tensor.elements != triangle(width) * number:
            raise _damaged(file, f"the correlations of {name} are not f16, {number:,} times {triangle(width):,}")
    for reader in tensors:
        entry = imatrix.entries.get(reader)
        values = 0 if entry is None else math.prod(entry.shape)
        if not values or values % width or matrices not in (1, values // width):
            raise _damaged(file, f"{reader} has {values:,} mean squares, and its input {name} {width:,} channels")
    tokens = np.frombuffer(file.data, "<f4", matrices, counts.offset).astype(np.float64)
    if not ((tokens >= 0) & (tokens < 2.0**53)).all():  # NaN neither
        raise _damaged(file, f"{name}{TOKENS} holds a value that is no count")
    return _Stored(one, each if width > 1 else None, pooled if one.pooled and width > 1 else None, np.round(tokens))


def _damaged(file: GgufFile, what: str) -> CovarianceError:
    return CovarianceError(f"{file.path}: {what}.", _again())


def _again() -> str:
    return f"Make it again from this model: planner imatrix, with {option('covariance')}."
