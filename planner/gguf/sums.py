"""Sums from which importance matrices are made: accumulated, merged, and checked against one another.

Merging and conversion follow `load_imatrix` in llama.cpp's `tools/imatrix/imatrix.cpp`, except that equivalent counts
which it refuses are accepted: one count for all experts beside a count for each, in either order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError
from planner.gguf.entry import Entry, StreamSums
from planner.gguf.imatrix import Imatrix
from planner.gguf.reach import Reach, together

__all__ = ["DEFAULT_CHUNK_SIZE", "Sums", "TensorSums", "merge_imatrices"]

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]

DEFAULT_CHUNK_SIZE = 512  # tokens, llama-imatrix's own default


@dataclass(slots=True)
class TensorSums:
    """Sums of one tensor: of squares, `sum2`, and unless unknown of activations, `sums`, f32[values]; `counts`,
    i64[experts], the number of rows summed; `stream`, if it is known what the tensor writes to.

    The values of an expert (or of a matrix of a 3-D tensor, whose matrices share one count) lie side by side.
    """

    sum2: Floats
    sums: Floats | None
    counts: Counts
    stream: StreamSums | None = None

    @classmethod
    def zeros(cls, values: int, experts: int) -> TensorSums:
        """Return empty sums of `values` values in all, with `experts` counts."""
        return cls(np.zeros(values, np.float32), np.zeros(values, np.float32), np.zeros(experts, np.int64))

    def fits(self, experts: int) -> bool:
        """Return whether the counts can stand for this many experts: as they are, one for all, or all the same."""
        collapses = experts == 1 and len(self.counts) > 0 and bool((self.counts == self.counts[0]).all())
        return len(self.counts) in (1, experts) or collapses

    def set_experts(self, experts: int) -> None:
        """Broadcast or collapse the counts to `experts`. Raises ValueError if they do not fit."""
        if not self.fits(experts):
            raise ValueError(f"counts of {len(self.counts):,} experts do not fit {experts:,}")
        if len(self.counts) != experts:
            self.counts = np.repeat(self.counts[:1], experts)

    def add(self, other: TensorSums) -> None:
        """Add the sums of another file. Raises ValueError if they are of another size."""
        if len(other.sum2) != len(self.sum2):
            raise ValueError(f"has {len(other.sum2):,} values, not {len(self.sum2):,}")
        experts = max(len(self.counts), len(other.counts))
        if not self.fits(experts) or len(other.counts) not in (1, experts):
            raise ValueError(f"has {len(other.counts):,} experts, not {len(self.counts):,}")
        self.set_experts(experts)
        self.sum2 += other.sum2
        self.counts += other.counts
        if self.sums is None or other.sums is None:
            self.sums = None  # a sum over only part of the tokens is useless
        else:
            self.sums += other.sums
        if self.stream is None or other.stream is None:
            self.stream = None
        else:
            self.stream.add(other.stream)


@dataclass(slots=True)
class Sums:
    """An importance matrix in the making: tensor name → its sums, and the texts that they come from; and how far noise
    reaches from behind tensors, by their names (`planner.llama.passes.reach`)."""

    chunk_size: int
    tensors: dict[str, TensorSums] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    reach: dict[str, Reach] = field(default_factory=dict)

    def add_reach(self, found: Mapping[str, Reach]) -> None:
        """Take how far noise reaches together with what is known of it, by how many tokens either was found on. Raises
        ValueError where channels are not as many."""
        for name, more in found.items():
            self.reach[name] = together(self.reach[name], more) if name in self.reach else more

    @property
    def chunk_count(self) -> int:
        """Chunks as llama-imatrix counts them: those of the tensor (or expert) that saw the most."""
        most = max((int(entry.counts.max()) for entry in self.tensors.values() if len(entry.counts)), default=0)
        return most // self.chunk_size

    @property
    def without_sums(self) -> tuple[str, ...]:
        """Tensors whose sums of activations are unknown."""
        return tuple(name for name, entry in self.tensors.items() if entry.sums is None)


def merge_imatrices(files: Sequence[Imatrix], chunk_size: int | None = None) -> Sums:
    """Sum up importance matrices: of the same model, or of parts of its tensors.

    `chunk_size` is the number of tokens per call of a legacy file; by default the value that the GGUF files among them
    agree on, else 512. Raises ImatrixError if sizes differ.
    """
    if chunk_size is None:
        sizes = {file.chunk_size for file in files if not file.legacy and file.chunk_size > 0}
        chunk_size = sizes.pop() if len(sizes) == 1 else DEFAULT_CHUNK_SIZE
    merged = Sums(chunk_size)
    for file in files:
        _check_names(file, files[0])
        worth = chunk_size if file.legacy else 1
        for name, entry in file.entries.items():
            try:
                with np.errstate(over="raise"):
                    _add_entry(merged, name, entry, worth)
            except FloatingPointError as problem:
                raise ImatrixError(
                    f"{file.path}: the sums of {name} are too large to be added up in float32.",
                    "Make it again with llama-imatrix, or leave it out.",
                ) from problem
            except ValueError as problem:
                raise _of_another_model(file, files[0], f"{name} {problem}") from problem
        merged.datasets += file.datasets
        try:
            merged.add_reach(file.reach)
        except ValueError as problem:
            raise _of_another_model(file, files[0], str(problem)) from problem
    return merged


def _add_entry(merged: Sums, name: str, entry: Entry, worth: int) -> None:
    """Add one entry of a file whose counts are worth this many tokens. Raises ValueError as TensorSums.add."""
    sums = entry.raw_sums
    added = TensorSums(
        entry.raw_sum2.reshape(-1) * np.float32(worth),
        None if sums is None else sums.reshape(-1).copy(),
        entry.counts.astype(np.int64) * worth,
        None if entry.stream is None else StreamSums(*(array.copy() for array in entry.stream.arrays)),
    )
    if name in merged.tensors:
        merged.tensors[name].add(added)
    else:
        merged.tensors[name] = added


def _check_names(file: Imatrix, first: Imatrix) -> None:
    """Raise ImatrixError if each file has tensors that the other lacks: then they are not of one model. (Legacy files
    are exempt, since they leave out tensors that were never used.)"""
    more, less = file.entries.keys() - first.entries.keys(), first.entries.keys() - file.entries.keys()
    if more and less and not file.legacy and not first.legacy:
        raise _of_another_model(file, first, f"{min(more)} is only in it, and {min(less)} only in the other")


def _of_another_model(file: Imatrix, first: Imatrix, what: str) -> ImatrixError:
    return ImatrixError(
        f"{file.path}: the imatrix of another model than {first.path}: {what}.",
        "Merge only importance matrices of one model.",
    )
