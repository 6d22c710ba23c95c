"""`planner compare`: many files of one model, ranked; results are kept, and only what is missing is evaluated."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

import planner
from planner.gguf import open_model, why_left_alone
from planner.gguf.quantize import quantize_model
from planner.llama.engine import Engine
from tests.conftest import EXAMPLES, ok

TEXT = EXAMPLES / "evaluation.txt"
FEW = ("--text", TEXT, "-c", 64, "--chunks", 16, "-t", 2)


@pytest.fixture
def files(example, here):
    """The example in q8_0, q4_0 and q2_K, and in a q4_0 whose output is q2_K: as large as it must be beaten."""
    with open_model(example.model) as model:
        names = [
            tensor.name for tensor in model.tensors
            if not why_left_alone(tensor.name, tensor.shape, model.architecture, tensor.format)
        ]  # fmt: skip
        for fmt in ("q8_0", "q4_0", "q2_K"):
            quantize_model(model, dict.fromkeys(names, fmt), None, here / f"{fmt}.gguf", file_type=2, threads=2)
        bad = dict.fromkeys(names, "q8_0") | {"output.weight": "q2_K"}
        quantize_model(model, bad, None, here / "bad.gguf", file_type=2, threads=2)
    return ["q8_0.gguf", "bad.gguf", "q4_0.gguf", "q2_K.gguf"]


@pytest.fixture
def runs(monkeypatch):
    """The files that llama.cpp has loaded, in order."""
    loaded, init = [], Engine.__init__

    def seen(self, path, **settings):
        loaded.append(path.name)
        init(self, path, **settings)

    monkeypatch.setattr(Engine, "__init__", seen)
    return loaded


def test_files_are_ranked(run, here, example, files):
    result = ok(run("compare", example.model, *files, *FEW))
    lines = result.out.splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ["q2_K.gguf", "q4_0.gguf", "bad.gguf", "q8_0.gguf"]
    assert [line.split("  ")[-1].strip() for line in lines[1:5]] == ["yes", "yes", "beaten by 2", "yes"]
    assert max(map(len, lines)) <= 80
    assert "16 windows of 64 tokens" in " ".join(result.out.split())


def test_the_figures_are_those_of_evaluate(run, here, example, files, cheap):
    ok(run("solve", "--state", cheap, "--bpw", "5"))
    quants = [*files, "recipe.json"]
    evaluated = json.loads(ok(run("evaluate", example.model, *quants, *FEW, "--json")).out)
    compared = json.loads(ok(run("compare", example.model, *quants, *FEW, "--json")).out)
    expected = {entry["path"]: entry for entry in evaluated["files"][1:]}
    assert len(compared["files"]) == len(expected)
    for entry in compared["files"]:
        standing = entry.pop("standing"), entry.pop("by")
        assert standing[0] in ("frontier", "tie", "beaten")
        assert entry == expected[entry["path"]]
    assert compared["original"]["ppl"] == evaluated["files"][0]["ppl"]
    rows = list(csv.DictReader(io.StringIO(ok(run("compare", example.model, *quants, *FEW, "--csv")).out)))
    assert [row["name"] for row in rows] == [entry["path"] for entry in compared["files"]]
    assert [float(row["kld"]) for row in rows] == [entry["kld"]["value"] for entry in compared["files"]]
    assert [row["in_memory"] for row in rows].count("True") == 1


def test_only_what_is_missing_is_evaluated(run, here, example, files, runs):
    ok(run("compare", example.model, *files[:2], *FEW))
    assert runs == [example.model.name, *files[:2]]
    runs.clear()
    more = ok(run("compare", example.model, *files, *FEW))
    assert runs == files[2:]
    assert "2 of 4 results are kept in compare.json." in more.err
    runs.clear()
    again = ok(run("compare", example.model, *files, *FEW))
    assert (runs, again.out, again.err) == ([], more.out, "")
    for name in files:
        Path(name).unlink()
    assert ok(run("compare", example.model, *FEW)).out == more.out  # what is gone stays in the table
    assert runs == []


def test_what_has_changed_is_evaluated_again(run, here, example, files, runs):
    ok(run("compare", example.model, *files, *FEW))
    runs.clear()
    Path("q4_0.gguf").rename("renamed.gguf")
    names = ["q8_0.gguf", "renamed.gguf"]
    renamed = ok(run("compare", example.model, *names, *FEW))
    assert runs == []
    assert "renamed.gguf" in renamed.out
    assert "q4_0.gguf" not in renamed.out
    os.utime("q8_0.gguf", ns=(1, 1))  # as if it had been made anew
    shutil.copy("q2_K.gguf", "renamed.gguf")
    ok(run("compare", example.model, *names, *FEW))
    assert sorted(runs) == sorted(names)
    runs.clear()
    other = ok(run("compare", example.model, "q8_0.gguf", *FEW[:-4], "--chunks", 8, "-t", 2))  # another comparison
    assert runs == [example.model.name, "q8_0.gguf"]
    assert "renamed.gguf" not in other.out


def test_stopped_it_goes_on(run, here, example, files, runs, monkeypatch):
    init = Engine.__init__

    def stopped(self, path, **settings):
        if path.name == files[2]:
            raise KeyboardInterrupt
        init(self, path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "__init__", stopped)
        result = run("compare", example.model, *files, *FEW)
    assert result.status == 130
    assert "kept in compare.json: the same command goes on" in " ".join(result.err.split())
    assert files[0] in result.out
    assert files[1] in result.out
    runs.clear()
    whole = ok(run("compare", example.model, *files, *FEW)).out
    assert runs == files[2:]
    assert ok(run("compare", example.model, *files, *FEW, "--results", "new.json")).out == whole


def test_log_probabilities_in_place_of_the_original(run, here, example, files):
    first = ok(run("compare", example.model, *files[:2], *FEW, "--json"))
    second = ok(run("compare", "prose-8m-f16.kld", *files[:2], "-t", 2, "--json"))
    assert json.loads(second.out)["files"] == json.loads(first.out)["files"]
    assert json.loads(second.out)["original"]["bytes"] is None
    assert "Original: prose-8m-f16.kld, PPL" in ok(run("compare", "prose-8m-f16.kld")).out


def test_what_cannot_be(run, here, example, files):
    ok(run("evaluate", example.model, *FEW, "--kl-divergence-base", "x.kld"))
    (here / "mine.json").write_text('{"precious": 1}')
    for status, arguments, words in (
        (2, (example.model, *files), "Give a text: --text FILE"),
        (2, (example.model, *FEW), "There is nothing to compare"),
        (2, (example.model, *files, *FEW, "--csv", "--json"), "exclude each other"),
        (2, ("x.kld", *files, *FEW), "--text goes with a model"),
        (1, (example.model, "none.gguf", *FEW), "none.gguf cannot be read"),
        (1, (example.model, *files, *FEW, "--results", "mine.json"), "mine.json is no file of results"),
        (1, (example.model, *files, *FEW, "--results", "x.kld"), "x.kld"),
    ):
        result = run("compare", *arguments)
        assert (result.status, words in " ".join(result.err.split())) == (status, True), (arguments, result.text)
    assert (here / "mine.json").read_text() == '{"precious": 1}'
    assert not (here / "compare.json").exists()


def test_recipes_of_a_program(example, cheap, here):
    with planner.open_state(cheap, read_only=True) as state:
        recipes = [state.solve(bpw=bpw).recipe for bpw in (4.5, 5)]
    options = {"text": TEXT, "ctx": 64, "chunks": 8, "threads": 2}
    both = planner.compare(example.model, *recipes, **options)
    assert [result.bytes for result in both.results] == [recipe.size for recipe in recipes]
    assert len(planner.compare(example.model, recipes[0], **options).results) == 2


def test_the_library(run, here, example, files):
    options = {"text": TEXT, "ctx": 64, "chunks": 16, "threads": 2}
    found = planner.compare(example.model, *files, **options)
    assert str(found) == ok(run("compare", example.model, *files, *FEW)).out.rstrip("\n")
    assert found.results[0].name == "q2_K.gguf"
    assert found.standings["bad.gguf"].by == "q4_0.gguf"
    found.save_page("page.html")
    ok(run("compare", example.model, *FEW, "--page", "same.html"))
    assert Path("page.html").read_bytes() == Path("same.html").read_bytes()
