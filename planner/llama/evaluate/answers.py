"""The original's log-probabilities of answers in conversations: what `Baseline` is for windows of text.

A file is `_answer_`, then int32 context, vocabulary and passages; for each passage how many tokens and how many
predictions it has, i32[passages] twice; then all tokens, and all positions whose next token is predicted, i32; then
rows as in `logprobs`, one for each position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError
from planner.files import atomic_file
from planner.inputs.kinds import ANSWERS_MAGIC
from planner.inputs.reading import open_regular
from planner.llama.engine import Block, Engine
from planner.llama.evaluate.baseline import Baseline, write_rows

__all__ = ["Answers", "Passage", "open_baseline", "record_answers"]

_HEAD = len(ANSWERS_MAGIC) + 12


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, i32[n], of a conversation, and the positions, i32[m] ascending, whose next token is an answer's."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]


class Answers(Baseline):
    """An open file of log-probabilities of answers. A window is a passage, of at most `context` tokens; `tokens` are
    those of all passages, i32[n]."""

    def _read_head(self, file: BinaryIO) -> None:
        data = file.read(_HEAD)
        if len(data) < _HEAD:
            raise self._damaged("it ends too early")
        head = np.frombuffer(data, "<i4", 3, len(ANSWERS_MAGIC))
        if head.min() < 1:
            raise self._damaged(f"{head[2]} passages of {head[0]} tokens and {head[1]} words make no sense")
        self.context, self.vocabulary, self.windows = head.tolist()
        self._first = _HEAD + 8 * self.windows
        if self.size < self._first:
            raise self._damaged("it ends too early")
        counts = np.frombuffer(file.read(8 * self.windows), "<i4").astype(np.int64).reshape(2, self.windows)
        if (counts[1] < 1).any() or (counts[0] <= counts[1]).any() or (counts[0] > self.context).any():
            raise self._damaged("it has passages without tokens")
        tokens, rows = map(int, counts.sum(axis=1))
        self._first += 4 * (tokens + rows)
        self._check_size(rows)
        self.lengths, self.predictions = counts.tolist()
        self.tokens = self._read_tokens(file, tokens)
        positions = np.frombuffer(file.read(4 * rows), "<i4").astype(np.int32)
        self.passages = [
            Passage(*pair)
            for pair in zip(
                np.split(self.tokens, np.cumsum(counts[0])[:-1]),
                np.split(positions, np.cumsum(counts[1])[:-1]),
                strict=True,
            )
        ]
        for passage in self.passages:
            last = len(passage.tokens) - 1
            places = passage.positions.astype(np.int64)  # whose differences do not overflow
            if places.min() < 0 or places.max() >= last or (np.diff(places) < 1).any():
                raise self._damaged("it has predictions outside of its passages")

    def targets(self, number: int) -> NDArray[np.int32]:
        """Return the tokens that a passage's rows predict, i32[predictions]."""
        passage = self.passages[number]
        return passage.tokens[passage.positions + 1]

    def run(self, engine: Engine) -> Iterator[Block]:
        """Run a model on the passages, as `Baseline.run` does on windows."""
        yield from _run(engine, self.passages)

    def prompts(self, count: int, room: int) -> list[NDArray[np.int32]]:
        """Return what comes before answers, at most `count` of those after which there is room, spread evenly."""
        found = []
        for passage in self.passages:
            begins = passage.positions[np.diff(passage.positions, prepend=-2) > 1]
            found += [passage.tokens[: place + 1] for place in begins if place + 1 + room <= self.context]
        chosen = np.unique(np.linspace(0, len(found), count, endpoint=False).astype(int))
        return [found[number] for number in chosen] if found else []


def open_baseline(path: Path) -> Baseline:
    """Open a file of log-probabilities, of windows or of answers. Raises BaselineError."""
    with open_regular(path, BaselineError) as file:
        is_answers = file.read(len(ANSWERS_MAGIC)) == ANSWERS_MAGIC
    return Answers.open(path) if is_answers else Baseline.open(path)


def record_answers(
    engine: Engine,
    passages: Sequence[Passage],
    path: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Answers:
    """Run passages and keep the log-probabilities of every token of an answer, in a file that appears when it is
    complete.

    `progress` is told how many tokens are done, of how many. Raises OutputError, and InferenceError for a model whose
    output is not a number.
    """
    head = [engine.context, engine.vocabulary_size, len(passages)]
    parts = [
        np.array([*head, *(len(each.tokens) for each in passages), *(len(each.positions) for each in passages)]),
        *(each.tokens for each in passages), *(each.positions for each in passages),
    ]  # fmt: skip
    lengths = [len(each.tokens) for each in passages]
    with atomic_file(path) as file:
        file.write(ANSWERS_MAGIC + np.concatenate(parts).astype("<i4").tobytes())
        for block in _run(engine, passages):
            write_rows(engine, block.logits, file, f"passage {block.window}")
            if progress:
                progress(sum(lengths[: block.window]) + block.tokens, sum(lengths))
    return Answers.open(path)


def _run(engine: Engine, passages: Sequence[Passage]) -> Iterator[Block]:
    for number, passage in enumerate(passages):
        wanted = np.zeros(len(passage.tokens), np.bool_)
        wanted[passage.positions] = True
        yield from engine.passage(passage.tokens, wanted, number)
