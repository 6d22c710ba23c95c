"""Run a model on windows of tokens, as llama-perplexity does.

    with Engine(path, context=512) as engine:
        tokens = engine.tokenize(text)
        for number, logits in engine.windows(cut(tokens, 512), first=256): ...

Windows are run as `llama-perplexity` runs them (as many at a time as fit a batch of 2,048 tokens, the first token
replaced by BOS where the model wants one), so the same build gives the same logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.llama.graph import Observer
from planner.llama.loaded import BATCH, MOST_SEQUENCES, LoadedModel, Memory

__all__ = ["Engine", "cut"]

_LOGITS_BYTES = 512 << 20  # of one batch at most: vocabularies of 262,144 words are run window by window


class Engine(LoadedModel):
    """A loaded model that runs windows of `context` tokens, each by itself; the rest is as in `LoadedModel`.

    `windows_at_a_time` are run together, by default as many as fit a batch of at most `batch` tokens.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        observer: Observer | None = None,
        writable: bool = False,
        windows_at_a_time: int | None = None,
        predicts: bool = True,
        batch: int = BATCH,
        heads: Observer | None = None,
    ) -> None:
        self.context, self._together, self._most = context, windows_at_a_time, batch
        super().__init__(
            path, self._memory_for, positions=context, threads=threads, gpu_layers=gpu_layers, observer=observer,
            writable=writable, predicts=predicts, heads=heads,
        )  # fmt: skip

    def _memory_for(self, vocabulary: int) -> Memory:
        count = self._together or _most_windows(self.context, vocabulary)
        return Memory(self.context * count, count, batch=self._most)

    @property
    def windows_at_a_time(self) -> int:
        """Windows that are run together."""
        return self.memory.sequences

    def resize(self, context: int) -> None:
        """Make room for windows of another length; the weights stay as they are in memory. Raises InferenceError."""
        if context != self.context:
            self.context = context
            self.memory = self._memory_for(self.vocabulary_size)
            self._close_context()
            self._open_context()

    def windows(self, tokens: NDArray[np.int32], *, first: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Run windows of tokens, i32[n, context], each by itself from an empty memory.

        Yields each window's number and the logits, f32[context - first, vocabulary], that follow its tokens from
        position `first` on; they are valid until the next is asked for. Raises ValueError for windows of another
        length, and what `decode` raises.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.context:
            raise ValueError(f"windows are i32[n, {self.context}], not {list(tokens.shape)}")
        for start in range(0, len(tokens), self.windows_at_a_time):
            some = np.array(tokens[start : start + self.windows_at_a_time], np.int32)
            if self.adds_bos:
                some[:, 0] = self.bos
            logits = self._logits(some, first).reshape(len(some), self.context - first, self.vocabulary_size)
            yield from enumerate(logits, start=start)

    def passage(self, tokens: NDArray[np.int32], wanted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Run one text of tokens, i32[n] of at most `context`, from an empty memory; it begins as it is given.

        Returns the logits that follow the tokens that are `wanted`, b[n]: f32[wanted, vocabulary]. Raises as `decode`.
        """
        self.forget()
        parts = []
        for start in range(0, len(tokens), self.batch_tokens):
            some = slice(start, start + self.batch_tokens)
            positions = np.arange(start, start + len(tokens[some]), dtype=np.int32)
            parts.append(self.decode(tokens[some], positions, np.zeros(len(positions), np.int32), wanted[some]).copy())
        return np.concatenate(parts)

    def _logits(self, windows: NDArray[np.int32], first: int) -> NDArray[np.float32]:
        """Return the logits of some windows, f32[windows * (context - first), vocabulary]."""
        self.forget()
        piece = max(1, min(self.batch_tokens // len(windows), self.context))
        parts = []
        for start in range(0, self.context, piece):
            stop = min(start + piece, self.context)
            positions = np.arange(start, stop, dtype=np.int32)
            parts.append(
                self.decode(
                    windows[:, start:stop].reshape(-1),
                    np.tile(positions, len(windows)),
                    np.repeat(np.arange(len(windows), dtype=np.int32), stop - start),
                    np.tile(positions >= first, len(windows)),
                )
            )
            if stop < self.context:
                parts[-1] = parts[-1].copy()
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def cut(tokens: NDArray[np.int32], context: int, windows: int | None = None) -> NDArray[np.int32]:
    """Cut tokens into windows, i32[n, context]: as many as are full, or the first `windows` of them."""
    count = len(tokens) // context
    if windows is not None:
        count = min(count, windows)
    return tokens[: count * context].reshape(count, context)


def _most_windows(context: int, vocabulary: int) -> int:
    fits = _LOGITS_BYTES // (context * vocabulary * 4)
    return max(1, min(BATCH // context, fits, MOST_SEQUENCES))
