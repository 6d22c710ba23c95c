"""Importance matrices: for each input channel of a tensor the mean square of its activations, and maybe their mean.

Two kinds of file: GGUF (`NAME.in_sum2` and `NAME.counts`, from some writers also `NAME.in_sum`; one row an expert) and
the older `.dat`. `planner.gguf.entry` interprets their values.

Values are computed from the mapped file on demand: the imatrix of a large mixture of experts takes a gigabyte, of which
one tensor is needed at a time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError
from planner.gguf.contents import contents_of
from planner.gguf.entry import STREAM, Entry, Floats, StreamSums
from planner.gguf.legacy import read_legacy
from planner.gguf.llama_cpp import why_left_alone
from planner.gguf.metadata import Metadata
from planner.gguf.model import Model
from planner.gguf.reach import Reach, read_reach
from planner.gguf.reader import GgufFile, Tensor, read_gguf
from planner.inputs.kinds import GGUF
from planner.inputs.reading import kind_at
from planner.work import Reference, reference

__all__ = ["Coverage", "Imatrix", "Match", "imatrix_of", "read_imatrix"]

_SUFFIXES = (".in_sum2", ".in_sum", ".counts", *STREAM)
_DATASETS, _CHUNKS, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_AGAIN = "Make it again with llama-imatrix."
_MOST_TOKENS = 2.0**53  # whole numbers are exact up to there, and may be added up
_LEAST_STREAM = 3  # two numbers, and a channel
# llama-quantize goes on without weights where an entry of this name has another size than the tensor; and these are
# of other sizes in files of one model for the two forms that latent attention can be computed in
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_MAY_MISMATCH = re.compile(r"(per_layer_)?token_embd\.weight|.*\.attn_(kv|k|v)_b\.weight")


@dataclass(frozen=True, slots=True)
class Match:
    """An entry in the layout of its tensor: `values` (for the kernels) and `means` f32[matrices, row_length], `counts`
    f64[matrices]; `seen` bool[matrices, row_length], the channels that an activation reached; `stream`, where it is
    known and of the same layout."""

    values: Floats
    means: Floats | None
    counts: NDArray[np.float64]
    seen: NDArray[np.bool_]
    stream: StreamSums | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """Agreement of an imatrix with a model.

    `missing`: tensors that llama.cpp would quantize and that have no entry. `mismatched`: name → the difference.
    `unused`: entries without a tensor. `never_activated`: name → experts (from 0) whose count is zero.
    """

    covered: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: Mapping[str, str]
    unused: tuple[str, ...]
    never_activated: Mapping[str, tuple[int, ...]]

    @property
    def without(self) -> tuple[str, ...]:
        """Tensors without a usable entry, except those for which most imatrix files have none."""
        names = (*self.missing, *self.mismatched)
        return tuple(name for name in names if name not in (*_EMBEDDINGS, "output.weight"))


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix. `given` is its path as the user spelt it, which llama-quantize stores in the model.

    `chunk_size` is in tokens, 0 if unknown (legacy). `reach` is by the name of a weight behind which there is noise.
    """

    path: Path
    given: str
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int
    entries: Mapping[str, Entry]
    legacy: bool
    reach: Mapping[str, Reach] = field(default_factory=dict)

    def __reduce__(self) -> Reference[Imatrix]:
        """Pickled as a reference."""
        return self._reference

    @functools.cached_property
    def _reference(self) -> Reference[Imatrix]:
        return reference(read_imatrix, self.path, [self.path])

    @property
    def has_means(self) -> bool:
        """True if the file holds sums of activations for any tensor."""
        return any(entry.has_means for entry in self.entries.values())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all entries."""
        sha = hashlib.sha256()
        for name in sorted(self.entries):
            sha.update(f"{name}\0{self.entries[name].digest}\n".encode())
        return sha.hexdigest()

    def nats(self, name: str) -> float | None:
        """Return how far noise reaches from behind a weight, or in the logits (`LOGITS_REACH`); None if unknown."""
        found = self.reach.get(name)
        return None if found is None else found.nats

    def inside(self, name: str) -> tuple[float, float] | None:
        """Return what a relative error of 1 in a weight inside of a block costs, in nats: in what varies between tokens
        of what it reads, and in its mean; None if unknown."""
        found = self.reach.get(name)
        return None if found is None or found.steady is None else (found.nats, found.steady)

    def worth(self, tensor: Tensor) -> NDArray[np.float64] | None:
        """Return what energy in each of a tensor's outputs is worth, f64[rows of a matrix]; None where all are alike.
        Raises ImatrixError where there are others than those of the tensor."""
        found = self.reach.get(tensor.name)
        if found is None or found.channels is None:
            return None
        if len(found.channels) != tensor.rows_per_matrix:
            raise ImatrixError(
                f"{self.path}: {tensor.name} has {tensor.rows_per_matrix:,} outputs in the model, and "
                f"{len(found.channels):,} in the imatrix.",
                "Give the imatrix that was made of this model.",
            )
        return found.channels.astype(np.float64)

    def covers(self, tensor: Tensor) -> bool:
        """Return whether there is an entry for the tensor.

        As in llama-quantize, only total sizes need to agree: a legacy file knows nothing of experts. Raises
        ImatrixError if they do not, except for token embeddings and the tensors of latent attention, which then go
        without.
        """
        entry = self.entries.get(tensor.name)
        if entry is None:
            return False
        difference = _difference(entry, tensor)
        if difference is None:
            return True
        if _MAY_MISMATCH.fullmatch(tensor.name):
            return False
        raise ImatrixError(
            f"{self.path}: the imatrix of another model: {tensor.name} {difference}.",
            "Make an imatrix of this model with llama-imatrix.",
        )

    def has_gaps(self, tensor: Tensor) -> bool:
        """Return whether there is an entry for the tensor that has channels without activations. Raises as `covers`."""
        return self.covers(tensor) and self.entries[tensor.name].gaps > 0

    def weights(self, tensor: Tensor) -> Floats | None:
        """Return the kernels' weights for the tensor, f32[matrices, row_length], or None. Raises as `covers`."""
        if not self.covers(tensor):
            return None
        return self.entries[tensor.name].values.reshape(tensor.matrices, tensor.row_length)

    def match(self, tensor: Tensor) -> Match | None:
        """Return the tensor's entry in the tensor's own layout, or None. Raises as `covers`."""
        values = self.weights(tensor)
        if values is None:
            return None
        entry = self.entries[tensor.name]
        means, counts = entry.means, entry.counts
        if len(counts) != tensor.matrices:  # a single number for all experts
            counts = np.full(tensor.matrices, counts.mean())
        seen = entry.seen.reshape(values.shape)
        stream = entry.stream if entry.stream is not None and entry.shape == values.shape else None
        return Match(values, None if means is None else means.reshape(values.shape), counts, seen, stream)

    def coverage(self, model: Model) -> Coverage:
        """Compare with a model. Unlike `require`, raises nothing."""
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
        wrong = [name for name in coverage.mismatched if not _MAY_MISMATCH.fullmatch(name)]
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
    if kind_at(path, ImatrixError) == GGUF:
        return imatrix_of(read_gguf(path, error=ImatrixError), given)
    legacy = read_legacy(path)
    entries = {
        name: _entry(path, name, values[None], None, np.array([calls], np.float32), fill=None)
        for name, (values, calls) in legacy.entries.items()
    }
    return Imatrix(path, given, legacy.datasets, legacy.chunk_count, 0, entries, legacy=True)


def imatrix_of(file: GgufFile, given: str) -> Imatrix:
    """Return the imatrix in a GGUF file, whose path the user spelt as `given`. Raises ImatrixError."""
    path, metadata = file.path, file.metadata
    absent = [key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if key not in metadata]
    if absent:
        if metadata.text("general.architecture") not in (None, "imatrix"):
            what = contents_of(metadata)
            raise ImatrixError(f"{path}: {what}, not an importance matrix.", "Give what llama-imatrix wrote.")
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
    datasets = metadata.brief(_DATASETS)
    return Imatrix(
        path,
        given,
        tuple(datasets) if isinstance(datasets, list) else (),
        _count(path, metadata, _CHUNKS),
        _count(path, metadata, _CHUNK_SIZE),
        entries,
        legacy=False,
        reach=read_reach(file),
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
    stream = _stream(file.path, name, arrays, shape)
    return _entry(
        file.path, name, sum2.reshape(shape), None if sums is None else sums.reshape(shape), counts, stream=stream
    )


def _stream(path: Path, name: str, arrays: Mapping[str, Floats], shape: tuple[int, int]) -> StreamSums | None:
    """Return what a file has of the stream; None if that is nothing. Raises ImatrixError for what cannot be."""
    parts = [arrays[suffix] for suffix in STREAM if suffix in arrays]
    if not parts:
        return None
    sizes = [shape[0] * shape[1], shape[0] * shape[1], shape[0]]
    if len(parts) < len(STREAM) or [part.size for part in parts[:3]] != sizes or parts[3].size < _LEAST_STREAM:
        raise ImatrixError(f"{path}: what {name} has of the stream is incomplete.", _AGAIN)
    sum2, sums, weights, stream = parts
    if not all(np.isfinite(part).all() for part in parts) or min(sum2.min(), weights.min(), stream[:2].min()) < 0:
        raise ImatrixError(f"{path}: what {name} has of the stream cannot be: NaN, infinite or below zero.", _AGAIN)
    return StreamSums(sum2, sums, weights, stream)


def _entry(
    path: Path, name: str, sum2: Floats, sums: Floats | None, counts: Floats, fill: float | None = 1.0,
    stream: StreamSums | None = None,
) -> Entry:  # fmt: skip
    if not ((counts >= 0) & (counts < _MOST_TOKENS)).all():  # NaN neither
        raise ImatrixError(f"{path}: the counts of {name} hold a value that is no count.", _AGAIN)
    # min and max see NaN too, and need no array of booleans the size of the file
    low = float(sum2.min())
    if not all(np.isfinite([values.min(), values.max()]).all() for values in (sum2, sums) if values is not None):
        raise ImatrixError(f"{path}: {name} holds NaN or infinite values.", _AGAIN)
    if low < 0:
        raise ImatrixError(f"{path}: {name} holds the sum of squares {low:g}, which is below zero.", _AGAIN)
    return Entry(sum2, sums, np.floor(counts.astype(np.float64) + 0.5), fill, stream)  # std::lround


def _difference(entry: Entry, tensor: Tensor) -> str | None:
    experts, width = entry.shape
    if experts * width == tensor.matrices * tensor.row_length:
        return None
    stacked = f" for {experts} experts" if experts > 1 else ""
    needed = f" for {tensor.matrices} experts" if tensor.matrices > 1 else ""
    return f"has {width:,} values{stacked} and needs {tensor.row_length:,}{needed}"
