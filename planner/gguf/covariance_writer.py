"""Files of covariances in the making: laid out first, then filled in place, input by input, and named when complete.

    header | imatrix: for each tensor in_sum2, counts, in_sum | for each input corr_tokens, corr, corr_all

What is in it so far stays there if the process ends: the correlations of a large model are collected in several passes
over the text, and are too large to be written twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import CovarianceError
from planner.files import give_name, refused, temporary_beside
from planner.gguf.container import F16, Item, header_of, places
from planner.gguf.covariance import (
    CORRELATIONS,
    INPUTS,
    KIND,
    POOLED,
    TENSORS,
    TOKENS,
    VERSION,
    VERSION_KEY,
    Covariances,
    Input,
    triangle,
)  # fmt: skip
from planner.gguf.imatrix_writer import imatrix_items, imatrix_keys
from planner.gguf.metadata import encode_pair
from planner.gguf.products import Part, correlations
from planner.gguf.sums import Sums

__all__ = ["CovarianceFile", "check_mergeable", "merge_covariances"]

_BUFFER = 1 << 20


class CovarianceFile(Closing):
    """A file at `path` that becomes one of covariances; a context manager that leaves it there.

    `sums` has the names and sizes of the importance matrix's entries; its values may change until `finish`. With
    `resume`, what an earlier process wrote is kept; `resumed` says whether there was such a file. Raises OutputError
    where there is no room for it, CovarianceError for names that no GGUF can have.
    """

    def __init__(self, path: Path, sums: Sums, inputs: Sequence[Input], *, resume: bool = False) -> None:
        self.path, self._inputs = path, tuple(inputs)
        header, items = _layout(sums, self._inputs)
        self._header_bytes = len(header)
        *offsets, self.nbytes = places(header, items)
        self._items = {item.name: (item, offset) for item, offset in zip(items, offsets, strict=True)}
        with self._explaining():
            self.resumed = resume and path.is_file() and path.stat().st_size == self.nbytes
            self._file: BinaryIO = path.open("r+b" if self.resumed else "w+b", _BUFFER)
        if not self.resumed:
            self._reserve()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with contextlib.suppress(OSError):  # the last buffer of a full disk
            self._file.close()

    def put(self, one: Input, parts: Sequence[Sequence[Part]], tokens: Sequence[int]) -> None:
        """Write the correlations of an input. `parts`: for each of its matrices the sums of products that are to be
        added up; `tokens`: for each, how many went into them. Raises OutputError."""
        rows = triangle(one.width)
        for matrix, own in enumerate(parts):
            self._write(one.name + CORRELATIONS, 2 * rows * matrix, correlations(own))
        if one.pooled:
            self._write(one.name + POOLED, 0, correlations([part for own in parts for part in own]))
        self._write(one.name + TOKENS, 0, [np.array(tokens, np.float32)])

    def sync(self) -> None:
        """See to the disk what was written so far. Raises OutputError."""
        with self._explaining():
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, sums: Sums, destination: Path) -> None:
        """Add the importance matrix and the header, and give the file its name. Raises OutputError."""
        header, _ = _layout(sums, self._inputs)
        if len(header) != self._header_bytes:
            raise AssertionError(f"a header of {len(header)} bytes where {self._header_bytes} were laid out")
        for item, values in imatrix_items(sums):
            self._write(item.name, 0, [values.astype(np.float32)])
        with self._explaining():
            self._file.seek(0)
            self._file.write(header)
        self.sync()
        self._file.close()
        give_name(self.path, destination)

    def _write(self, name: str, begin: int, arrays: Iterable[NDArray[np.generic]]) -> None:
        if name not in self._items:  # a single channel has nothing above its diagonal
            return
        _, offset = self._items[name]
        with self._explaining():
            self._file.seek(offset + begin)
            for array in arrays:
                self._file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())

    def _reserve(self) -> None:
        """Take all the room now: better to hear of a full disk before the work than after it."""
        with self._explaining():
            self._file.truncate(self.nbytes)
            if hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(self._file.fileno(), 0, self.nbytes)
                except OSError as problem:
                    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                        self._file.close()
                        self.path.unlink(missing_ok=True)
                        raise
                    # a file system that reserves nothing

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise refused(self.path, problem) from problem


def merge_covariances(files: Sequence[Covariances], sums: Sums, path: Path) -> None:
    """Write the sum of covariances of one model; `sums`: their importance matrices, merged. Raises CovarianceError for
    files of different models, OutputError."""
    check_mergeable(files, files[0].inputs)
    inputs = list(files[0].inputs.values())
    temporary = temporary_beside(path)
    try:
        with CovarianceFile(temporary, sums, inputs) as merged:
            for one in inputs:
                parts = [[file.part(one.name, matrix) for file in files] for matrix in range(one.matrices)]
                merged.put(one, parts, np.sum([file.tokens_of(one.name) for file in files], axis=0).tolist())
            merged.finish(sums, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_mergeable(files: Sequence[Covariances], inputs: Mapping[str, Input]) -> None:
    """Raise CovarianceError for a file whose inputs are not these: then it is of another model."""
    for file in files:
        if file.inputs == inputs:
            continue
        names = [name for name in {**inputs, **file.inputs} if inputs.get(name) != file.inputs.get(name)]
        ours, theirs = inputs.get(names[0]), file.inputs.get(names[0])
        raise CovarianceError(
            f"{file.path}: the covariances of another model: {names[0]} {_differing(ours, theirs)}.",
            "Merge only covariances of one model, collected in the same way.",
        )


def _differing(ours: Input | None, theirs: Input | None) -> str:
    if ours is None or theirs is None:
        return f"has an input of its own only {'in it' if ours is None else 'elsewhere'}"
    if (ours.width, ours.matrices) != (theirs.width, theirs.matrices):
        return (
            f"has {theirs.width:,} channels in {theirs.matrices:,} matrices there, and elsewhere {ours.width:,} in "
            f"{ours.matrices:,}"
        )
    return f"is read by {', '.join(theirs.tensors)} there, and elsewhere by {', '.join(ours.tensors)}"


def _layout(sums: Sums, inputs: Sequence[Input]) -> tuple[bytes, list[Item]]:
    items = [item for item, _ in imatrix_items(sums)]
    for one in inputs:
        items.append(Item(one.name + TOKENS, (1, one.matrices)))
        if one.width > 1:
            items.append(Item(one.name + CORRELATIONS, (triangle(one.width), one.matrices), F16))
        if one.pooled and one.width > 1:
            items.append(Item(one.name + POOLED, (triangle(one.width), 1), F16))
    readers = [(tensor, one.name) for one in inputs for tensor in one.tensors]
    pairs = [
        encode_pair("general.type", KIND),
        *imatrix_keys(sums),
        encode_pair(VERSION_KEY, np.uint32(VERSION)),
        encode_pair(TENSORS, [tensor for tensor, _ in readers]),
        encode_pair(INPUTS, [name for _, name in readers]),
    ]
    return header_of(pairs, items, CovarianceError), items
