"""Greedy trajectories: what a model says when it always takes the most likely token.

Two models take the same trajectory as long as each finds the same token most likely after the same beginning. So only
the original has to say its own token by token; another model reads it, all at once, and is asked at every token whether
it would have said that one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.llama.engine import Engine
from planner.llama.evaluate.baseline import no_numbers

__all__ = ["LENGTH", "Alike", "alike", "together", "trajectories"]

LENGTH = 32
"""Tokens of a trajectory; fewer where the model ends its answer before."""


@dataclass(frozen=True, slots=True)
class Alike:
    """Of n prompts, how many tokens a model says as the original does before the first that differs, and how many the
    original says: i32[n] each."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @property
    def same(self) -> NDArray[np.bool_]:
        """Whether a whole trajectory is the original's, b[n]."""
        return np.equal(self.tokens, self.lengths)

    @property
    def diverged(self) -> tuple[float, float]:
        """Return Divergence@32, the share of prompts after which a trajectory leaves the original's, and its standard
        error."""
        share, count = float(1 - self.same.mean()), len(self.tokens)
        return share, (share * (1 - share) / (count - 1)) ** 0.5 if count > 1 else 0.0


def together(parts: Sequence[Alike]) -> Alike:
    """Concatenate what was found for several texts."""
    return Alike(np.concatenate([each.tokens for each in parts]), np.concatenate([each.lengths for each in parts]))


def trajectories(
    engine: Engine, prompts: Sequence[NDArray[np.int32]], progress: Callable[[int, int], None] | None = None
) -> list[list[int]]:
    """Return what a model says after each prompt.

    The engine's context has to have room for prompt and trajectory. `progress` is told how many prompts are done, of
    how many. Raises InferenceError for a model whose output is not a number.
    """
    found: list[list[int]] = []
    together = engine.windows_at_a_time
    for start in range(0, len(prompts), together):
        found += _say(engine, prompts[start : start + together])
        if progress:
            progress(len(found), len(prompts))
    return found


def _say(engine: Engine, prompts: Sequence[NDArray[np.int32]]) -> list[list[int]]:
    """Say what follows some prompts, each in a sequence of the engine's."""
    engine.forget()
    said = [[_most_likely(engine, _read(engine, prompt, number))] for number, prompt in enumerate(prompts)]
    while going := [number for number, own in enumerate(said) if len(own) < LENGTH and not engine.ends(own[-1])]:
        rows = engine.decode(
            np.array([said[number][-1] for number in going], np.int32),
            np.array([len(prompts[number]) + len(said[number]) - 1 for number in going], np.int32),
            np.array(going, np.int32),
            np.ones(len(going), np.bool_),
        )
        for number, row in zip(going, rows, strict=True):
            said[number].append(_most_likely(engine, row))
    return said


def _read(engine: Engine, prompt: NDArray[np.int32], sequence: int) -> NDArray[np.float32]:
    """Read a prompt, and return the logits that follow it, f32[vocabulary]."""
    tokens = _begun(engine, prompt)
    places = np.arange(len(tokens), dtype=np.int32)
    logits: NDArray[np.float32] = np.empty((0, engine.vocabulary_size), np.float32)
    for start in range(0, len(tokens), engine.batch_tokens):
        some = places[start : start + engine.batch_tokens]
        logits = engine.decode(tokens[some], some, np.full(len(some), sequence, np.int32), some == len(tokens) - 1)
    return np.asarray(logits[0], np.float32)


def alike(
    engine: Engine,
    prompts: Sequence[NDArray[np.int32]],
    original: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
) -> Alike:
    """Compare what a model would say after each prompt with what the original said. As `trajectories`."""
    counts = []
    for number, (prompt, said) in enumerate(zip(prompts, original, strict=True), 1):
        tokens = np.concatenate([_begun(engine, prompt), np.array(said[:-1], np.int32)])
        blocks = engine.passage(tokens, np.arange(len(tokens)) >= len(prompt) - 1)
        answers = [_most_likely(engine, row) for block in blocks for row in block.logits]
        differ = [place for place, answer in enumerate(answers) if answer != said[place]]
        counts.append((differ[0] if differ else len(said), len(said)))
        if progress:
            progress(number, len(prompts))
    return Alike(*np.array(counts, np.int32).reshape(-1, 2).T)


def _begun(engine: Engine, prompt: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return a prompt that begins as the model wants it."""
    tokens = np.array(prompt, np.int32)
    if engine.adds_bos:
        tokens[0] = engine.bos
    return tokens


def _most_likely(engine: Engine, logits: NDArray[np.float32]) -> int:
    best = int(logits.argmax())
    if not np.isfinite(logits[best]):
        raise no_numbers(engine.path, "a trajectory")
    return best
