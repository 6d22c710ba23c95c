"""Convert rows of a model to other formats, in chunks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError, ModelError
from planner.formats.ggml import Format, quantize_rows, rows_are_valid
from planner.formats.ggml.refine import refine_rows
from planner.gguf.health import all_finite
from planner.gguf.imatrix import Imatrix
from planner.gguf.layout import Placed
from planner.gguf.model import Model
from planner.gguf.refinement import Refinement, SharedMetric, least_weights
from planner.work import Stop, Stopped

__all__ = ["Chunk", "Converter", "checked_rows", "chunks_of", "together"]

_PLAIN = ("f32", "f16", "bf16")
_CHUNK = 1 << 18  # weights converted together: at most half a second of one core


def checked_rows(
    name: str,
    fmt: Format,
    rows: NDArray[np.float32],
    weights: NDArray[np.float32] | None,
    start: int,
    remedy: str = "Give this tensor bf16 or f32.",
) -> NDArray[np.uint8]:
    """Return rows of a tensor from `start` on, f32[r, n], in a format, u8[r, row_bytes]. Raises ModelError for weights
    that it cannot hold; the `remedy` is for those that are too large."""
    try:
        data = quantize_rows(fmt, rows, weights)
    except KernelError as problem:  # which it raises for values that are not finite, too
        raise ModelError(f"{name}: {problem.problem}", problem.remedy) from problem
    if not rows_are_valid(fmt, data):
        raise ModelError(
            f"{name}: weights too large for {fmt.name} (rows {start:,} to {start + len(rows) - 1:,}).", remedy
        )
    return data


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of a tensor that are converted together, never of two experts; `weights` f32[row_length]; `metric` if they
    are refined."""

    placed: Placed
    start: int
    stop: int
    weights: NDArray[np.float32] | None
    metric: SharedMetric | None


def chunks_of(placed: Placed, imatrix: Imatrix | None, refinement: Refinement | None) -> Iterator[Chunk]:
    """Yield a tensor's chunks in order. Raises ImatrixError, CovarianceError for those of another model."""
    tensor = placed.tensor
    changes = placed.format.name != tensor.format
    values = imatrix.weights(tensor) if imatrix and changes else None
    if refinement is not None and not (changes and refinement.applies(tensor, placed.format)):
        refinement = None
    size = max(_CHUNK, least_weights(tensor)) if refinement else _CHUNK
    for matrix, parts in itertools.groupby(tensor.slices(size), key=lambda part: part[0]):
        weights = None if values is None else values[matrix]
        rows = [(start, stop) for _, start, stop in parts]
        metric = SharedMetric(refinement, tensor, matrix, len(rows)) if refinement else None
        for start, stop in rows:
            yield Chunk(placed, start, stop, weights, metric)


def together(chunks: Iterable[Chunk], least: int) -> Iterator[list[Chunk]]:
    """Yield the chunks of one tensor in groups of `least` weights or more, except the last group."""
    group: list[Chunk] = []
    for chunk in chunks:
        group.append(chunk)
        if (chunk.stop - group[0].start) * chunk.placed.tensor.row_length >= least:
            yield group
            group = []
    if group:
        yield group


@dataclass(frozen=True)
class Converter:
    """Converts chunks of the model."""

    model: Model

    def __call__(self, chunks: Sequence[Chunk], stop: Stop) -> NDArray[np.uint8]:
        """Return the bytes of consecutive chunks in their format, u8[rows, row_bytes]. Raises ModelError for weights
        that are not finite, or too large."""
        done = []
        for chunk in chunks:
            if stop():
                raise Stopped
            done.append(self._convert(chunk))
        if len(done) == 1:
            return done[0]
        self.model.release(chunks[0].placed.tensor, chunks[0].start, chunks[-1].stop)
        return np.concatenate(done)

    def _convert(self, chunk: Chunk) -> NDArray[np.uint8]:
        """Return the chunk's bytes in its format, checked on both sides as llama-quantize does."""
        tensor, target = chunk.placed.tensor, chunk.placed.format
        source = self.model.format(tensor)
        raw = self.model.raw_rows(tensor, chunk.start, chunk.stop)
        if source is target or source.name not in _PLAIN:  # of plain floats that change, quantize_rows looks at each
            self._check_source(chunk, raw)
        if source is target:
            return raw
        rows = self.model.rows(tensor, chunk.start, chunk.stop)
        try:
            out = checked_rows(tensor.name, target, rows, chunk.weights, chunk.start)
        except ModelError:
            self._check_source(chunk, raw)
            raise
        if chunk.metric is not None:
            out = refine_rows(target, rows, out, chunk.metric.get())
            chunk.metric.done()
        return out

    def _check_source(self, chunk: Chunk, raw: NDArray[np.uint8]) -> None:
        tensor = chunk.placed.tensor
        source = self.model.format(tensor)
        # Ours for plain floats: ggml's prints to stderr
        if all_finite(raw, source.name) if source.name in _PLAIN else rows_are_valid(source, raw):
            return
        raise ModelError(
            f"{self.model.parts[tensor.part]}: {tensor.name} holds NaN or infinite values "
            f"(rows {chunk.start:,} to {chunk.stop - 1:,}).",
            "llama-quantize refuses such a model too: convert it again from its original, to BF16 or F32 if "
            "its weights exceed F16. `planner inspect` counts such values in each tensor.",
        )
