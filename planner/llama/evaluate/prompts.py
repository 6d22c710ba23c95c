"""Texts that begin alike, run together: the log-probabilities of the tokens that are wanted of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.baseline import no_numbers

__all__ = ["BRANCHES", "Prompt", "batches", "run_prompts"]

BRANCHES = 64
"""Sequences that are run together."""
_LOGITS_BYTES = 512 << 20  # of one batch


@dataclass(frozen=True)
class Prompt:
    """Texts as tokens that begin alike, and the predictions that are wanted.

    `wanted` are (row, token) for each text: row 0 is what follows the common beginning; then there is one row for
    each token of each text's rest.
    """

    sequences: list[NDArray[np.int32]]
    prefix: int
    wanted: list[list[tuple[int, int]]]

    @property
    def tokens(self) -> int:
        """Tokens that are run."""
        return self.prefix + sum(len(sequence) - self.prefix for sequence in self.sequences)

    @functools.cached_property
    def targets(self) -> dict[int, set[int]]:
        """Row → the tokens wanted of it."""
        found: dict[int, set[int]] = {}
        for row, token in itertools.chain.from_iterable(self.wanted):
            found.setdefault(row, set()).add(token)
        return found


def batches(engine: BranchedEngine, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
    """Yield as many prompts at a time as fit the memory, the sequences and the room for logits."""
    most = _LOGITS_BYTES // (4 * engine.vocabulary_size)
    some: list[Prompt] = []
    for prompt in prompts:
        together = [*some, prompt]
        if some and (
            sum(each.tokens for each in together) > engine.context
            or sum(len(each.sequences) for each in together) > engine.branches
            or sum(len(each.targets) for each in together) > most
        ):
            yield some
            together = [prompt]
        some = together
    if some:
        yield some


def run_prompts(engine: BranchedEngine, prompts: Sequence[Prompt]) -> list[dict[tuple[int, int], float]]:
    """Return the log-probabilities that are wanted of each prompt."""
    columns = _layout(prompts).T
    targets = iter([prompt.targets[row] for prompt in prompts for row in sorted(prompt.targets)])
    found: list[dict[int, float]] = []
    engine.forget()
    for start in range(0, columns.shape[1], engine.batch_tokens):
        tokens, positions, sequences, shared, outputs = columns[:, start : start + engine.batch_tokens]
        for logits in engine.decode(tokens, positions, sequences, outputs.astype(np.bool_), shared):
            top = logits.max()
            if not np.isfinite(top):  # then some logit is NaN or infinite, or none is more than minus infinity
                raise no_numbers(engine.path, "a task")
            total = top + np.log(np.exp(logits - top).sum(dtype=np.float64))
            found.append({token: float(logits[token] - total) for token in next(targets)})
    rows = iter(found)
    return [
        {(row, token): value for row in sorted(prompt.targets) for token, value in next(rows).items()}
        for prompt in prompts
    ]


def _layout(prompts: Sequence[Prompt]) -> NDArray[np.int32]:
    """Lay out a batch, i32[tokens, 5]: token, position, first sequence, sequences that share it, logits wanted."""
    lines: list[tuple[int, int, int, int, bool]] = []
    sequence = 0
    for prompt in prompts:
        row, last, shared = 0, prompt.prefix - 1, len(prompt.sequences)
        for place, token in enumerate(prompt.sequences[0][: prompt.prefix].tolist()):
            lines.append((token, place, sequence, shared, place == last and 0 in prompt.targets))
        for tokens in prompt.sequences:
            for place, token in enumerate(tokens[prompt.prefix :].tolist(), prompt.prefix):
                row += 1
                lines.append((token, place, sequence, 1, row in prompt.targets))
            sequence += 1
    return np.array(lines, np.int32)
