"""5-shot MMLU from plain CSV, as the authors of the test ask it (evaluate.py of github.com/hendrycks/test).

A folder has `dev/SUBJECT_dev.csv` with examples and `test/SUBJECT_test.csv` with questions; a line is a question, four
answers and the letter of the right one. A model answers with the most likely letter after `Answer:`. With the space
before it, a letter is another token than without; models differ in which they prefer, so both count, and the score of
each spelling alone is told, too.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.errors import BaselineError, option
from planner.inputs.reading import read_text
from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.prompts import BRANCHES, Prompt, batches, run_prompts
from planner.llama.evaluate.tasks import Score

__all__ = ["Question", "read_mmlu", "run_mmlu"]

_LETTERS = "ABCD"
_SHOTS = 5
_SPELLINGS = {"with space": " ", "without": ""}
_FORM = "A line is: question,answer A,answer B,answer C,answer D,letter."


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a subject, with the index of the right answer. `parts` are what the model reads: a heading, five
    examples with their answers, and the question."""

    subject: str
    parts: tuple[str, ...]
    right: int


def read_mmlu(folder: Path) -> list[Question]:
    """Read all questions, subject by subject in the order of the alphabet. Raises BaselineError."""
    tests = sorted((folder / "test").glob("*_test.csv"))
    if not tests:
        raise BaselineError(
            f"{folder} has no questions: no test/SUBJECT_test.csv.", "Give the folder that has dev and test in it."
        )
    return [question for test in tests for question in _subject(folder, test)]


def _subject(folder: Path, test: Path) -> Iterator[Question]:
    subject = test.name.removesuffix("_test.csv")
    # two spaces before the subject, as the authors have it, with which scores are compared
    heading = f"The following are multiple choice questions (with answers) about  {' '.join(subject.split('_'))}.\n\n"
    examples = [
        f"{_asked(row)} {row[-1]}\n\n" for row in itertools.islice(_rows(folder / "dev" / f"{subject}_dev.csv"), _SHOTS)
    ]
    for row in _rows(test):
        yield Question(subject, (heading, *examples, _asked(row)), _LETTERS.index(row[-1]))


def _asked(row: Sequence[str]) -> str:
    answers = "".join(f"\n{letter}. {answer}" for letter, answer in zip(_LETTERS, row[1:-1], strict=True))
    return f"{row[0]}{answers}\nAnswer:"


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, BaselineError), newline=""), strict=True))
    except csv.Error as error:
        raise BaselineError(f"{path} is no CSV: {error}.", _FORM) from error
    if rows and rows[0] and rows[0][-1].strip().lower() == "answer":
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        letter = row[-1].strip()
        if len(row) != len(_LETTERS) + 2 or letter not in [*_LETTERS]:
            raise BaselineError(f"{path}, row {number} is {','.join(row)[:60]!r}.", _FORM)
        yield [*row[:-1], letter]


def run_mmlu(
    engine: BranchedEngine, questions: Sequence[Question], progress: Callable[[int, int], None] | None = None
) -> Score:
    """Answer questions; those of a subject stand together. Examples are left out where they do not fit the engine's
    context, as the authors do.

    `progress` is told how many questions are done, of how many. Raises BaselineError for a question that does not fit
    alone, or a vocabulary without tokens for the letters; InferenceError for a model whose output is not a number.
    """
    tokens = _letters(engine)
    asked = [_tokenized(engine, question) for question in questions]
    prompts = [prompt for group in _groups(questions, asked) for prompt in _together(engine, group, tokens)]
    found: list[list[list[float]]] = []  # of each question: spelling, letter
    for some in batches(engine, prompts):
        for prompt, values in zip(some, run_prompts(engine, some), strict=True):
            for wanted in prompt.wanted:
                each = [values[pair] for pair in wanted]
                found.append([each[at : at + len(_LETTERS)] for at in range(0, len(each), len(_LETTERS))])
        if progress:
            progress(len(found), len(questions))
    spelt = np.array(found).transpose(1, 0, 2)  # spelling, question, letter
    right = np.array([question.right for question in questions])
    return Score(
        np.logaddexp.reduce(spelt, axis=0).argmax(axis=1) == right, 25, max(map(len, asked)),
        {name: values.argmax(axis=1) == right for name, values in zip(tokens, spelt, strict=True)},
        tuple(question.subject for question in questions),
    )  # fmt: skip


def _letters(engine: BranchedEngine) -> Mapping[str, list[int]]:
    """Return the tokens of the letters, in every spelling in which each is one token."""
    found = {}
    before = engine.tokenize("Answer:", special=False).tolist()
    for name, space in _SPELLINGS.items():
        texts = [engine.tokenize(f"Answer:{space}{letter}", special=False).tolist() for letter in _LETTERS]
        if all(text[:-1] == before for text in texts):
            found[name] = [text[-1] for text in texts]
    if not found:
        raise BaselineError(
            f"{engine.path} has no tokens that are the letters {', '.join(_LETTERS)}.",
            f"Its answers can be scored in whole: {option('multiple_choice')}.",
        )
    return found


def _tokenized(engine: BranchedEngine, question: Question) -> NDArray[np.int32]:
    heading, *examples, asked = question.parts
    for shots in range(len(examples), -1, -1):
        tokens = engine.tokenize("".join([heading, *examples[:shots], asked]))
        if len(tokens) <= engine.context:
            return tokens
    raise BaselineError(
        f"A question about {question.subject} has {len(tokens):,} tokens, and {engine.context:,} fit.",
        f"Give {option('ctx', -(-len(tokens) // 4))}: tasks have four times as much.",
    )


def _groups(questions: Sequence[Question], asked: Sequence[NDArray[np.int32]]) -> Iterator[list[NDArray[np.int32]]]:
    pairs = zip(questions, asked, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].subject):
        yield [tokens for _, tokens in group]


def _together(
    engine: BranchedEngine, sequences: Sequence[NDArray[np.int32]], tokens: Mapping[str, list[int]]
) -> Iterator[Prompt]:
    """Yield prompts of as many questions as fit: their examples are read once."""
    some: list[NDArray[np.int32]] = []
    prefix = 0
    for sequence in sequences:
        alike = _alike(sequence, some[0], prefix) if some else len(sequence) - 1
        size = alike + sum(len(each) - alike for each in [*some, sequence])
        if some and (size > engine.context or len(some) == min(BRANCHES, engine.branches)):
            yield _prompt(some, prefix, tokens)
            some, alike = [], len(sequence) - 1
        some, prefix = [*some, sequence], alike
    yield _prompt(some, prefix, tokens)


def _alike(tokens: NDArray[np.int32], others: NDArray[np.int32], most: int) -> int:
    """Return how many of the first tokens are those of others, at most `most`; of both, one is left."""
    length = min(len(tokens) - 1, len(others) - 1, most)
    differ = np.flatnonzero(tokens[:length] != others[:length])
    return int(differ[0]) if differ.size else length


def _prompt(sequences: list[NDArray[np.int32]], prefix: int, tokens: Mapping[str, list[int]]) -> Prompt:
    letters = list(itertools.chain.from_iterable(tokens.values()))
    last = np.cumsum([len(sequence) - prefix for sequence in sequences]).tolist()
    return Prompt(sequences, prefix, [[(row, token) for token in letters] for row in last])
