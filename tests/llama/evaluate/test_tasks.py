"""Tasks with answers to choose from: files, which are picked, and which answer is chosen."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import BaselineError, PlannerError
from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.taskfiles import READERS, Task, select
from planner.llama.evaluate.tasks import Score, branches_for, run_tasks
from tests.conftest import EXAMPLES

# std::mt19937 of seed 1 in a C++ program: std::uniform_int_distribution (GCC 13), and the product of floats
DISTRIBUTED = [417, 997, 719, 931, 0, 128, 302, 999, 147, 236, 92, 398]
SCALED = [417, 996, 718, 929, 0, 127, 300, 992, 145, 233, 91, 392]


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data


def multiple_choice(tasks: list[tuple[str, list[str], int]]) -> bytes:
    body, positions = b"", []
    for question, answers, right in tasks:
        positions.append(4 + 4 * len(tasks) + len(body))
        labels = [int(number == right) for number in range(len(answers))]
        listed = b"".join(map(text, answers))
        body += text(question) + struct.pack("<I", len(answers)) + listed + struct.pack(f"<{len(labels)}i", *labels)
        body += struct.pack("<I", 0)
    return struct.pack(f"<{1 + len(tasks)}I", len(tasks), *positions) + body


SENTENCES = [part.strip() for part in (EXAMPLES / "evaluation.txt").read_text().replace("\n", " ").split(".")]
WORDS = [part.split() for part in SENTENCES if 12 < len(part.split()) < 40 and '"' not in part]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Sentences to be ended: by their own end, or by another's; with a word, or another."""
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(0)
    choices, lines, table = [], [], []
    for number in range(24):
        words = WORDS[number]
        half, right = len(words) // 2, int(rng.integers(4))
        ends = [" ".join(WORDS[int(rng.integers(24, len(WORDS)))][-half:]) for _ in range(4)]
        ends[right] = " ".join(words[half:])
        choices.append((" ".join(words[:half]), ends[: max(right + 1, 2 + number % 3)], right))
        lines += [" ".join(words[:half]), str(right), *ends]
        hole, side = (len(words) - 1 - number % 8), number % 2
        pair = [words[hole], words[1]]
        sentence = " ".join([*words[:hole], "_", *words[hole + 1 :]]) + "."
        quote = '"' if "," in sentence else ""
        pair = [word.replace(",", "") for word in (pair[::-1] if side else pair)]
        table.append(f"{number},{quote}{sentence}{quote},{pair[0]},{pair[1]},{side + 1}")
    (folder / "choice.bin").write_bytes(multiple_choice(choices))
    (folder / "hella.txt").write_text("\n".join(lines) + "\n")
    (folder / "wino.csv").write_text("\n".join(table) + "\n")
    return {
        "multiple-choice": folder / "choice.bin",
        "hellaswag": folder / "hella.txt",
        "winogrande": folder / "wino.csv",
    }


def means_alone(engine: BranchedEngine, task: Task) -> list[float]:
    """Every answer run by itself from the beginning: no sharing, no batches."""
    sequences = [engine.tokenize(answer) for answer in task.texts]
    alike = 0
    while len({tuple(sequence[: alike + 1]) for sequence in sequences}) == 1:
        alike += 1
    skips = task.heads and all(len(sequence) - alike > 3 for sequence in sequences)
    means = []
    for number, tokens in enumerate(sequences):
        count = len(tokens)
        engine.forget()
        positions = np.arange(count, dtype=np.int32)
        logits = engine.decode(tokens, positions, np.zeros(count, np.int32), np.ones(count, np.bool_))
        logits = logits.astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        begin = len(engine.tokenize(task.heads[number])) if skips else alike
        end = count - 1 if task.heads and count - begin > 1 else count
        means.append(float(np.mean([log_p[place - 1, tokens[place]] for place in range(begin, end)])))
    return means


@pytest.mark.parametrize("kind", READERS)
def test_answers_are_those_of_each_run_alone(kind, files, example):
    tasks = READERS[kind](files[kind])
    if kind == "winogrande":  # where the choice itself counts, llama-perplexity's first row is another
        tasks = [task for task in tasks if not task.texts[0].endswith(task.heads[0][-4:])]
    with BranchedEngine(example.model, context=512, threads=2, branches=branches_for(tasks)) as engine:
        score = run_tasks(engine, tasks)
        clear = 0
        for task, right in zip(tasks, score.right, strict=True):
            means = means_alone(engine, task)
            first, second = sorted(means)[:-3:-1]
            short = task.heads and len({len(engine.tokenize(head)) for head in task.texts}) > 1
            if first - second > 0.05 and not short:
                clear += 1
                assert (int(np.argmax(means)) == task.right) == right
        assert clear >= len(tasks) // 2
    assert score.chance == (50 if kind == "winogrande" else 25)


def test_on_the_command_line(run, here, files, example):
    options = [item for kind, path in files.items() for item in (f"--{kind}", path)]
    result = run("evaluate", example.model, example.model, *options, "--tasks", 9, "-t", 2)
    assert result.status == 0, result.text
    assert result.out.count("score %, 9 tasks") == 3
    assert "(score − 50) / GB" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    assert list(here.iterdir()) == []
    long = run("evaluate", example.model, *options, "--ctx", 3)
    assert long.status == 1
    assert "Give --ctx" in long.err


def test_scores():
    score = Score(np.array([True, True, True, False]), 25)
    assert score.percent == 75
    assert score.error == pytest.approx(100 * (0.75 * 0.25 / 3) ** 0.5)
    assert score.efficiency(2_000_000_000) == 25
    assert Score(np.array([True]), 25).error == 0


def test_the_same_tasks_are_picked():
    tasks = [Task((str(number), ""), 0) for number in range(1000)]
    for kind, expected in (("hellaswag", DISTRIBUTED), ("winogrande", SCALED), ("multiple-choice", SCALED)):
        assert [int(task.texts[0]) for task in select(kind, tasks, 12)] == expected
        assert select(kind, tasks, None) == select(kind, tasks, 1000) == tasks


def test_what_the_formats_mean(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(multiple_choice([("Is it?", ["yes", "no", "ü"], 2)]))
    assert READERS["multiple-choice"](path) == [Task(("Is it? yes", "Is it? no", "Is it? ü"), 2)]
    path.write_text("Cook: He\n1\nstirs.\nflies.\nsleeps.\nbarks.\n")
    assert READERS["hellaswag"](path)[0].texts[1] == "Cook: He flies."
    path.write_text('7,"Ann, not Bo, knew _ was right, of course.",Ann,Bo,2\r\n8,So _ did.,she,he,1\n\n')
    one, two = READERS["winogrande"](path)
    assert one.heads == ("Ann, not Bo, knew Ann", "Ann, not Bo, knew Bo")
    assert one.texts[1] == "Ann, not Bo, knew Bo was right, of course."
    assert (one.right, two.right) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        ("hellaswag", b"", "1 lines"),
        ("hellaswag", b"a\n4\nb\nc\nd\ne\n", "line 2"),
        ("hellaswag", b"a\n1\nb\nc\nd\ne\nf\n", "7 lines"),
        ("winogrande", b"", "line 1"),
        ("winogrande", b"1,no hole,a,b,1\n", "line 1"),
        ("winogrande", b"1,a _ b,a,b,1\n2,a _ b,a,b,3\n", "line 2"),
        ("winogrande", b"1,a _ b\n", "line 1"),
        ("multiple-choice", b"", "ends too early"),
        ("multiple-choice", b"\xff\xff\xff\xff" * 9, "cannot hold"),
        ("multiple-choice", multiple_choice([("q", [], 0)]), "task 1"),
        ("multiple-choice", multiple_choice([("q", ["a", ""], 0)]), "task 1"),
        ("multiple-choice", multiple_choice([("q", ["a", "b"], 3)]), "task 1"),
        ("multiple-choice", multiple_choice([("q", ["a"] * 101, 3)]), "101 answers"),
        ("multiple-choice", multiple_choice([("q", ["ab"], 0)]).replace(b"ab", b"\xff\xfe"), "UTF-8"),
    ],
)
def test_files_that_are_wrong(kind, data, words, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(BaselineError, match=words):
        READERS[kind](path)


@pytest.mark.parametrize("kind", ["hellaswag", "winogrande"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_files_of_windows(kind, encoding, tmp_path):
    text = {"hellaswag": "Ä\n1\nb\nc\nd\ne\n", "winogrande": "1,Ä _ b,a,b,1\n2,a _ b,a,b,2\n"}[kind]
    (tmp_path / "plain").write_text(text, encoding="utf-8", newline="\n")
    (tmp_path / "windows").write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode(encoding))
    assert READERS[kind](tmp_path / "windows") == READERS[kind](tmp_path / "plain")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(READERS)), st.data())
def test_no_file_is_worse_than_an_error(tmp_path_factory, kind, data):
    good = multiple_choice([("q", ["a", "b"], 0), ("r", ["c", "d", "e"], 1)])
    start = data.draw(st.integers(0, len(good)))
    path = tmp_path_factory.mktemp("tasks") / "file"
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=40)))
    try:
        tasks = READERS[kind](path)
    except PlannerError:
        return
    assert all(task.right < len(task.texts) for task in tasks)
