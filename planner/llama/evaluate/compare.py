"""Compare a model's predictions with the baseline's, window by window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError
from planner.llama.engine import Engine
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
    parts, done = [], 0
    for number, logits in baseline.run(engine):
        part = compare(logits, baseline.rows(number), baseline.targets(number), engine.workers)
        if np.isnan(part.nll).any():
            raise no_numbers(engine.path, f"window {number}")
        parts.append(part)
        if progress:
            done += baseline.lengths[number]
            progress(done, baseline.tokens.size)
    return join(parts)


def base_nll(baseline: Baseline) -> NDArray[np.float32]:
    """Return the negative log-likelihood (nats) of every scored token by the original itself, f32[predictions].

    Raises BaselineError for a damaged file.
    """
    found = []
    for number in range(baseline.windows):
        rows, targets = baseline.rows(number), baseline.targets(number)
        scale, least = np.ascontiguousarray(rows[:, :4]).view(np.float32).T
        found.append(-(scale * rows[np.arange(len(rows)), 4 + targets] + least))
    return np.concatenate(found)
