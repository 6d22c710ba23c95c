"""Read files of multiple-choice tasks in the formats of llama-perplexity.

- `--multiple-choice` (ARC, MMLU, TruthfulQA): binary. u32 number of tasks, u32[n] positions; then for each task the
  question and two lists of answers, of which the first has one right answer. A text is its u32 length and UTF-8; a list
  is u32 n, n texts, i32[n] labels, 1 for right.
- `--hellaswag`: six lines a task: the context, the number of the right ending from 0, four endings.
- `--winogrande`: CSV of number, sentence with a `_`, two choices for it, 1 or 2. (llama-perplexity does not see the
  last line, unless an empty one follows.)
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from planner.errors import BaselineError
from planner.inputs.reading import read_bytes, read_text

__all__ = ["READERS", "Kind", "Task", "select"]

Kind = Literal["multiple-choice", "hellaswag", "winogrande"]
T = TypeVar("T")
_ENDINGS = 4
_MOST_ANSWERS = 100  # as in llama-perplexity


@dataclass(frozen=True, slots=True)
class Task:
    """The whole text with each of the answers, and the index of the right one.

    `heads` are WinoGrande's: the sentences up to and with the choice.
    """

    texts: tuple[str, ...]
    right: int
    heads: tuple[str, ...] = ()


def _hellaswag(path: Path) -> list[Task]:
    lines = read_text(path, BaselineError).removesuffix("\n").split("\n")
    size = _ENDINGS + 2
    if len(lines) % size:
        raise _bad(path, f"has {len(lines)} lines, which is no multiple of {size}", "HellaSwag has six lines a task.")
    tasks = []
    for start in range(0, len(lines), size):
        context, label, *endings = lines[start : start + size]
        if label.strip() not in ("0", "1", "2", "3"):
            raise _bad(path, f"line {start + 2} is {label[:20]!r}", "It should be the right ending's number, 0 to 3.")
        tasks.append(Task(tuple(f"{context} {ending}" for ending in endings), int(label)))
    return tasks


def _winogrande(path: Path) -> list[Task]:
    tasks = []
    for number, line in enumerate(read_text(path, BaselineError).rstrip().split("\n"), 1):
        parts = _split(line)
        if parts is None or "_" not in parts[1] or parts[4].strip() not in ("1", "2"):
            raise _bad(path, f"line {number} is {line[:60]!r}", "A line is: number,sentence with a _,choice,choice,1.")
        before, _, after = parts[1].partition("_")
        heads = tuple(before + choice for choice in parts[2:4])
        tasks.append(Task(tuple(head + after for head in heads), int(parts[4]) - 1, heads))
    return tasks


def _split(line: str) -> list[str] | None:
    """Split a line into its five fields; only the sentence may be in quotes, and doubled ones are kept, as there."""
    quoted, commas = False, []
    for place, character in enumerate(line):
        if character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            commas.append(place)
    if len(commas) < 4:
        return None
    ends = [-1, *commas[:4], len(line)]
    fields = [line[begin + 1 : end] for begin, end in itertools.pairwise(ends)]
    if fields[1].startswith('"'):
        fields[1] = fields[1][1:-1]
    return fields


def _multiple_choice(path: Path) -> list[Task]:
    data = read_bytes(path, BaselineError)
    reader = _Reader(path, data)
    count = reader.number()
    if not 0 < count <= len(data) // 16:
        raise _bad(path, f"cannot hold {count:,} tasks", "Give a file for llama-perplexity --multiple-choice.")
    reader.take(4 * count)  # positions: the tasks follow one another
    return [reader.task(number) for number in range(1, count + 1)]


class _Reader:
    """Reads numbers and texts from bytes in turn. Raises BaselineError at the end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._at = path, data, 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise _bad(self._path, f"ends too early, at byte {len(self._data):,}", "It may not be complete.")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def text(self) -> str:
        begin = self._at
        try:
            return self.take(self.number()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _bad(self._path, f"has a text at byte {begin:,} that is not UTF-8", "It may be damaged.") from error

    def answers(self) -> tuple[list[str], list[int]]:
        count = self.number()
        if count > _MOST_ANSWERS:
            raise _bad(self._path, f"has a question with {count:,} answers", "It may be damaged.")
        texts = [self.text() for _ in range(count)]
        return texts, list(struct.unpack(f"<{count}i", self.take(4 * count)))

    def task(self, number: int) -> Task:
        question, (texts, labels), _ = self.text(), self.answers(), self.answers()
        if not question or not texts or not all(texts) or 1 not in labels:
            raise _bad(
                self._path, f"has no question, an empty answer or none that is right in task {number}",
                "It may be damaged.",
            )  # fmt: skip
        return Task(tuple(f"{question} {text}" for text in texts), labels.index(1))


def _bad(path: Path, what: str, remedy: str) -> BaselineError:
    return BaselineError(f"{path} {what}.", remedy)


READERS: Mapping[Kind, Callable[[Path], list[Task]]] = {
    "multiple-choice": _multiple_choice,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
}


def select(kind: Kind, tasks: Sequence[T], count: int | None) -> list[T]:
    """Draw `count` of the tasks at random, the same ones as llama-perplexity (built with GCC 11 or later)."""
    if count is None or count >= len(tasks):
        return list(tasks)
    generator, left, chosen = np.random.RandomState(1), list(tasks), []

    def draw() -> int:
        return int(generator.randint(0, 1 << 32, dtype=np.uint32))

    for _ in range(count):
        if kind == "hellaswag":
            # std::uniform_int_distribution of libstdc++ (Lemire, 2019): what is left keeps its order
            size = len(left)
            product = draw() * size
            while product % (1 << 32) < (-size % (1 << 32)) % size:
                product = draw() * size
            chosen.append(left.pop(product >> 32))
        else:
            place = int(np.float32(2**-32) * np.float32(draw()) * np.float32(len(left)))
            place = min(place, len(left) - 1)  # rounding
            chosen.append(left[place])
            left[place] = left[-1]
            left.pop()
    return chosen
