from __future__ import annotations

import doctest

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from planner.report import columns
from planner.report.columns import percent, shown, table, wrapped

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


@given(st.integers(0, 10**12), st.integers(1, 10**12))
def test_a_share_is_whole_or_nothing_only_if_it_is(part: int, whole: int) -> None:
    part = min(part, whole)
    assert (percent(part, whole) == "0 %") == (part == 0)
    assert (percent(part, whole) == "100 %") == (part == whole)
