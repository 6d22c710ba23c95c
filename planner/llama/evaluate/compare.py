"""Compare a model's predictions with the baseline's, a few at a time as their logits come."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError
from planner.llama.engine import Block, Engine
from planner.llama.evaluate import logprobs
from planner.llama.evaluate.baseline import Baseline, no_numbers
from planner.llama.evaluate.divergence import Divergence, compare, join

__all__ = ["Progress", "base_nll", "diverge"]

Progress = Callable[[int, int], None]  # tokens done, of how many


def diverge(engine: Engine, baseline: Baseline, progress: Progress | None = None) -> Divergence:
    """Run the baseline's windows of tokens and compare every scored prediction, in order.

    The engine's context has to be the baseline's. Raises BaselineError where the vocabularies differ, and
    InferenceError for a model whose output is not a number.
    """
    if engine.vocabulary_size != baseline.vocabulary:
        raise BaselineError(
            f"{engine.path} has a vocabulary of {engine.vocabulary_size:,} words, and {baseline.path} is of a model "
            f"with {baseline.vocabulary:,}.",
            "Compare files of one model.",
        )
    parts: list[Divergence] = []
    for block in baseline.run(engine):
        found = engine.workers.map(lambda piece: compare(*piece), _pieces(block, baseline))
        if any(np.isnan(part.nll).any() for part in found):
            raise no_numbers(engine.path, f"window {block.window}")
        parts += found
        if progress:
            progress(baseline.done(block), baseline.tokens.size)
    return join(parts)


def _pieces(
    block: Block, baseline: Baseline
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint16], NDArray[np.int32]]]:
    """Yield what `compare` takes, for a few rows of a block at a time."""
    targets = baseline.targets(block.window)[block.start : block.stop]
    for piece in logprobs.pieces(len(block.logits), baseline.vocabulary):
        rows = baseline.rows(block.window, block.start + piece.start, block.start + piece.stop)
        yield block.logits[piece], rows, targets[piece]


def base_nll(baseline: Baseline) -> NDArray[np.float32]:
    """Return the negative log-likelihood (nats) of every scored token by the original itself, f32[predictions].

    Raises BaselineError for a damaged file.
    """
    found = []
    for number in range(baseline.windows):
        targets = baseline.targets(number)
        for piece in logprobs.pieces(len(targets), baseline.vocabulary):
            rows = baseline.rows(number, piece.start, piece.stop)
            scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
            found.append(-(scale * rows[np.arange(len(rows)), 4 + targets[piece]] + least))
    return np.concatenate(found)
