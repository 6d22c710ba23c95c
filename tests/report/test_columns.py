from __future__ import annotations

import doctest

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from planner.report import columns
from planner.report.columns import Column, beside, percent, shown, table, tabulate, wrapped

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def test_the_examples_in_the_docstrings() -> None:
    result = doctest.testmod(columns)
    assert result.attempted >= 3
    assert result.failed == 0


@given(st.text(st.characters(), max_size=200), st.integers(2, 80))
@example("\u0301" * 5000, 10)
@example("\u0301" * 300, 10)
def test_shown_text_is_printable_and_fits(text: str, width: int) -> None:
    safe = shown(text, width)
    assert safe.isprintable()
    assert cell_len(safe) <= width
    assert len(safe) <= 4 * width + 1


@given(WORDS.map(shown), st.integers(4, 80))
def test_wrapping_loses_no_character(text: str, width: int) -> None:
    lines = wrapped(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(cell_len(line) <= width for line in lines)


@given(st.lists(st.tuples(WORDS.map(shown), st.integers(0, 2**63).map(str), WORDS.map(shown)), min_size=1, max_size=8))
def test_tables_keep_to_80_columns(rows: list[tuple[str, str, str]]) -> None:
    lines = table(rows, "<><")
    assert len(lines) >= len(rows)
    assert all(cell_len(line) <= 80 for line in lines)


def test_a_column_is_a_heading_and_a_cell():
    columns = (Column[str]("word", str, "<"), Column[str]("n", lambda word: str(len(word))))
    assert tabulate(columns, ["a", "seven"]) == ["word   n", "a      1", "seven  5"]
    assert tabulate([*columns, Column[str]("upper", str.upper, "<")], ["a"]) == ["word  n  upper", "a     1  A"]


def test_cells_of_several_lines_stand_beside_each_other():
    lines = beside([["role"], ["q4_K*3", "q6_K"], ["1"]], [6, 7, 4], "<<>", " ")
    assert lines == ["role   q4_K*3     1", "       q6_K"]


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_share_is_whole_or_nothing_only_if_it_is(part: int, whole: int) -> None:
    part = min(part, whole)
    assert (percent(part, whole) == "0 %") == (part == 0)
    assert (percent(part, whole) == "100 %") == (part == whole)
