"""Importance matrices: for each input channel of a tensor the mean square of its activations, and maybe their mean.

Two kinds of file: GGUF (`NAME.in_sum2` and `NAME.counts`, of some makers also `NAME.in_sum`; one row an expert) and
the older `.dat`. What comes out is, bit for bit, what llama-quantize (`load_imatrix` in its `quantize.cpp`) feeds
to the kernels: sums over counts in float32, and ones for an expert that was never activated.

Values are computed from the mapped file when they are asked for: the imatrix of a large mixture of experts takes a
gigabyte, of which one tensor is needed at a time.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError
from planner.gguf.legacy import read_legacy
from planner.gguf.metadata import Metadata
from planner.gguf.model import Model
from planner.gguf.reader import GgufFile, Tensor, read_gguf
from planner.gguf.rules import why_left_alone

__all__ = ["Coverage", "Entry", "Imatrix", "Match", "read_imatrix"]

Floats = NDArray[np.float32]

_SUFFIXES = (".in_sum2", ".in_sum", ".counts")
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_AGAIN = "Make it again with llama-imatrix."
_MOST_TOKENS = 2.0**53  # whole numbers are exact up to there, and may be added up
# llama-quantize goes on without weights where an entry of this name has another size than the tensor
_MAY_MISMATCH = frozenset(("token_embd.weight", "per_layer_token_embd.weight"))


class Entry:
    """What the file knows about one tensor, `n` values for each of its experts (1 for a plain matrix).

    `counts`: f64[experts], the tokens that each expert saw (in a legacy file: calls, one number for all).
    """

    def __init__(
        self, sum2: Floats, sums: Floats | None, counts: NDArray[np.float64], idle: float | None = 1.0
    ) -> None:
        self._sum2 = sum2  # f32[experts, n], views of the mapped file
        self._sums = sums
        self.counts = counts
        self._idle = idle  # what stands for an expert without counts; None: its sums as they are (legacy)

    @property
    def shape(self) -> tuple[int, int]:
        """Experts and values for each."""
        return self._sum2.shape[0], self._sum2.shape[1]

    @property
    def has_means(self) -> bool:
        """Whether the file holds sums of activations for this tensor."""
        return self._sums is not None

    @property
    def raw_sum2(self) -> Floats:
        """f32[experts, n]: sums of squares as the file has them (of a legacy file: means times calls)."""
        return self._sum2

    @property
    def raw_sums(self) -> Floats | None:
        """f32[experts, n]: sums of activations as the file has them, or None."""
        return self._sums

    @property
    def values(self) -> Floats:
        """f32[experts, n]: mean squares; ones for an expert that was never activated."""
        return _per_count(self._sum2, self.counts, self._idle)

    @property
    def means(self) -> Floats | None:
        """f32[experts, n]: means, zeros for an expert that was never activated; None if the file has no sums."""
        return None if self._sums is None else _per_count(self._sums, self.counts, 0.0)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over values, means and counts."""
        sha = hashlib.sha256(repr(self.shape).encode())
        sha.update(self.values.tobytes())
        means = self.means
        sha.update(b"" if means is None else means.tobytes())
        sha.update(self.counts.tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Match:
    """An entry laid out like its tensor: `values` and `means` f32[matrices, row_length], `counts` f64[matrices]."""

    values: Floats
    means: Floats | None
    counts: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coverage:
    """How an imatrix and a model fit together.

    `missing`: tensors that llama.cpp would quantize and that have no entry. `mismatched`: name → what differs.
    `unused`: entries without a tensor. `never_activated`: name → experts (from 0) whose count is zero.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: Mapping[str, str]
    unused: tuple[str, ...]
    never_activated: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. `given` is its path as the user spelt it, which llama-quantize stores in the model.

    `chunk_size` is in tokens, 0 if unknown (legacy).
    """

    path: Path
    given: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    entries: Mapping[str, Entry]
    legacy: bool

    @property
    def has_means(self) -> bool:
        """Whether the file holds sums of activations for any tensor."""
        return any(entry.has_means for entry in self.entries.values())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all entries."""
        sha = hashlib.sha256()
        for name in sorted(self.entries):
            sha.update(f"{name}\0{self.entries[name].digest}\n".encode())
        return sha.hexdigest()

    def covers(self, tensor: Tensor) -> bool:
        """Return whether there is an entry for the tensor.

        As in llama-quantize, sizes need only agree as a whole: a legacy file knows nothing of experts. Raises
        ImatrixError where they do not, except for token embeddings, which then go without.
        """
        entry = self.entries.get(tensor.name)
        if entry is None:
            return False
        difference = _difference(entry, tensor)
        if difference is None:
            return True
        if tensor.name in _MAY_MISMATCH:
            return False
        raise ImatrixError(
            f"{self.path}: the imatrix of another model: {tensor.name} {difference}.",
            "Make an imatrix of this model with llama-imatrix.",
        )

    def weights(self, tensor: Tensor) -> Floats | None:
        """Return what the kernels get for the tensor, f32[matrices, row_length], or None. Raises as `covers`."""
        if not self.covers(tensor):
            return None
        return self.entries[tensor.name].values.reshape(tensor.matrices, tensor.row_length)

    def match(self, tensor: Tensor) -> Match | None:
        """Return all that is known of the tensor, in its own layout, or None. Raises as `covers`."""
        values = self.weights(tensor)
        if values is None:
            return None
        entry = self.entries[tensor.name]
        means, counts = entry.means, entry.counts
        if len(counts) != tensor.matrices:  # a single number for all experts
            counts = np.full(tensor.matrices, counts.mean())
        return Match(values, None if means is None else means.reshape(values.shape), counts)

    def coverage(self, model: Model) -> Coverage:
        """Compare with a model. Raises nothing: see `require`."""
        covered, missing, mismatched = [], [], {}
        for tensor in model.tensors:
            entry = self.entries.get(tensor.name)
            if entry is None:
                if why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format) is None:
                    missing.append(tensor.name)
            elif (difference := _difference(entry, tensor)) is not None:
                mismatched[tensor.name] = difference
            else:
                covered.append(tensor.name)
        idle = {
            name: tuple(int(expert) for expert in np.flatnonzero(self.entries[name].counts == 0)) for name in covered
        }
        unused = tuple(name for name in self.entries if name not in model.by_name)
        return Coverage(
            tuple(covered), tuple(missing), mismatched, unused, {name: who for name, who in idle.items() if who}
        )

    def require(self, model: Model) -> Coverage:
        """Return the coverage; raise ImatrixError if this is the imatrix of another model."""
        coverage = self.coverage(model)
        wrong = [name for name in coverage.mismatched if name not in _MAY_MISMATCH]
        if wrong:
            raise ImatrixError(
                f"{self.path}: the imatrix of another model: {wrong[0]} {coverage.mismatched[wrong[0]]}"
                f"{f', and {len(wrong) - 1} more tensors differ' if len(wrong) > 1 else ''}.",
                f"Make an imatrix of {model.path.name} with llama-imatrix.",
            )
        if not coverage.covered:
            raise ImatrixError(
                f"{self.path}: the imatrix of another model: none of its {len(self.entries)} entries "
                f"belongs to a tensor of {model.path.name}.",
                f"Make an imatrix of {model.path.name} with llama-imatrix.",
            )
        return coverage


def read_imatrix(path: str | Path) -> Imatrix:
    """Read an imatrix, GGUF or legacy. Raises ImatrixError for a file that is damaged, of another kind, or holds
    values that no imatrix can have (NaN, infinite, negative)."""
    given, path = os.fspath(path), Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise ImatrixError(f"{path}: {reason}.", "Check the path.") from problem
    if magic == b"GGUF":
        return _from_gguf(path, given)
    legacy = read_legacy(path)
    entries = {
        name: _entry(path, name, values[None], None, np.array([calls], np.float32), idle=None)
        for name, (values, calls) in legacy.entries.items()
    }
    return Imatrix(path, given, legacy.datasets, legacy.chunk_count, 0, entries, legacy=True)


def _from_gguf(path: Path, given: str) -> Imatrix:
    file = read_gguf(path, error=ImatrixError)
    metadata = file.metadata
    absent = [key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if key not in metadata]
    if absent:
        if metadata.text("general.architecture") not in (None, "imatrix"):
            raise ImatrixError(f"{path}: a model, not an importance matrix.", "Give what llama-imatrix wrote.")
        raise ImatrixError(f"{path}: not an importance matrix: {', '.join(absent)} missing.", _AGAIN)
    groups: dict[str, dict[str, Tensor]] = {}
    for tensor in file.tensors:
        for suffix in _SUFFIXES:
            name = tensor.name.removesuffix(suffix)
            if name != tensor.name:
                groups.setdefault(name, {})[suffix] = tensor
                break
    if not groups:
        raise ImatrixError(f"{path}: the imatrix has no entries.", _AGAIN)
    # llama-quantize keeps its entries sorted by name
    entries = {name: _gguf_entry(file, name, groups[name]) for name in sorted(groups)}
    datasets = metadata[_DATASETS]
    return Imatrix(
        path,
        given,
        tuple(datasets) if isinstance(datasets, list) else (),
        _count(path, metadata, _CHUNKS),
        _count(path, metadata, _CHUNK_SIZE),
        entries,
        legacy=False,
    )


def _count(path: Path, metadata: Metadata, key: str) -> int:
    value = metadata.integer(key)
    if value is None or metadata.pair(key).kind != 4:
        raise ImatrixError(f"{path}: {key} is no u32.", _AGAIN)
    return value


def _gguf_entry(file: GgufFile, name: str, tensors: Mapping[str, Tensor]) -> Entry:
    if ".in_sum2" not in tensors or ".counts" not in tensors:
        raise ImatrixError(f"{file.path}: {name} has only {', '.join(tensors)}.", _AGAIN)
    arrays = {}
    for suffix, tensor in tensors.items():
        if tensor.format != "f32":
            raise ImatrixError(f"{file.path}: {tensor.name} is {tensor.format}, not f32.", _AGAIN)
        arrays[suffix] = np.frombuffer(file.data, "<f4", tensor.elements, tensor.offset)
    counts, sum2, sums = arrays[".counts"], arrays[".in_sum2"], arrays.get(".in_sum")
    if sum2.size % counts.size or (sums is not None and sums.size != sum2.size):
        sizes = ", ".join(f"{array.size} in {suffix}" for suffix, array in arrays.items())
        raise ImatrixError(f"{file.path}: the sizes of {name} do not agree: {sizes}.", _AGAIN)
    shape = counts.size, sum2.size // counts.size
    return _entry(file.path, name, sum2.reshape(shape), None if sums is None else sums.reshape(shape), counts)


def _entry(path: Path, name: str, sum2: Floats, sums: Floats | None, counts: Floats, idle: float | None = 1.0) -> Entry:
    if not ((counts >= 0) & (counts < _MOST_TOKENS)).all():  # NaN neither
        raise ImatrixError(f"{path}: the counts of {name} hold a value that is no count.", _AGAIN)
    # min and max see NaN too, and need no array of booleans the size of the file
    low = float(sum2.min())
    if not all(np.isfinite([values.min(), values.max()]).all() for values in (sum2, sums) if values is not None):
        raise ImatrixError(f"{path}: {name} holds NaN or infinite values.", _AGAIN)
    if low < 0:
        raise ImatrixError(f"{path}: {name} holds the sum of squares {low:g}, which is below zero.", _AGAIN)
    return Entry(sum2, sums, np.floor(counts.astype(np.float64) + 0.5), idle)  # std::lround


def _per_count(sums: Floats, counts: NDArray[np.float64], idle: float | None) -> Floats:
    # float32 over float32, as in load_imatrix
    divisors = counts.astype(np.float32)[:, None]
    result: Floats = np.divide(sums, np.maximum(divisors, np.float32(1)), dtype=np.float32)
    if idle is not None:
        result[divisors[:, 0] == 0] = idle
    return result


def _difference(entry: Entry, tensor: Tensor) -> str | None:
    experts, width = entry.shape
    if experts * width == tensor.matrices * tensor.row_length:
        return None
    stacked = f" for {experts} experts" if experts > 1 else ""
    needed = f" for {tensor.matrices} experts" if tensor.matrices > 1 else ""
    return f"has {width:,} values{stacked} and needs {tensor.row_length:,}{needed}"
