"""A dialect is one module and one line: names, guessing, files and help follow from the registry."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import planner.cli.export
import planner.cli.importing
from planner.dialects import registry
from planner.dialects.exports import export_recipe
from planner.dialects.imports import guess_dialect, read_choices
from planner.dialects.registry import Entry, load_dialect
from planner.errors import RecipeError, UsageError
from planner.plan.assess import assess
from planner.recipe import load_recipe
from tests.dialects.inventories import inventory, random_formats
from tests.models import dense

ROOT = Path(__file__).parents[2]


@pytest.fixture
def line(monkeypatch):
    """Add a line to the registry; the commands, which name dialects in their help, are imported anew."""

    def add(entry):
        monkeypatch.setattr(registry, "DIALECTS", (*registry.DIALECTS, entry))
        for command in (planner.cli.export, planner.cli.importing):
            monkeypatch.delitem(sys.modules, command.__name__)

    return add


@pytest.fixture
def model(here):
    return dense().write(here / "model.gguf")


def test_a_new_dialect_is_a_module_and_a_line(line, model, here, run):
    line(Entry("pretend", "tests.dialects.pretend"))
    assert run("import", "ffn=q4_K,.*=q8_0", "--model", model).status == 0
    done = run("export", "recipe.json", "--to", "pretend")
    assert done.status == 0, done.text
    assert done.out == "pretend recipe.pretend\n"
    for extra in ((), ("--from", "pretend")):
        done = run("import", "recipe.pretend", "--model", model, "-o", "back.json", "-f", *extra)
        assert done.status == 0, done.text
        assert load_recipe(here / "back.json").formats == load_recipe(here / "recipe.json").formats
    assert "evopress, csv, pretend" in " ".join(run("import", "--help").out.split())
    assert "evopress, csv, pretend." in " ".join(run("export", "--help").out.split())
    (here / "x.txt").write_text("Dear reader\n")
    assert "csv, pretend" in run("import", "x.txt", "--model", model).err
    (here / "recipe.pretend").write_text("These are types:\noutput.weight q4_K\n")
    assert "no TENSOR -> TYPE" in run("import", "recipe.pretend", "--model", model, "-o", "x.json").err


def test_a_dialect_may_do_one_thing_only(line, model, here, run):
    line(Entry("pretend", "tests.dialects.pretend", reads=False))
    assert "pretend" in run("export", "--help").out
    assert "pretend" not in run("import", "--help").out
    assert run("import", "ffn=q4_K,.*=q8_0", "--model", model).status == 0
    assert run("export", "recipe.json", "--to", "pretend").status == 0
    assert "of no dialect" in run("import", "recipe.pretend", "--model", model, "-o", "x.json").err


def test_names_lead_to_dialects():
    dialects = {entry.name: (entry, load_dialect(entry.name)) for entry in registry.DIALECTS}
    assert len(dialects) == len(registry.DIALECTS)
    for entry, dialect in dialects.values():
        assert (dialect.write is not None, dialect.read is not None) == (entry.writes, entry.reads)
        assert bool(dialect.suffixes) == entry.writes
    suffixes = Counter(suffix for _, dialect in dialects.values() for suffix in dialect.suffixes)
    assert set(suffixes.values()) == {1}  # or one export would overwrite another's
    with pytest.raises(UsageError, match="no dialect 'nobody'") as caught:
        load_dialect("nobody")
    assert all(name in caught.value.remedy for name in dialects)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("entry", registry.DIALECTS, ids=lambda entry: entry.name)
def test_what_is_exported_is_told_by_its_text(entry, seed, tmp_path):
    recipe = assess(inventory("Qwen3.5-0.8B"), random_formats("Qwen3.5-0.8B", seed), None, why="solved").recipe
    for compact in (False, True):
        try:
            texts, _ = export_recipe(recipe, entry.name, tmp_path / "r.json", compact=compact)
        except RecipeError:
            assert compact
            continue
        text = next(iter(texts.values()))
        assert guess_dialect(Path("it.txt"), text) == entry.name
        assert read_choices(text, entry.name, list(recipe.formats), "qwen35", "it").formats


def test_the_page_names_every_dialect():
    page = (ROOT / "docs/dialects.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert sorted(table) == sorted(entry.name for entry in registry.DIALECTS)
