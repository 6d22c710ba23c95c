"""The original's log-probabilities, computed once and kept on disk: llama-perplexity's `--kl-divergence-base` files.

The format is described in `logprobs`. Rows are written as their logits come, and read when they are asked for: memory
is that of a few, however long the file is, and its windows.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import BaselineError, InferenceError
from planner.files import atomic_file
from planner.inputs.kinds import BASELINE_MAGIC
from planner.inputs.reading import open_regular
from planner.llama.engine import Block, Engine
from planner.llama.evaluate import logprobs
from planner.text import command

__all__ = ["Baseline", "no_numbers", "record", "write_rows"]

_HEAD = len(BASELINE_MAGIC) + 12  # bytes before the tokens
_LEAST_CONTEXT = 3  # below it, no token is scored
_STEEPEST = 32 / 65535  # of a row: 16 nats over all steps, and room for rounding
_LOWEST = -200.0  # of a row: 16 nats and the logarithm of the vocabulary, and room for rounding


class Baseline(Closing):
    """An open file of log-probabilities; a context manager.

    `tokens` are the windows, i32[windows, context]; `vocabulary` is how many words a row has; `lengths` and
    `predictions` are how many tokens and how many rows every window has.
    """

    context: int
    vocabulary: int
    windows: int
    lengths: list[int]
    predictions: list[int]
    tokens: NDArray[np.int32]
    _first: int  # where rows begin, in bytes

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the head. Raises BaselineError for a file that is something else, or damaged."""
        self.path, self._file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self._read_head(file)
        self._ends = np.cumsum(self.predictions)

    def _read_head(self, file: BinaryIO) -> None:
        head = file.read(_HEAD)
        if not head.startswith(BASELINE_MAGIC) or len(head) < _HEAD:
            raise BaselineError(
                f"{self.path} does not hold log-probabilities: it begins with {head[:8]!r}.",
                "Give a file of `planner evaluate` or `llama-perplexity --kl-divergence-base`.",
            )
        self.context, self.vocabulary, self.windows = np.frombuffer(head, "<i4", 3, len(BASELINE_MAGIC)).tolist()
        if self.context < _LEAST_CONTEXT or self.vocabulary < 1 or self.windows < 1:
            raise self._damaged(
                f"a context of {self.context} tokens, {self.vocabulary} words and {self.windows} windows make no sense"
            )
        scored = logprobs.scored(self.context)
        self.scored: int = scored.stop - scored.start  # rows of a window
        self._first = _HEAD + 4 * self.windows * self.context
        self._check_size(self.windows * self.scored)
        self.lengths, self.predictions = [self.context] * self.windows, [self.scored] * self.windows
        self.tokens = self._read_tokens(file, self.windows * self.context).reshape(self.windows, self.context)

    def _check_size(self, rows: int) -> None:
        expected = self._first + 2 * rows * logprobs.row_width(self.vocabulary)
        if self.size != expected:
            raise self._damaged(f"it has {self.size:,} bytes, and its head promises {expected:,}")

    def _read_tokens(self, file: BinaryIO, count: int) -> NDArray[np.int32]:
        tokens = np.frombuffer(file.read(4 * count), "<i4")
        if tokens.size != count or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise self._damaged("it has tokens that are not in the vocabulary")
        return tokens.astype(np.int32)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file of windows. Raises BaselineError."""
        file = open_regular(path, BaselineError)
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file; a temporary one is gone with it."""
        self._file.close()

    def rows(self, number: int, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        """Read a window's rows, or those from `start` to `stop`, u16[rows, row_width(vocabulary)], for
        `logprobs.decode`. Raises BaselineError."""
        every, width = self.predictions[number], logprobs.row_width(self.vocabulary)
        count = (every if stop is None else stop) - start
        # read, not mapped: a file that another process truncates is then an error, and no SIGBUS
        self._file.seek(self._first + 2 * width * int(self._ends[number] - every + start))
        data = self._file.read(2 * width * count)
        if len(data) != 2 * width * count:
            raise self._damaged("it ends too early")
        rows = np.frombuffer(data, "<u2").reshape(count, width)
        scale, least = np.ascontiguousarray(rows[:, :4]).view("<f4").T
        if not ((scale >= 0) & (scale <= _STEEPEST) & (least <= 0) & (least >= _LOWEST)).all():
            raise self._damaged(f"window {number} has rows that are no log-probabilities")
        return rows

    def targets(self, number: int) -> NDArray[np.int32]:
        """Return the tokens that a window's rows predict, i32[predictions]."""
        scored = logprobs.scored(self.context)
        return self.tokens[number, scored.start + 1 : scored.stop + 1]

    def run(self, engine: Engine) -> Iterator[Block]:
        """Run a model on the windows, and yield the logits of their predictions in order. Raises what the engine
        raises."""
        yield from _scored(engine, self.tokens)

    def done(self, block: Block) -> int:
        """Return how many tokens were run up to the end of a block."""
        return sum(self.lengths[: block.window]) + block.tokens

    def prompts(self, count: int, room: int) -> list[NDArray[np.int32]]:
        """Return the beginnings of at most `count` windows, spread evenly: half a window, so that `room` tokens can
        follow, i32[n]."""
        length = min(self.context // 2, self.context - room)
        chosen = np.unique(np.linspace(0, self.windows, count, endpoint=False).astype(int))
        return [self.tokens[number, :length] for number in chosen] if length > 0 else []

    def _damaged(self, what: str) -> BaselineError:
        return BaselineError(f"{self.path} is damaged: {what}.", "Make it again: whatever wrote it may have stopped.")


def no_numbers(model: Path, where: str) -> InferenceError:
    """Return the error for a model whose logits are NaN or infinite. Minus infinity is allowed."""
    return InferenceError(
        f"{model}: what it predicts in {where} is not a number.",
        f"The file or its conversion is broken: `{command('planner', 'inspect', model)}` shows its weights.",
    )


def record(
    engine: Engine,
    windows: NDArray[np.int32],
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Baseline:
    """Run windows of tokens, i32[n, context], and keep the log-probabilities of every scored prediction.

    The file appears at `path` when it is complete; without one it is temporary, and goes when it is closed.
    `progress` is told how many tokens are done, of how many. Raises OutputError, and InferenceError for a model whose
    output is not a number.
    """
    if path is not None:
        with atomic_file(path) as file:
            _write(engine, windows, file, progress)
        return Baseline.open(path)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryFile(prefix="planner-"))
        _write(engine, windows, temporary, progress)
        temporary.seek(0)
        stack.pop_all()
        return Baseline(Path("(temporary)"), temporary)


def _write(
    engine: Engine, windows: NDArray[np.int32], file: BinaryIO, progress: Callable[[int, int], None] | None
) -> None:
    count, context = windows.shape
    file.write(BASELINE_MAGIC + np.array([context, engine.vocabulary_size, count], "<i4").tobytes())
    file.write(windows.astype("<i4").tobytes())
    for block in _scored(engine, windows):
        write_rows(engine, block.logits, file, f"window {block.window}")
        if progress:
            progress(block.window * context + block.tokens, windows.size)


def _scored(engine: Engine, windows: NDArray[np.int32]) -> Iterator[Block]:
    """Run windows of tokens, i32[n, context], and yield the logits of what is scored."""
    scored = logprobs.scored(windows.shape[1])
    for block in engine.windows(windows, first=scored.start):
        yield replace(block, logits=block.logits[: scored.stop - scored.start - block.start])


def write_rows(engine: Engine, logits: NDArray[np.float32], file: BinaryIO, where: str) -> None:
    """Write logits, f32[n, vocabulary], as rows. Raises InferenceError where they are not numbers."""

    def write(rows: NDArray[np.uint16]) -> None:
        if not np.isfinite(np.ascontiguousarray(rows[:, :4]).view(np.float32)).all():
            raise no_numbers(engine.path, where)
        file.write(rows.data)

    pieces = logprobs.pieces(*logits.shape)
    engine.workers.feed(logprobs.encode, (logits[piece] for piece in pieces), write)
