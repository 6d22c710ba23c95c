"""Write a model in the formats of a recipe: the bytes that llama-quantize writes, in bounded memory.

Rows go through in chunks of about a megabyte: mapped file → float32 → kernel → output, several chunks at a time in
threads (the kernels release the GIL) and written in order. Memory does not grow with the model or its largest tensor.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import KernelError, ModelError, RecipeError, UsageError, option
from planner.files import Output, check_destinations
from planner.formats.ggml import Format, format_named, quantize_rows, rows_are_valid
from planner.formats.ggml.refine import refine_rows
from planner.gguf.health import all_finite
from planner.gguf.imatrix import Imatrix
from planner.gguf.layout import Extra, Placed, Shard, arrange, imatrix_pairs, zeros
from planner.gguf.llama_cpp import requires_imatrix, why_left_alone
from planner.gguf.model import Model, split_path
from planner.gguf.reader import Tensor
from planner.gguf.refinement import Refinement, SharedMetric
from planner.sizes import align

__all__ = ["Progress", "Written", "output_paths", "quantize_model", "resolve_formats"]

_CHUNK = 1 << 18  # weights converted together: at most half a second of one core
_RELEASE = 1 << 24  # bytes of the source after which its pages are released


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of writing: `done` of `total` bytes of the source are read, converted and written, `tensor` being the
    latest."""

    tensor: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Written:
    """The written files, the first shard first, and their total bytes."""

    paths: tuple[Path, ...]
    bytes: int


def quantize_model(
    model: Model,
    formats: Mapping[str, str],
    imatrix: Imatrix | None,
    out: Path,
    *,
    file_type: int,
    extra: Sequence[tuple[str, Extra]] = (),
    refinement: Refinement | None = None,
    threads: int | None = None,
    force: bool = False,
    keep_split: bool = False,
    max_shard_size: int | None = None,
    allow_requantize: bool = False,
    dropped: Collection[str] = (),
    progress: Callable[[Progress], None] | None = None,
) -> Written:
    """Write `model` to `out`, each tensor in its format; tensors not in `formats` stay as they are, and the draft heads
    `dropped` are left out.

    The file is the one that `llama-quantize --imatrix --tensor-type-file` writes for the same types, with the pairs
    `extra` added to the metadata; with a `refinement`, tensors that it applies to get other codes of the same size.
    `file_type` is `general.file_type` (llama_ftype). `keep_split` writes as many parts
    as the source has, `max_shard_size` (bytes of a file) as many as needed, named `OUT-00001-of-00003.gguf` after
    `out`.

    Raises RecipeError for a format that a tensor cannot take (nothing is replaced silently), ImatrixError and
    CovarianceError for an imatrix and covariances of another model, ModelError for weights that are not finite or too
    large for their format, OutputError for files that cannot be written. Existing files stay until the output is
    complete.
    """
    if both := set(dropped) & formats.keys():
        raise RecipeError(f"The recipe leaves draft heads out, and has {min(both)}.", "Remove their lines.")
    chosen = resolve_formats(model, formats, imatrix, allow_requantize=allow_requantize)
    added = [*imatrix_pairs(imatrix), *extra]
    shards = arrange(
        model, chosen, added, file_type, keep_split=keep_split, max_shard_size=max_shard_size, dropped=dropped
    )
    paths = output_paths(out, len(shards), keep_split=keep_split)
    total = sum(shard.nbytes for shard in shards)
    inputs = [*model.parts, *([imatrix.path] if imatrix else [])]
    inputs += [refinement.covariances.path] if refinement else []
    check_destinations(paths, total, inputs, force=force)
    workers = threads or _cores()
    pool = ThreadPoolExecutor(workers, "quantize")
    try:
        with Output(paths, force=force) as output:
            _Run(model, imatrix, refinement, output, pool, workers, progress).write(shards)
            output.commit()
    finally:
        # Do not wait: an interruption must not take as long as the chunks in flight.
        pool.shutdown(wait=False, cancel_futures=True)
    return Written(paths, total)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_formats(
    model: Model, formats: Mapping[str, str], imatrix: Imatrix | None, *, allow_requantize: bool = False
) -> dict[str, Format]:
    """Return the formats of the tensors that change, by name. Raises RecipeError, naming the tensor, for anything that
    cannot be done exactly."""
    chosen: dict[str, Format] = {}
    for name, wanted in formats.items():
        tensor = model.by_name.get(name)
        if tensor is None:
            near = difflib.get_close_matches(name, model.by_name, 3)
            raise RecipeError(
                f"{model.path.name} has no tensor {name}.",
                f"Did you mean {' or '.join(near)}?" if near else "Is it the recipe of another model?",
            )
        try:
            fmt = format_named(wanted) if wanted != tensor.format else model.format(tensor)
        except UsageError as problem:
            raise RecipeError(f"{name}: {problem.problem}", problem.remedy) from problem
        if fmt.name != tensor.format:
            _check_change(model, tensor, fmt, imatrix, allow_requantize=allow_requantize)
            chosen[name] = fmt
    return chosen


def _check_change(
    model: Model, tensor: Tensor, fmt: Format, imatrix: Imatrix | None, *, allow_requantize: bool
) -> None:
    reason = why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
    if reason:
        raise RecipeError(
            f"{tensor.name} cannot become {fmt.name}: llama.cpp leaves it as it is ({reason}).",
            f"Leave it out of the recipe, or give it {tensor.format}.",
        )
    if model.format(tensor).quantized and not allow_requantize:
        raise RecipeError(
            f"{tensor.name} is quantized already ({tensor.format}).",
            f"Start from the F16, BF16 or F32 model; {option('allow_requantize')} accepts the loss of doing it twice.",
        )
    fmt.check_rows(tensor.name, tensor.row_length)
    has_weights = imatrix is not None and imatrix.covers(tensor)
    if requires_imatrix(tensor.name, fmt) and not has_weights:
        lacking = "the imatrix has no entry for it" if imatrix else "there is no imatrix"
        raise RecipeError(
            f"{tensor.name} cannot become {fmt.name}: {lacking}.", "Give an imatrix that covers it, or another format."
        )


def output_paths(out: Path, shards: int, *, keep_split: bool = False) -> tuple[Path, ...]:
    """Return the names of the files: `out` itself, or llama.cpp's names of shards after it. As llama-quantize does,
    `keep_split` numbers even a single file."""
    if shards == 1 and not keep_split:
        return (out,)
    stem = out.with_name(out.name.removesuffix(".gguf"))
    return tuple(split_path(stem, index, shards) for index in range(shards))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of a tensor that are converted together, never of two experts; `weights` f32[row_length]; `metric` if they
    are refined."""

    placed: Placed
    start: int
    stop: int
    weights: NDArray[np.float32] | None
    metric: SharedMetric | None


class _Run:
    """One pass over all tensors."""

    def __init__(
        self,
        model: Model,
        imatrix: Imatrix | None,
        refinement: Refinement | None,
        output: Output,
        pool: ThreadPoolExecutor,
        workers: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model = model
        self.imatrix = imatrix
        self.refinement = refinement
        self.output = output
        self.pool = pool
        self.window = 4 * workers  # chunks in flight
        self.progress = progress
        self.done = 0
        self.total = 0

    def write(self, shards: Sequence[Shard]) -> None:
        self.total = sum(placed.tensor.nbytes for shard in shards for placed in shard.tensors)
        for shard in shards:
            self.output.begin()
            for piece in shard.header():
                self.output.write(piece)
            self.write_tensors(shard)
            self.output.end(shard.nbytes)

    def write_tensors(self, shard: Shard) -> None:
        in_flight: deque[tuple[_Chunk, Future[NDArray[np.uint8]]]] = deque()
        released = 0
        for chunk in self.chunks(shard):
            in_flight.append((chunk, self.pool.submit(self.convert, chunk)))
            if len(in_flight) >= self.window:
                released = self.finish(*in_flight.popleft(), released, shard.alignment)
        while in_flight:
            released = self.finish(*in_flight.popleft(), released, shard.alignment)

    def chunks(self, shard: Shard) -> Iterator[_Chunk]:
        for placed in shard.tensors:
            tensor = placed.tensor
            changes = placed.format.name != tensor.format
            values = self.imatrix.weights(tensor) if self.imatrix and changes else None
            refinement = self.refinement
            if refinement is not None and not (changes and refinement.applies(tensor, placed.format)):
                refinement = None
            size = max(_CHUNK, refinement.least(tensor)) if refinement else _CHUNK
            for matrix, parts in itertools.groupby(tensor.slices(size), key=lambda part: part[0]):
                weights = None if values is None else values[matrix]
                rows = [(start, stop) for _, start, stop in parts]
                metric = SharedMetric(refinement, tensor, matrix, len(rows)) if refinement else None
                for start, stop in rows:
                    yield _Chunk(placed, start, stop, weights, metric)

    def convert(self, chunk: _Chunk) -> NDArray[np.uint8]:
        """Return the chunk's bytes in its format, checked on both sides as llama-quantize does."""
        tensor, target = chunk.placed.tensor, chunk.placed.format
        source = self.model.format(tensor)
        raw = self.model.raw_rows(tensor, chunk.start, chunk.stop)
        # Ours for plain floats: ggml's prints to stderr
        sound = all_finite(raw, source.name) if source.name in ("f32", "f16", "bf16") else rows_are_valid(source, raw)
        if not sound:
            raise ModelError(
                f"{self.model.parts[tensor.part]}: {tensor.name} holds NaN or infinite values "
                f"(rows {chunk.start:,} to {chunk.stop - 1:,}).",
                "llama-quantize refuses such a model too: convert it again from its original, to BF16 or F32 if "
                "its weights exceed F16. `planner inspect` counts such values in each tensor.",
            )
        if source is target:
            return raw
        rows = self.model.rows(tensor, chunk.start, chunk.stop)
        try:
            out = quantize_rows(target, rows, chunk.weights)
        except KernelError as problem:
            raise ModelError(f"{tensor.name}: {problem.problem}", problem.remedy) from problem
        if not rows_are_valid(target, out):
            raise ModelError(
                f"{tensor.name}: weights too large for {target.name} (rows {chunk.start:,} to {chunk.stop - 1:,}).",
                "Give this tensor bf16 or f32.",
            )
        if chunk.metric is not None:
            out = refine_rows(target, rows, out, chunk.metric.get())
            chunk.metric.done()
        return out

    def finish(self, chunk: _Chunk, future: Future[NDArray[np.uint8]], released: int, alignment: int) -> int:
        """Write a converted chunk; return the first row of its tensor whose pages are not released yet."""
        tensor = chunk.placed.tensor
        data = future.result()
        self.output.write(data.data)
        if chunk.start == 0:
            released = 0
        is_last = chunk.stop == tensor.rows
        if is_last:
            size = chunk.placed.nbytes
            for piece in zeros(align(size, alignment) - size):
                self.output.write(piece)
        if is_last or (chunk.stop - released) * tensor.row_bytes >= _RELEASE:
            self.model.release(tensor, released, chunk.stop)
            released = chunk.stop
        self.done += (chunk.stop - chunk.start) * tensor.row_bytes
        if self.progress is not None:
            self.progress(Progress(tensor.name, self.done, self.total))
        return released
