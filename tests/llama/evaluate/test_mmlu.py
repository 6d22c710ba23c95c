"""5-shot MMLU: the prompt that its authors ask, and every question run alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from planner.errors import BaselineError
from planner.llama.branches import BranchedEngine
from planner.llama.evaluate.mmlu import Question, read_mmlu, run_mmlu
from tests.conftest import ok

ROWS = {
    "high_school_x_dev.csv": [[f"Ex {number}?", "yes", "no", "per, haps", 'so "said"', "BCDAB"[number % 5]]
                              for number in range(6)],
    "high_school_x_test.csv": [["What\nis it?", "one", "two", "three", "four", "C"], *(
        [f"Which of {number} is it?", "red", "green", "blue", "white", "ABCD"[number % 4]] for number in range(5)
    )],
    "law_dev.csv": [["question", "A", "B", "C", "D", "answer"], ["Is it law?", "a", "b", "c", "d", "D"]],
    "law_test.csv": [["Who?", "he", "she", "it", "they", " A"]],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, rows in ROWS.items():
        path = tmp_path / "mmlu" / name.rsplit("_", 1)[1].removesuffix(".csv") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return tmp_path / "mmlu"


def asked_by_the_authors(rows: list[list[str]], question: list[str], subject: str, shots: int) -> str:
    """`gen_prompt` and `format_example` of hendrycks/test, evaluate.py."""

    def example(row: list[str], answered: bool) -> str:
        prompt = row[0]
        for number in range(len(row) - 2):
            prompt += "\n{}. {}".format(["A", "B", "C", "D"][number], row[number + 1])
        prompt += "\nAnswer:"
        return prompt + (f" {row[-1]}\n\n" if answered else "")

    words = "".join(" " + entry for entry in subject.split("_"))
    prompt = f"The following are multiple choice questions (with answers) about {words}.\n\n"
    return prompt + "".join(example(row, True) for row in rows[:shots]) + example(question, False)


def test_questions_are_asked_as_their_authors_ask_them(folder):
    questions = read_mmlu(folder)
    assert [question.subject for question in questions] == ["high_school_x"] * 6 + ["law"]
    for question, row in zip(questions, ROWS["high_school_x_test.csv"], strict=False):
        expected = asked_by_the_authors(ROWS["high_school_x_dev.csv"], row, "high_school_x", 5)
        assert "".join(question.parts) == expected
        assert "ABCD"[question.right] == row[-1]
    assert "".join(questions[-1].parts) == asked_by_the_authors(
        ROWS["law_dev.csv"][1:], ROWS["law_test.csv"][0], "law", 5
    )
    assert questions[-1].right == 0


def letters_alone(engine: BranchedEngine, question: Question, shots: int) -> dict[str, np.ndarray]:
    """Probabilities of the letters after a question that is run by itself."""
    tokens = engine.tokenize("".join([*question.parts[: 1 + shots], question.parts[-1]]))
    engine.forget()
    places = np.arange(len(tokens), dtype=np.int32)
    (row,) = engine.decode(tokens, places, np.zeros(len(tokens), np.int32), places == len(tokens) - 1)
    p = np.exp(row.astype(np.float64) - row.max())
    p /= p.sum()
    return {
        name: np.array([p[engine.tokenize(f"{space}{letter}", special=False)[-1]] for letter in "ABCD"])
        for name, space in (("with space", " "), ("without", ""))
    }


@pytest.mark.parametrize(("context", "shots"), [(420, 5), (100, 1)])
def test_answers_are_those_of_each_run_alone(folder, example, context, shots):
    questions = read_mmlu(folder)[:6]
    with BranchedEngine(example.model, context=context, branches=64, threads=2) as engine:
        whole = [
            [len(engine.tokenize("".join([*each.parts[: 1 + count], each.parts[-1]]))) for count in range(6)]
            for each in questions
        ]
        fit = [max(count for count in range(6) if lengths[count] <= context) for lengths in whole]
        assert max(fit) == shots, whole
        told: list[tuple[int, int]] = []
        score = run_mmlu(engine, questions, lambda done, of: told.append((done, of)))
        assert told[-1] == (6, 6)
        clear = 0
        for number, (question, count) in enumerate(zip(questions, fit, strict=True)):
            alone = letters_alone(engine, question, count)
            for right, p in (
                (score.right, alone["with space"] + alone["without"]),
                *((score.spellings[name], alone[name]) for name in alone),
            ):
                first, second = sorted(p)[:-3:-1]
                if first > 1.02 * second:
                    clear += 1
                    assert right[number] == (int(p.argmax()) == question.right)
        assert clear >= 9
        assert score.longest == max(lengths[count] for lengths, count in zip(whole, fit, strict=True))
    assert score.by_subject == {"high_school_x": pytest.approx(score.percent)}


def test_on_the_command_line(run, here, folder, example):
    result = ok(run("evaluate", example.model, example.model, "--mmlu", folder, "--tasks", 4, "-t", 2, "--ctx", 128))
    assert "mmlu" in result.out
    assert "(score − 25) / GB" in result.out
    assert "with space %  without %" in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    again = ok(run("evaluate", example.model, "--mmlu", folder, "--tasks", 4, "-t", 2, "--ctx", 128, "--json"))
    assert '"with space"' in again.out


def test_what_is_no_mmlu(folder, example, tmp_path):
    with pytest.raises(BaselineError, match=r"no test/SUBJECT_test\.csv"):
        read_mmlu(tmp_path)
    for text, words in (
        ("Who?,a,b,c,d,E\n", "row 1 is 'Who"), ("Who?,a,b,c,A\n", "row 1"), ('Who?,"a,b,c,d,A\n', "no CSV"),
    ):  # fmt: skip
        (folder / "test" / "law_test.csv").write_text(text)
        with pytest.raises(BaselineError, match=words):
            read_mmlu(folder)
    (folder / "dev" / "law_dev.csv").unlink()
    with pytest.raises(BaselineError, match=r"law_dev\.csv"):
        read_mmlu(folder)
    long = Question("law", ("heading ", "x " * 400), 0)
    with (
        BranchedEngine(example.model, context=64, branches=64, threads=1) as engine,
        pytest.raises(BaselineError, match="and 64 fit"),
    ):
        run_mmlu(engine, [long])
