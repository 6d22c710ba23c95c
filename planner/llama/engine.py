"""Run a model on windows of tokens, as llama-perplexity does.

    with Engine(path, context=512) as engine:
        tokens = engine.tokenize(text)
        for block in engine.windows(cut(tokens, 512), first=256): ...

Windows are run as `llama-perplexity` runs them (as many at a time as fit a batch of 2,048 tokens, the first token
replaced by BOS where the model wants one), so the same build gives the same logits. Longer windows go through batch by
batch, and so do their logits: there are never more than those of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.llama.graph import Observer
from planner.llama.loaded import BATCH, MOST_SEQUENCES, LoadedModel, Memory

__all__ = ["Block", "Engine", "cut"]

_LOGITS_BYTES = 512 << 20  # of one batch at most: with 262,144 words, a batch has 512 tokens


@dataclass(frozen=True, slots=True)
class Block:
    """Some of a window's logits, f32[n, vocabulary], n may be 0: from row `start` on, of those that were asked for.
    They are valid until the next block is asked for. The window's first `tokens` have been run by now."""

    window: int
    tokens: int
    start: int
    logits: NDArray[np.float32]

    @property
    def stop(self) -> int:
        """The row after the last."""
        return self.start + len(self.logits)


class Engine(LoadedModel):
    """A loaded model that runs windows of `context` tokens, each by itself; the rest is as in `LoadedModel`.

    Windows are run together, as many as fit a batch of at most `batch` tokens (None: 2,048), and at most
    `windows_at_a_time`. Batches are smaller where logits of all their tokens would take too much memory; not so without
    `logits`, for `read` alone.
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
        windows_at_a_time: int = MOST_SEQUENCES,
        predicts: bool = True,
        batch: int | None = None,
        logits: bool = True,
        heads: Observer | None = None,
    ) -> None:
        self.context, self._together, self._most, self._bounded = context, windows_at_a_time, batch or BATCH, logits
        super().__init__(
            path, self._memory_for, positions=context, threads=threads, gpu_layers=gpu_layers, observer=observer,
            writable=writable, predicts=predicts, heads=heads,
        )  # fmt: skip

    def _memory_for(self, vocabulary: int) -> Memory:
        batch = min(self._most, _most_tokens(vocabulary)) if self._bounded else self._most
        count = max(1, min(batch // self.context, self._together))
        return Memory(self.context * count, count, batch=batch)

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

    def windows(self, tokens: NDArray[np.int32], *, first: int) -> Iterator[Block]:
        """Run windows of tokens, i32[n, context], each by itself from an empty memory.

        Yields their logits that follow tokens from position `first` on, in order. Raises ValueError for windows of
        another length, and what `decode` raises.
        """
        wanted = np.arange(self.context) >= first
        for start, some in self._together_in(tokens):
            yield from self._run(some, wanted, start, self.batch_tokens)

    def read(self, tokens: NDArray[np.int32]) -> Iterator[int]:
        """Run windows as `windows` does, for the observer alone: every token goes through the whole model, and the
        logits that llama.cpp keeps are those of one graph, of 512 tokens.

        Yields how many windows are done. Raises as `windows`.
        """
        # llama.cpp runs what follows attention in the last block for requested tokens alone, so all are requested
        wanted = np.ones(self.context, np.bool_)
        for start, some in self._together_in(tokens):
            for _ in self._run(some, wanted, start, self.graph_tokens):
                pass
            yield start + len(some)

    def passage(self, tokens: NDArray[np.int32], wanted: NDArray[np.bool_], number: int = 0) -> Iterator[Block]:
        """Run one text of tokens, i32[n] of at most `context`, from an empty memory; it begins as it is given.

        Yields the logits that follow the tokens that are `wanted`, b[n], as those of window `number`. Raises as
        `decode`.
        """
        yield from self._run(tokens[None], wanted, number, self.batch_tokens)

    def _together_in(self, tokens: NDArray[np.int32]) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Yield the windows that are run together, i32[n, context], after the number of the first."""
        if tokens.ndim != 2 or tokens.shape[1] != self.context:
            raise ValueError(f"windows are i32[n, {self.context}], not {list(tokens.shape)}")
        for start in range(0, len(tokens), self.windows_at_a_time):
            some = np.array(tokens[start : start + self.windows_at_a_time], np.int32)
            if self.adds_bos:
                some[:, 0] = self.bos
            yield start, some

    def _run(self, texts: NDArray[np.int32], wanted: NDArray[np.bool_], number: int, batch: int) -> Iterator[Block]:
        """Run texts of one length, i32[n, length], as windows from `number` on, at most `batch` tokens at a time."""
        self.forget()
        count, length = texts.shape
        piece = batch // count
        row = 0
        for start in range(0, length, piece):
            some = slice(start, start + piece)
            positions = np.arange(length, dtype=np.int32)[some]
            logits = self.decode(
                texts[:, some].reshape(-1),
                np.tile(positions, count),
                np.repeat(np.arange(count, dtype=np.int32), len(positions)),
                np.tile(wanted[some], count),
            )
            rows = int(wanted[some].sum())
            for place, own in enumerate(logits.reshape(count, rows, self.vocabulary_size)):
                yield Block(number + place, start + len(positions), row, own)
            row += rows


def cut(tokens: NDArray[np.int32], context: int, windows: int | None = None) -> NDArray[np.int32]:
    """Cut tokens into windows, i32[n, context]: as many as are full, or the first `windows` of them."""
    count = len(tokens) // context
    if windows is not None:
        count = min(count, windows)
    return tokens[: count * context].reshape(count, context)


def _most_tokens(vocabulary: int) -> int:
    """Return how many tokens a batch may have, a power of two, so that logits of all of them fit our memory."""
    return 1 << max(1, _LOGITS_BYTES // (4 * vocabulary)).bit_length() - 1
