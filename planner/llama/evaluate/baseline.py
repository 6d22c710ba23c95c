"""The original's log-probabilities, computed once and kept on disk: llama-perplexity's `--kl-divergence-base` files.

The format is described in `logprobs`. A window's rows are read when they are asked for: memory is that of one window
(134 MB of a vocabulary of 262,144 words at a context of 512), however long the file is.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from planner.closing import Closing
from planner.errors import BaselineError, InferenceError
from planner.files import atomic_file
from planner.inputs.kinds import BASELINE_MAGIC
from planner.inputs.reading import open_regular
from planner.llama.engine import Engine
from planner.llama.evaluate import logprobs
from planner.text import command

__all__ = ["Baseline", "no_numbers", "record"]

_HEAD = len(BASELINE_MAGIC) + 12  # bytes before the tokens
_LEAST_CONTEXT = 3  # below it, no token is scored
_STEEPEST = 32 / 65535  # of a row: 16 nats over all steps, and room for rounding
_LOWEST = -200.0  # of a row: 16 nats and the logarithm of the vocabulary, and room for rounding
_ELEMENTS_AT_A_TIME = 1 << 22  # of logits, in each thread


class Baseline(Closing):
    """An open file of log-probabilities; a context manager.

    `tokens` are the windows, i32[windows, context]; `vocabulary` is how many words a row has.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the head. Raises BaselineError for a file that is something else, or damaged."""
        self.path, self._file = path, file
        head = file.read(_HEAD)
        if not head.startswith(BASELINE_MAGIC) or len(head) < _HEAD:
            raise BaselineError(
                f"{path} does not hold log-probabilities: it begins with {head[:8]!r}.",
                "Give a file of `planner evaluate` or `llama-perplexity --kl-divergence-base`.",
            )
        self.context, self.vocabulary, self.windows = np.frombuffer(head, "<i4", 3, len(BASELINE_MAGIC)).tolist()
        if self.context < _LEAST_CONTEXT or self.vocabulary < 1 or self.windows < 1:
            raise self._damaged(
                f"a context of {self.context} tokens, {self.vocabulary} words and {self.windows} windows make no sense"
            )
        scored = logprobs.scored(self.context)
        self.scored: int = scored.stop - scored.start  # rows of a window
        self._shape = self.scored, logprobs.row_width(self.vocabulary)
        self._first = _HEAD + 4 * self.windows * self.context
        expected = self._first + 2 * self.windows * self._shape[0] * self._shape[1]
        self.size = os.fstat(file.fileno()).st_size
        if self.size != expected:
            raise self._damaged(f"it has {self.size:,} bytes, and its head promises {expected:,}")
        tokens = np.frombuffer(file.read(4 * self.windows * self.context), "<i4")
        if tokens.size != self.windows * self.context or tokens.min() < 0 or tokens.max() >= self.vocabulary:
            raise self._damaged("it has tokens that are not in the vocabulary")
        self.tokens: NDArray[np.int32] = tokens.astype(np.int32).reshape(self.windows, self.context)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file. Raises BaselineError."""
        file = open_regular(path, BaselineError)
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file; a temporary one is gone with it."""
        self._file.close()

    def rows(self, number: int) -> NDArray[np.uint16]:
        """Read a window's rows, u16[scored, row_width(vocabulary)], for `logprobs.decode`. Raises BaselineError."""
        nbytes = 2 * self._shape[0] * self._shape[1]
        # read, not mapped: a file that another process truncates is then an error, and no SIGBUS
        self._file.seek(self._first + number * nbytes)
        data = self._file.read(nbytes)
        if len(data) != nbytes:
            raise self._damaged("it ends too early")
        rows = np.frombuffer(data, "<u2").reshape(self._shape)
        scale, least = np.ascontiguousarray(rows[:, :4]).view("<f4").T
        if not ((scale >= 0) & (scale <= _STEEPEST) & (least <= 0) & (least >= _LOWEST)).all():
            raise self._damaged(f"window {number} has rows that are no log-probabilities")
        return rows

    def targets(self, number: int) -> NDArray[np.int32]:
        """Return the tokens that a window's rows predict, i32[scored]."""
        scored = logprobs.scored(self.context)
        return self.tokens[number, scored.start + 1 : scored.stop + 1]

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
    scored = logprobs.scored(context)
    length, step = scored.stop - scored.start, max(1, _ELEMENTS_AT_A_TIME // engine.vocabulary_size)
    for number, logits in engine.windows(windows, first=scored.start):
        parts = [logits[start:length][:step] for start in range(0, length, step)]
        for rows in engine.workers.map(logprobs.encode, parts):
            if not np.isfinite(np.ascontiguousarray(rows[:, :4]).view(np.float32)).all():
                raise no_numbers(engine.path, f"window {number}")
            file.write(rows.data)
        if progress:
            progress((number + 1) * context, windows.size)
