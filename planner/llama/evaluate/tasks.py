"""Score a model on multiple-choice tasks by its most likely answers, as llama-perplexity does."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError, option
from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.baseline import no_numbers
from planner.llama.evaluate.taskfiles import Task

__all__ = ["Score", "branches_for", "run_tasks"]

_BRANCHES = 64  # sequences that are run together
_LOGITS_BYTES = 512 << 20  # of one batch
_TRAILING = 3  # k_min_trailing_ctx: tokens after the choice that suffice to leave the choice itself out


@dataclass(frozen=True, slots=True)
class Score:
    """The tasks, b[n], that a model got right; by `chance` it gets about so many of 100. The longest text has `longest`
    tokens."""

    right: NDArray[np.bool_]
    chance: int
    longest: int = 0

    @property
    def percent(self) -> float:
        """Right answers of 100."""
        return float(100 * self.right.mean())

    @property
    def error(self) -> float:
        """Standard error of `percent`."""
        share, count = float(self.right.mean()), len(self.right)
        return float(100 * (share * (1 - share) / (count - 1)) ** 0.5) if count > 1 else 0.0

    def efficiency(self, nbytes: int) -> float:
        """Return (score − chance) / GB: the percentage beyond guessing, for a file of that size."""
        return (self.percent - self.chance) / (nbytes / 1e9)


@dataclass(frozen=True)
class _Prompt:
    """Answers as tokens that begin alike, and the predictions that are wanted.

    `wanted` are (row, token) for each answer: row 0 is what follows the common beginning; then there is one row for
    each token of each answer's rest.
    """

    sequences: list[NDArray[np.int32]]
    prefix: int
    wanted: list[list[tuple[int, int]]]

    @property
    def tokens(self) -> int:
        return self.prefix + sum(len(sequence) - self.prefix for sequence in self.sequences)

    @functools.cached_property
    def targets(self) -> dict[int, set[int]]:
        """Row → the tokens wanted of it."""
        found: dict[int, set[int]] = {}
        for row, token in itertools.chain.from_iterable(self.wanted):
            found.setdefault(row, set()).add(token)
        return found


def branches_for(tasks: Sequence[Task]) -> int:
    """Return how many sequences an engine for these tasks needs."""
    return max(_BRANCHES, max(len(task.texts) for task in tasks))


def run_tasks(
    engine: BranchedEngine, tasks: Sequence[Task], progress: Callable[[int, int], None] | None = None
) -> Score:
    """Choose an answer for every task: the one whose tokens are the most likely in the mean, those that all answers
    begin with left out.

    The engine has to have `branches_for(tasks)`. `progress` is told how many tasks are done, of how many. Raises
    BaselineError for a task that does not fit the engine's context, InferenceError for a model whose output is not a
    number.
    """
    right: list[bool] = []
    prompts = [_prompt(engine, task) for task in tasks]
    for number, prompt in enumerate(prompts, 1):
        if prompt.tokens > engine.context:
            raise BaselineError(
                f"Task {number} has {prompt.tokens:,} tokens, and {engine.context:,} fit.",
                f"Give {option('ctx', -(-prompt.tokens // 4))}: tasks have four times as much.",
            )
    for some in _batches(engine, prompts):
        for prompt, found in zip(some, _run(engine, some), strict=True):
            means = [np.mean([found[pair] for pair in answer]) for answer in prompt.wanted]
            right.append(int(np.argmax(means)) == tasks[len(right)].right)
        if progress:
            progress(len(right), len(tasks))
    # four answers are the rule; where their number differs, too, four are reckoned with, as others do
    chance = 50 if all(len(task.texts) == 2 for task in tasks) else 25
    return Score(np.array(right), chance, max(len(each) for prompt in prompts for each in prompt.sequences))


def _prompt(engine: BranchedEngine, task: Task) -> _Prompt:
    sequences = [engine.tokenize(text) for text in task.texts]
    shortest = min(map(len, sequences))
    alike = np.all([sequence[:shortest] == sequences[0][:shortest] for sequence in sequences], axis=0)
    prefix = int(alike.argmin()) if not alike.all() else shortest - 1  # of each, one token is left
    if prefix < 1:
        raise BaselineError(f"Answers have nothing in common: {task.texts[0][:60]!r}", "There should be a question.")
    if task.heads:
        return _Prompt(sequences, prefix, _after_choice(engine, task, sequences, prefix))
    wanted, row = [], 1
    for sequence in sequences:
        rest = sequence[prefix:].tolist()
        wanted.append([(0, rest[0]), *((row + place, token) for place, token in enumerate(rest[1:]))])
        row += len(rest)
    return _Prompt(sequences, prefix, wanted)


def _after_choice(
    engine: BranchedEngine, task: Task, sequences: list[NDArray[np.int32]], prefix: int
) -> list[list[tuple[int, int]]]:
    """Return the predictions that score WinoGrande: of tokens after the choice, if there are enough, but the last."""
    skips = all(len(sequence) - prefix > _TRAILING for sequence in sequences)
    wanted, row = [], 0
    for head, sequence in zip(task.heads, sequences, strict=True):
        begin = len(engine.tokenize(head)) if skips else prefix
        begin = begin if prefix <= begin < len(sequence) else prefix
        end = len(sequence) - (1 if len(sequence) - begin > 1 else 0)
        # Where the choice is not left out, the second answer's first row should be 0. In llama-perplexity it is the
        # first answer's last (its FIXME says so), and scores are to be compared with its scores.
        wanted.append([(row + place - prefix, int(sequence[place])) for place in range(begin, end)])
        row += len(sequence) - prefix
    return wanted


def _batches(engine: BranchedEngine, prompts: Sequence[_Prompt]) -> Iterator[list[_Prompt]]:
    """Yield as many prompts at a time as fit the memory, the sequences and the room for logits."""
    most = _LOGITS_BYTES // (4 * engine.vocabulary_size)
    some: list[_Prompt] = []
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


def _run(engine: BranchedEngine, prompts: Sequence[_Prompt]) -> list[dict[tuple[int, int], float]]:
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


def _layout(prompts: Sequence[_Prompt]) -> NDArray[np.int32]:
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
