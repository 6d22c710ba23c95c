"""Published tables: each figure is on the page that says where it is from, and what comes out fits a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.yardsticks import TABLES, Row, read_published, table
from planner.llama.evaluate.statistics import Estimate

PAGE = Path(__file__).parents[1] / "docs/yardsticks.md"
SHOWN = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [path.stem for path in TABLES.glob("*.csv")])
def test_tables_are_those_of_the_page(name):
    published = read_published(Path(name))
    assert published
    assert f"benchmarks.yardsticks {name} " in SHOWN
    for entry in published:
        assert f"{entry.kld:g}" in SHOWN
        assert entry.mix is None or entry.mix in entry.file
    assert sorted(published, key=lambda entry: -entry.bytes) == sorted(published, key=lambda entry: entry.kld)
    rows = [Row(entry, None, entry.bytes, Estimate(entry.kld / 2, 0.0)) for entry in published]
    lines = table(rows).splitlines()
    assert all(len(line) <= 80 and line.endswith(("share", "0.50")) for line in lines)
    assert len({len(line) for line in lines}) == 1


def test_shares_are_of_the_mix_made_again_where_there_is_one():
    (entry,) = read_published(Path("prose-8m"))
    assert Row(entry, Estimate(0.01, 0.0), 1, Estimate(0.004, 0.0)).share == pytest.approx(0.4)
