"""Score a model on multiple-choice tasks by its most likely answers, as llama-perplexity does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError, option
from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.prompts import BRANCHES, Prompt, batches, run_prompts
from planner.llama.evaluate.taskfiles import Task

__all__ = ["Score", "branches_for", "run_tasks"]

_TRAILING = 3  # k_min_trailing_ctx: tokens after the choice that suffice to leave the choice itself out


@dataclass(frozen=True, slots=True)
class Score:
    """The tasks, b[n], that a model got right; by `chance` it gets about so many of 100. The longest text has `longest`
    tokens. Where answers have several `spellings`, those that it got right by each alone; and the `subjects` of tasks.
    """

    right: NDArray[np.bool_]
    chance: int
    longest: int = 0
    spellings: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    subjects: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        """Right answers of 100."""
        return float(100 * self.right.mean())

    @property
    def error(self) -> float:
        """Standard error of `percent`."""
        share, count = float(self.right.mean()), len(self.right)
        return float(100 * (share * (1 - share) / (count - 1)) ** 0.5) if count > 1 else 0.0

    @property
    def by_subject(self) -> dict[str, float]:
        """Right answers of 100, by subject."""
        own = np.array(self.subjects)
        return {name: float(100 * self.right[own == name].mean()) for name in dict.fromkeys(self.subjects)}

    def efficiency(self, nbytes: int) -> float:
        """Return (score − chance) / GB: the percentage beyond guessing, for a file of that size."""
        return (self.percent - self.chance) / (nbytes / 1e9)


def branches_for(tasks: Sequence[Task]) -> int:
    """Return how many sequences an engine for these tasks needs."""
    return max(BRANCHES, max(len(task.texts) for task in tasks))


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
    for some in batches(engine, prompts):
        for prompt, found in zip(some, run_prompts(engine, some), strict=True):
            means = [np.mean([found[pair] for pair in answer]) for answer in prompt.wanted]
            right.append(int(np.argmax(means)) == tasks[len(right)].right)
        if progress:
            progress(len(right), len(tasks))
    # four answers are the rule; where their number differs, too, four are reckoned with, as others do
    chance = 50 if all(len(task.texts) == 2 for task in tasks) else 25
    return Score(np.array(right), chance, max(len(each) for prompt in prompts for each in prompt.sequences))


def _prompt(engine: BranchedEngine, task: Task) -> Prompt:
    sequences = [engine.tokenize(text) for text in task.texts]
    shortest = min(map(len, sequences))
    alike = np.all([sequence[:shortest] == sequences[0][:shortest] for sequence in sequences], axis=0)
    prefix = int(alike.argmin()) if not alike.all() else shortest - 1  # of each, one token is left
    if prefix < 1:
        raise BaselineError(f"Answers have nothing in common: {task.texts[0][:60]!r}", "There should be a question.")
    if task.heads:
        return Prompt(sequences, prefix, _after_choice(engine, task, sequences, prefix))
    wanted, row = [], 1
    for sequence in sequences:
        rest = sequence[prefix:].tolist()
        wanted.append([(0, rest[0]), *((row + place, token) for place, token in enumerate(rest[1:]))])
        row += len(rest)
    return Prompt(sequences, prefix, wanted)


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
