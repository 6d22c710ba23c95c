"""Write a model in the formats of a recipe: the bytes that llama-quantize writes, in bounded memory.

Rows go through in chunks of about a megabyte: mapped file → float32 → kernel → output, several chunks at a time and
written in order. Memory does not grow with the model or its largest tensor. Workers on other machines get many chunks
at a time and return their bytes, few beside what they are made from: so nothing but this process writes, and a worker
that is lost leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import RecipeError, UsageError, option
from planner.files import Output, begun, check_destinations
from planner.formats.ggml import Format, format_named
from planner.gguf.conversion import Chunk, Converter, chunks_of, together
from planner.gguf.imatrix import Imatrix
from planner.gguf.layout import Extra, Shard, arrange, imatrix_pairs, zeros
from planner.gguf.llama_cpp import requires_imatrix, why_left_alone
from planner.gguf.model import Model, split_path
from planner.gguf.reader import Tensor
from planner.gguf.refinement import Refinement
from planner.gguf.rounded import Rounded
from planner.sizes import align
from planner.work import Crew, Handed, Stop, open_crew

__all__ = ["Progress", "Written", "output_paths", "quantize_model", "resolve_formats"]

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
    scheduler: str | None = None,
    force: bool = False,
    keep_split: bool = False,
    max_shard_size: int | None = None,
    allow_requantize: bool = False,
    dropped: Collection[str] = (),
    ahead: Callable[[Rounded, Mapping[str, Format]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Written:
    """Write `model` to `out`, each tensor in its format; tensors not in `formats` stay as they are, and the draft heads
    `dropped` are left out.

    The file is the one that `llama-quantize --imatrix --tensor-type-file` writes for the same types, with the pairs
    `extra` added to the metadata; with a `refinement`, tensors that it applies to get other codes of the same size.
    `file_type` is `general.file_type` (llama_ftype). `keep_split` writes as many parts
    as the source has, `max_shard_size` (bytes of a file) as many as needed, named `OUT-00001-of-00003.gguf` after
    `out`. `ahead` may round tensors of those that change, before the file is begun; they are not rounded again. The
    workers of the Dask `scheduler` at an address convert the tensors that change, or `threads` here.

    Raises RecipeError for a format that a tensor cannot take (nothing is replaced silently), ImatrixError and
    CovarianceError for an imatrix and covariances of another model, ModelError for weights that are not finite or too
    large for their format, OutputError for files that cannot be written, ClusterError for machines that are of no use.
    Existing files stay until the output is complete. What is refined goes on where a run for the same file was stopped.
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
    # Refining takes long; what is rounded ahead would be lost, and the rest takes no longer than reading it back
    key = _key(model, shards, imatrix, refinement) if refinement is not None and ahead is None else None
    needed = total - begun(paths, key) if key else total
    check_destinations(paths, needed if ahead is None else 2 * total, inputs, force=force)
    with contextlib.ExitStack() as stack:
        rounded = None if ahead is None else stack.enter_context(Rounded(paths[0]))
        if ahead is not None and rounded is not None:
            ahead(rounded, chosen)
        crew = stack.enter_context(open_crew(threads, scheduler))
        output = stack.enter_context(Output(paths, force=force, key=key))
        _Run(model, imatrix, refinement, rounded, output, crew, progress).write(shards)
        output.commit()
    return Written(paths, total)


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


def _key(model: Model, shards: Sequence[Shard], imatrix: Imatrix | None, refinement: Refinement) -> str:
    """Return what refined files depend on, as far as it can be told without reading the model."""
    sources = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in model.parts]
    digest = hashlib.sha256(repr((sources, imatrix and imatrix.digest, refinement.key)).encode())
    for shard in shards:
        for piece in shard.header():
            digest.update(piece)
    return digest.hexdigest()[:16]


def output_paths(out: Path, shards: int, *, keep_split: bool = False) -> tuple[Path, ...]:
    """Return the names of the files: `out` itself, or llama.cpp's names of shards after it. As llama-quantize does,
    `keep_split` numbers even a single file."""
    if shards == 1 and not keep_split:
        return (out,)
    stem = out.with_name(out.name.removesuffix(".gguf"))
    return tuple(split_path(stem, index, shards) for index in range(shards))


class _Run:
    """One pass over all tensors."""

    def __init__(
        self,
        model: Model,
        imatrix: Imatrix | None,
        refinement: Refinement | None,
        rounded: Rounded | None,
        output: Output,
        crew: Crew,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.model = model
        self.imatrix = imatrix
        self.refinement = refinement
        self.rounded = rounded
        self.output = output
        self.crew = crew
        self.convert = Converter(model)
        self.progress = progress
        self.done = 0
        self.total = 0

    def write(self, shards: Sequence[Shard]) -> None:
        self.total = sum(placed.tensor.nbytes for shard in shards for placed in shard.tensors)
        for shard in shards:
            self.output.begin()
            place = shard.header_bytes
            if self.output.kept < place:
                self.output.cut(0)
                for piece in shard.header():
                    self.output.write(piece)
            self.write_tensors(shard, place)
            self.output.end(shard.nbytes)

    def write_tensors(self, shard: Shard, place: int) -> None:
        """Write tensors from that byte of the file on, but for what it keeps."""
        in_flight: deque[tuple[list[Chunk], Handed[NDArray[np.uint8]]]] = deque()
        released = 0
        for placed in shard.tensors:
            done = self.rounded is not None and placed.tensor.name in self.rounded
            near = done or placed.format.name == placed.tensor.format
            work = self.take if done else self.convert
            least, window = 1 if near else self.crew.least, self.crew.window
            for chunks in together(chunks_of(placed, self.imatrix, None if done else self.refinement), least):
                end = self.end_of(chunks, place, shard.alignment)
                if end <= self.output.kept:
                    self.advance(chunks)
                    place = end
                    continue
                if self.output.kept:
                    self.output.cut(place)
                place = end
                in_flight.append((chunks, self.crew.submit(work, chunks, near=near)))
                if len(in_flight) >= window:
                    released = self.finish(*in_flight.popleft(), released, shard.alignment)
        while in_flight:
            released = self.finish(*in_flight.popleft(), released, shard.alignment)

    def take(self, chunks: Sequence[Chunk], _stop: Stop) -> NDArray[np.uint8]:
        """Return the bytes of consecutive chunks of a tensor that is rounded already, u8[rows, row_bytes]."""
        assert self.rounded is not None
        return self.rounded.rows(chunks[0].placed.tensor.name, chunks[0].start, chunks[-1].stop)

    def finish(self, chunks: Sequence[Chunk], handed: Handed[NDArray[np.uint8]], released: int, alignment: int) -> int:
        """Write converted chunks; return the first row of their tensor whose pages are not released yet."""
        placed, start, stop = chunks[0].placed, chunks[0].start, chunks[-1].stop
        tensor = placed.tensor
        data = handed.result()
        self.output.write(data.data)
        if start == 0:
            released = 0
        is_last = stop == tensor.rows
        if is_last:
            for piece in zeros(align(placed.nbytes, alignment) - placed.nbytes):
                self.output.write(piece)
        if is_last or (stop - released) * tensor.row_bytes >= _RELEASE:
            self.model.release(tensor, released, stop)
            released = stop
        self.advance(chunks)
        return released

    @staticmethod
    def end_of(chunks: Sequence[Chunk], place: int, alignment: int) -> int:
        """Return where chunks end that begin at a place of the file, padding behind a tensor included."""
        placed, start, stop = chunks[0].placed, chunks[0].start, chunks[-1].stop
        row_bytes = placed.format.row_bytes(placed.tensor.row_length)
        end = place + (stop - start) * row_bytes
        return end + (align(placed.nbytes, alignment) - placed.nbytes if stop == placed.tensor.rows else 0)

    def advance(self, chunks: Sequence[Chunk]) -> None:
        """Tell of progress: these are in the file."""
        tensor = chunks[0].placed.tensor
        self.done += (chunks[-1].stop - chunks[0].start) * tensor.row_bytes
        if self.progress is not None:
            self.progress(Progress(tensor.name, self.done, self.total))
