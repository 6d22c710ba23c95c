"""The page on architectures shows what comes out."""

from __future__ import annotations

import re

import pytest

from benchmarks.architectures import PAGE, draft_table, row_of
from tests.architectures import ARCHITECTURES

SHOWN = PAGE.read_text(encoding="utf-8")
ROWS = {found[1]: found[0] for found in re.finditer(r"^\| (\S+) \| .*$", SHOWN, re.MULTILINE)}


def without_kld(row: str) -> str:
    return row.rpartition("|")[0].rpartition("|")[0]


def test_every_architecture_has_a_row():
    assert len(ARCHITECTURES) > 20
    assert ARCHITECTURES.keys() <= ROWS.keys()


@pytest.mark.parametrize("architecture", ["gemma4", "qwen35", "t5"])
def test_rows_are_what_comes_out(architecture, tmp_path):
    """Of one with per-layer embeddings, one with a draft head, and one that llama.cpp does not run alone."""
    row = row_of(architecture, tmp_path)
    assert without_kld(str(row)) == without_kld(ROWS[architecture])
    assert (row.kld is None) == (architecture == "t5")
    assert row.kld is None or -1e-3 < row.kld < 1


def test_draft_heads_are_what_comes_out(tmp_path):
    assert draft_table(tmp_path) in SHOWN
