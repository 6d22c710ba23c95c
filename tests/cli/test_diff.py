"""`planner diff`: recipes and models of anybody, with losses where a state is there."""

from __future__ import annotations

import pytest

from planner.recipe import load_recipe


@pytest.fixture
def mixes(cheap, here, run):
    cheap.rename(here / "prose.planner")
    assert run("solve", "--budget", "5MB", "-o", "a.json").status == 0
    assert run("solve", "--budget", "4.5MB", "-o", "b.json").status == 0
    return here


def test_two_recipes(mixes, run):
    done = run("diff", "a.json", "b.json")
    assert done.status == 0, done.text
    a, b = (load_recipe(mixes / name) for name in ("a.json", "b.json"))
    other = sum(a.formats[name] != b.formats[name] for name in a.formats)
    assert f"{other} of {len(a.tensors)} tensors have another type" in done.out
    assert f"{a.size:,} bytes" in done.out
    assert f"loss {a.loss:.4g}" in done.out
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert "\x1b" not in done.out
    (mixes / "prose.planner").unlink()
    without = run("diff", "a.json", "b.json")
    assert without.status == 0
    assert "loss" not in without.out


def test_a_recipe_and_the_model_made_of_it(mixes, run, example):
    assert run("quantize", example.model, "a.json", "a.gguf").status == 0
    same = run("diff", "a.json", "a.gguf")
    assert same.status == 0, same.text
    assert "B is as large as A" in same.out
    assert "have the same types" in same.out
    source = run("diff", "a.gguf", example.model)
    assert source.status == 0
    assert "loss 0" in source.out


def test_what_cannot_be_compared(mixes, run):
    assert run("diff", "a.json", "none.json").status == 1
    assert run("diff", "a.json", mixes).status == 1
    assert run("diff", "a.json", "b.json", "--state", "none.planner").status == 1
    (mixes / "x.gguf").write_bytes(b"GGUF")
    assert run("diff", "a.json", "x.gguf").status == 1
