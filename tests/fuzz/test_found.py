"""What mutated files have found, the essence of each."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.models import dense, write_imatrix


@pytest.fixture
def model(here):
    model = dense(width=32, inner=64, vocabulary=32, blocks=1).write(here / "model.gguf")
    write_imatrix(model, here / "x.imatrix")
    return model


@pytest.fixture
def state(model, here, run):
    measured = run("measure", model, "--imatrix", "x.imatrix", "--types", "q8_0,q4_0", "-t", 1)
    assert measured.status == 0, measured.text
    return here / "model.planner"


def change(state: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(state)) as database, database:
        assert database.execute(statement).rowcount


@pytest.mark.parametrize("column", ["energies SET tensor", "tensor SET name"])
def test_facts_of_tensors_that_the_model_does_not_have(column, model, state, run):
    name = column.split()[-1]
    change(state, f"UPDATE {column} = 'blk.7.other.weight' WHERE {name} = 'blk.0.attn_v.weight'")
    for command in ("diff", model, model, "--state"), ("import", model, "-o", "new.json", "--state"):
        done = run(*command, state)
        assert done.status == 0, done.text
