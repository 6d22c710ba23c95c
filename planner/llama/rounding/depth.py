"""Round a model along its depth: every tensor for the inputs that the rounded ones before it make.

Block by block, a text goes through the block as it was and as it is being rounded (`block.py`): what the latter lacks
is then made up for (`planner/gguf/correction.py`). Only one block is in memory, and what the text is in front of it and
inside it. Rounded rows are kept on disk until the file is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import ModelError, UsageError, option
from planner.gguf import Model, open_model
from planner.gguf.correction import Moments
from planner.gguf.covariance import Input
from planner.gguf.rounded import Rounded
from planner.llama.collect.inputs import find_inputs
from planner.llama.engine import Engine, cut
from planner.llama.passes.weights import WEIGHTS_AT_A_TIME, Weights, open_weights
from planner.llama.rounding.block import ALONE, of_block, write_block
from planner.llama.rounding.rounder import DepthRequest, Rounder
from planner.llama.rounding.seen import TABLE, Seen, Seer, Whole, find_scale, find_writers
from planner.llama.text import read_text, window_length
from planner.llama.workers import Workers
from planner.memory import available_memory
from planner.sizes import format_size

__all__ = ["round_along_depth"]

Floats = NDArray[np.float32]
Progress = Callable[[str, int, int], None]  # the block, how many are done, of how many

_OUTPUT = "output.weight"
# What llama.cpp calls the stream behind the only block, and what the logits are made of
_STREAM, _NORM = "l_out-0", "result_norm"
_CLOSE = 1e-3  # of the energy of a stream: how far blocks by themselves may be from the whole model


@dataclass(frozen=True)
class _Streams:
    """What tokens are in front of a block, in the model as it was and as it is rounded, f32[tokens, n]."""

    original: Floats
    rounded: Floats


def round_along_depth(request: DepthRequest, rounded: Rounded, progress: Progress) -> None:
    """Round those tensors that can be, and put them into `rounded`.

    Raises UsageError for texts that are too short or too long for memory, ModelError for weights that a format cannot
    hold and for blocks that llama.cpp does not run by themselves as it runs them in the model, OutputError, and what
    the engine raises.
    """
    model = request.model
    if model.architecture not in ALONE:
        raise _unknown(model)
    windows, first = _read(request)
    streams = _embedded(request, windows)
    rounder = Rounder(request, rounded)
    with tempfile.TemporaryDirectory(prefix="planner-") as folder:
        for number in range(len(first)):
            progress(f"block {number}", number, len(first))
            block = _Block(rounder, number, windows.shape, Path(folder, "block.gguf"), last=number == len(first) - 1)
            streams = block.run(streams)
            _check_close(model, number, streams.original[: len(first[number])], first[number])
    progress("blocks", len(first), len(first))


def _read(request: DepthRequest) -> tuple[NDArray[np.int32], list[Floats]]:
    """Return the texts as windows of tokens, i32[n, context], and the stream behind each block in the first window (as
    far as one graph goes), f32[tokens, n]."""
    model, context = request.model, window_length(request.model)
    behind = [f"l_out-{number}" for number in range(model.parameter("block_count") or 0)]
    graphs: list[Seen] = []
    seer = Seer(graphs.append, results=behind)
    with Engine(model.path, context=context, threads=request.threads, observer=seer, windows_at_a_time=1) as engine:
        windows = _windows(engine, request)
        for _ in engine.read(windows[:1]):
            pass
    if not graphs:
        raise _unknown(model)
    return windows, [graphs[0].results[name] for name in behind]


def _windows(engine: Engine, request: DepthRequest) -> NDArray[np.int32]:
    """Return the texts as windows of tokens, i32[n, context]. Raises UsageError for one that is too short."""
    found = []
    for path in request.texts:
        tokens = engine.tokenize(read_text(path))
        found.append(cut(tokens, engine.context, request.chunks))
        if not len(found[-1]):
            raise UsageError(
                f"{path} is too short: {len(tokens):,} tokens, and {engine.context:,} are needed.",
                "Give a longer text.",
            )
    windows = np.concatenate(found)
    if engine.adds_bos:
        windows[:, 0] = engine.bos
    return windows


def _embedded(request: DepthRequest, windows: NDArray[np.int32]) -> _Streams:
    """Return the stream in front of the first block."""
    table = request.model[TABLE]
    words, places = np.unique(windows, return_inverse=True)
    rows, places = request.model.chosen_rows(table, words.astype(np.int64)), places.reshape(-1)
    return _Streams(rows[places], request.left_of(table)(rows, 0)[places])


def _check_close(model: Model, block: int, alone: Floats, whole: Floats) -> None:
    """Raise ModelError unless a block by itself makes of a window what it makes in the whole model."""
    off = np.square(alone - whole, dtype=np.float64).sum() / np.square(whole, dtype=np.float64).sum()
    if not off < _CLOSE:
        raise _unknown(model, f" (block {block} is off by {off:.2g} of the stream's energy)")


def _unknown(model: Model, how: str = "") -> ModelError:
    return ModelError(
        f"{model.path} cannot be refined block by block: llama.cpp is not known to run single blocks of the "
        f"architecture {model.architecture} as in the whole model{how}.",
        f"Refine it all at once, with {option('covariance')} in place of {option('text')}.",
    )


class _Block:
    """A block, by itself; the `last` one makes what the logits are made of too."""

    def __init__(self, rounder: Rounder, number: int, shape: tuple[int, ...], path: Path, *, last: bool) -> None:
        self.rounder, self.number, self.path, self.last = rounder, number, path, last
        self.model, self.names = rounder.request.model, of_block(rounder.request.model, number)
        self.places = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape[0], shape[1])
        write_block(self.model, number, self.places.size, path)

    def run(self, streams: _Streams) -> _Streams:
        """Round the block's tensors; return the streams behind it."""
        context, threads = self.places.shape[1], self.rounder.request.threads
        with (
            open_model(self.path) as file,
            open_weights(self.path, file, context=context, threads=threads, gpu_layers=0) as weights,
        ):
            self.path.unlink()
            engine = weights.engine
            engine.observer = Seer(_nothing)
            parts = [part for part in find_inputs(engine, file) if self._chosen(part)]
            found = find_writers(engine)
            writers = {name: found[name] for part in parts for name in self._chosen(part) if name in found}
            self._check_memory(parts, writers)
            results = (_STREAM, _NORM) if self.last and self.rounder.chosen(_OUTPUT) else (_STREAM,)
            before, after = Whole(self.places.size), Whole(self.places.size)
            weights.write(TABLE, 0, streams.original)
            scale = 1.0
            if self.number:  # the first block's stream is still to be multiplied
                scale = find_scale(engine, streams.original[0])
                weights.write(TABLE, 0, streams.original / np.float32(scale))
            self._go(engine, Seer(before.take, [part.name for part in parts], writers, results))
            weights.write(TABLE, 0, streams.rounded / np.float32(scale))
            self._round_others(weights, {name for part in parts for name in self._chosen(part)})
            for part in parts:
                own = {name: writers[name] for name in self._chosen(part) if name in writers}
                moments = self._moments(engine, part, own, before)
                del before.inputs[part.name]
                self._round(weights, part, moments)
            self._go(engine, Seer(after.take, results=results))
            if _NORM in results:
                self._round_output(engine.workers, before.results[_NORM], after.results[_NORM])
        return _Streams(before.results[_STREAM], after.results[_STREAM])

    def _chosen(self, part: Input) -> list[str]:
        """Return the tensors of an input, by their names in the block's file, that are rounded along the depth."""
        if part.matrices != 1:
            return []
        return [own for own in part.tensors if own in self.names and self.rounder.chosen(self.names[own])]

    def _check_memory(self, parts: list[Input], writers: Mapping[str, int]) -> None:
        """Raise UsageError where what is kept of the text does not fit memory."""
        channels = sum(part.width for part in parts) + sum(writers.values()) + 4 * self.model[TABLE].row_length
        sums = max((Moments.nbytes(part.width, writers) for part in parts), default=0)
        needed = 4 * channels * self.places.size + sums
        free = available_memory()
        if free is not None and needed > free:
            raise UsageError(
                f"{self.places.size:,} tokens take {format_size(needed, up=True)} of memory inside a block, and there "
                f"are {format_size(free)}.",
                f"Read less of the texts, with {option('chunks')}.",
            )

    def _round_others(self, weights: Weights, chosen: Collection[str]) -> None:
        """Leave in the engine's memory what will be left of tensors that are not rounded along the depth."""
        for own, name in self.names.items():
            if own in weights.weights and own not in chosen and name in self.rounder.request.formats:
                tensor = self.model[name]
                left = self.rounder.request.left_of(tensor)
                for matrix, start, stop in tensor.slices(WEIGHTS_AT_A_TIME):
                    weights.write(own, start, left(self.model.rows(tensor, start, stop), matrix))

    def _go(self, engine: Engine, observer: Seer) -> None:
        engine.observer = observer
        for _ in engine.read(self.places):
            pass
        engine.observer = None

    def _moments(self, engine: Engine, part: Input, writers: Mapping[str, int], before: Whole) -> Moments:
        """Return the moments of an input, after the text has gone through what is rounded of the block."""
        moments = Moments(part.width, writers)

        def add(seen: Seen) -> None:
            words, rows = seen.words, seen.inputs[part.name]
            lacking = {name: before.streams[name][words] - seen.streams[name] for name in writers}
            work = moments.additions(rows, before.inputs[part.name][words] - rows, lacking)
            engine.workers.map(lambda one: one(), work)

        self._go(engine, Seer(add, [part.name], writers))
        return moments

    def _round(self, weights: Weights, part: Input, moments: Moments) -> None:
        """Round the tensors that read an input, in the engine's memory too."""
        fit = self.rounder.fit(moments, self.names[part.name])
        for own in self._chosen(part):

            def write(start: int, rows: Floats, own: str = own) -> None:
                weights.write(own, start, rows)

            self.rounder.round(self.names[own], own, fit, weights.engine.workers, write)

    def _round_output(self, workers: Workers, before: Floats, after: Floats) -> None:
        """Round what makes the logits."""
        moments = Moments(before.shape[1], {})
        workers.map(lambda one: one(), moments.additions(after, before - after, {}))
        self.rounder.round(_OUTPUT, _OUTPUT, self.rounder.fit(moments, _OUTPUT), workers, lambda start, rows: None)


def _nothing(_seen: Seen) -> None:
    """Take nothing: an engine has an observer from the beginning, or never."""
