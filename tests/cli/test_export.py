"""`planner export`: files and commands."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf import read_imatrix


@pytest.fixture
def solved(cheap, here, run):
    assert run("solve", "--state", cheap, "--budget", "5MB").status == 0
    return here


def test_ik_llama_gets_the_same_imatrix_in_its_older_form(solved, run, example):
    done = run("export", "recipe.json", "--to", "ik_llama", "--compact")
    assert done.status == 0, done.text
    assert "recipe.imatrix.dat" in done.out
    ours, theirs = read_imatrix(example.sums), read_imatrix(solved / "recipe.imatrix.dat")
    assert theirs.legacy
    assert set(ours.entries) == set(theirs.entries)
    for name, entry in ours.entries.items():
        assert np.array_equal(entry.values.ravel(), theirs.entries[name].values.ravel())
    assert (theirs.chunk_count, theirs.datasets) == (ours.chunk_count, ours.datasets)


@pytest.mark.parametrize(
    ("dialect", "files"),
    [
        ("llama-quantize", ["it.x"]),
        ("ik_llama", ["it.imatrix.dat", "it.x"]),
        ("gguf-tool-suite", ["it.x"]),
        ("mlx-lm", ["it.mlx.py", "it.x"]),
        ("auto-round", ["it.x"]),
        ("evopress", ["it.x"]),
        ("rco", ["it.x"]),
        ("csv", ["it.x"]),
    ],
)
def test_files_are_called_after_the_output(dialect, files, solved, run):
    done = run("export", "recipe.json", "--to", dialect, "-o", "it.x")
    assert done.status == 0, done.text
    assert sorted(path.name for path in solved.glob("it.*")) == files
    for name in files:
        assert dialect == "auto-round" or name in done.out or name.endswith(".x")


def test_an_imatrix_that_is_gone_or_another(solved, run, example):
    text = (solved / "recipe.json").read_text()
    (solved / "gone.json").write_text(text.replace(str(example.sums), "gone.gguf"))
    assert run("export", "gone.json", "--to", "ik_llama").status == 1
    (solved / "other.json").write_text(text.replace(str(example.sums), str(example.plain)))
    other = run("export", "other.json", "--to", "ik_llama")
    assert other.status == 1
    assert "not the imatrix that the recipe was made with" in " ".join(other.err.split())
