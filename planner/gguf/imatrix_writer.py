"""Importance matrices as files, in the two formats of llama-imatrix.

GGUF, as `save_imatrix` in llama.cpp's `tools/imatrix/imatrix.cpp` writes it, with `NAME.in_sum` after `NAME.in_sum2`
and `NAME.counts` where sums of activations are known (the name that llama.cpp's forks give them), and behind them those
that are weighted by the stream, `NAME.stream…`, and how far noise reaches, `NAME.reach…`; llama.cpp itself reads past
these. Legacy, as `save_imatrix_legacy`: no sums, and of an expert no more than its mean squares.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ImatrixError, option
from planner.files import Output, check_destinations
from planner.gguf.container import Item, header_of, places
from planner.gguf.entry import STREAM
from planner.gguf.metadata import encode_pair
from planner.gguf.reach import reach_arrays
from planner.gguf.sums import Sums, TensorSums

__all__ = ["imatrix_items", "imatrix_keys", "write_imatrix", "write_legacy_imatrix"]

Floats = NDArray[np.float32]

_I32_MAX = 2**31 - 1


def write_imatrix(sums: Sums, path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> int:
    """Write a GGUF file atomically; return its size in bytes. Raises OutputError, also if `path` is one of the
    `inputs`, and ImatrixError for names that no GGUF can have."""
    parts: list[tuple[Item, NDArray[np.generic]]] = list(imatrix_items(sums))
    for name, found in sorted(sums.reach.items()):
        parts += [(Item(own, (len(values), 1)), values) for own, values in reach_arrays(name, found)]
    items = [item for item, _ in parts]
    header = header_of([encode_pair("general.type", "imatrix"), *imatrix_keys(sums)], items, ImatrixError)

    def data() -> Iterator[bytes]:
        yield header
        for item, values in parts:
            yield values.astype("<f4").tobytes().ljust(item.padded, b"\0")

    *_, total = places(header, items)
    _write(path, data(), total, inputs, force=force)
    return total


def imatrix_items(sums: Sums) -> Iterator[tuple[Item, NDArray[np.generic]]]:
    """Yield the tensors of a file that hold the sums, by their names, and their values, to be written as f32. (Files of
    covariances, which are laid out before a text is read, have these alone, and not how far noise reaches.)"""
    for name in sorted(sums.tensors):
        entry = sums.tensors[name]
        experts = len(entry.counts)
        shape = len(entry.sum2) // experts, experts
        yield Item(f"{name}.in_sum2", shape), entry.sum2
        yield Item(f"{name}.counts", (1, experts)), entry.counts
        if entry.sums is not None:
            yield Item(f"{name}.in_sum", shape), entry.sums
        if entry.stream is not None:
            shapes = shape, shape, (1, len(entry.stream.weights)), (len(entry.stream.stream), 1)
            for suffix, form, values in zip(STREAM, shapes, entry.stream.arrays, strict=True):
                yield Item(name + suffix, form), values


def imatrix_keys(sums: Sums) -> list[bytes]:
    """Return the pairs of a file's metadata that make it an importance matrix."""
    return [
        encode_pair("imatrix.datasets", sums.datasets),
        encode_pair("imatrix.chunk_count", np.uint32(min(sums.chunk_count, 2**32 - 1))),
        encode_pair("imatrix.chunk_size", np.uint32(sums.chunk_size)),
    ]


def write_legacy_imatrix(sums: Sums, path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> int:
    """Write a legacy file (`imatrix.dat`) atomically; return its size in bytes. Tensors of which no expert was ever
    used are left out. Raises OutputError."""
    stored = [name for name in sorted(sums.tensors) if sums.tensors[name].counts.any()]
    if not stored:
        raise ImatrixError("Nothing was collected: there is nothing to write.", "Use a longer text.")
    dataset = sums.datasets[-1].encode("utf-8", "surrogateescape") if sums.datasets else b""
    trailer = struct.pack("<ii", min(sums.chunk_count, _I32_MAX), len(dataset)) + dataset
    total = 4 + len(trailer)
    total += sum(12 + len(name.encode()) + 4 * len(sums.tensors[name].sum2) for name in stored)

    def data() -> Iterator[bytes]:
        yield struct.pack("<i", len(stored))
        for name in stored:
            calls, values = _legacy_values(sums.tensors[name], sums.chunk_size)
            text = name.encode()
            yield struct.pack("<i", len(text)) + text + struct.pack("<ii", calls, len(values)) + values.tobytes()
        yield trailer

    _write(path, data(), total, inputs, force=force)
    return total


def _legacy_values(entry: TensorSums, chunk_size: int) -> tuple[int, Floats]:
    """Return calls (rounded up, never zero) and f32[values]: means times calls; ones for an idle expert."""
    calls = min((int(entry.counts.max()) + chunk_size - 1) // chunk_size, _I32_MAX)
    counts = entry.counts.astype(np.float32)[:, None]
    values = entry.sum2.astype(np.float32).reshape(len(counts), -1)
    means = np.where(counts == 0, np.float32(1), values / np.maximum(counts, np.float32(1)))
    with np.errstate(over="ignore"):
        scaled: Floats = (means * np.float32(calls)).astype("<f4").reshape(-1)
    if not np.isfinite(scaled).all():
        raise ImatrixError(
            "The sums are too large for a legacy file.", f"Leave {option('output_format')} out: GGUF holds them."
        )
    return calls, scaled


def _write(path: Path, blocks: Iterator[bytes], total: int, inputs: Iterable[Path], *, force: bool) -> None:
    check_destinations([path], total, inputs, force=force)
    with Output([path], force=force) as output:
        output.begin()
        for block in blocks:
            output.write(block)
        output.end(total)
        output.commit()
