"""A new type of ggml is one row of the table: a pretend one, put there and into the library, is everywhere at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planner.formats.ggml import FORMAT_SETS, TYPES, formats, type_of

ROW = """    Type(
        "q9_X", 1000, ("all", "k"), ("ik_llama", "gguf-tool-suite"), groups=16, lattice=(4, 99), imatrix=True,
        fallback="q4_0", evopress="9.25", auto_round="GGUF:Q9_X",
    ),
"""
# A process with that row in the source of the table, and a library whose type 60 is q3_K under another name
PRELUDE = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.find_spec("planner.formats")
path = Path(spec.submodule_search_locations[0]) / "ggml" / "types.py"
text = path.read_text(encoding="utf-8")
assert text.count("_ROWS = (\\n") == 1
spec = importlib.util.spec_from_file_location("planner.formats.ggml.types", path)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(text.replace("_ROWS = (\\n", "_ROWS = (\\n" + ROW), str(path), "exec"), module.__dict__)

from planner.formats.ggml import library

names, own, built = library.type_names, library.load(), []
traits, quantize = own.type_traits, own.quantize_chunk
library.type_names = lambda: {**names(), 60: "q9_X"}
own.type_traits = lambda number: traits(11 if number == 60 else number)
own.quantize_chunk = lambda number, *rest: quantize(11 if number == 60 else number, *rest)
own.iq3_tables = built.append
"""
EVERYWHERE = """
import json
from pathlib import Path

import numpy as np
from planner import recipe as recipes
from planner.dialects.exports import export_recipe
from planner.formats.ggml import (
    CANDIDATES, FORMAT_SETS, file_type_of, file_types, format_by_id, format_named, formats, has_tables, nearest_known,
    quantize_rows, select_formats, tables_ready,
)
from planner.formats.registry import all_formats, family_named
from planner.gguf import fallback, requires_imatrix

new = formats()["q9_X"]
assert (new.id, new.block, new.block_bytes, new.quantized) == (60, 256, 110, True)  # the library's word
assert all_formats()["q9_X"] is format_named("Q9_x") is format_by_id(60) is new
assert "q9_X" in CANDIDATES and [name for name, own in FORMAT_SETS.items() if "q9_X" in own] == ["all", "k"]
assert new in family_named("gguf").choose("all") and new in select_formats("k") and new not in select_formats("iq")
assert nearest_known("iq3_k") == "q9_X"
assert has_tables(new) and not tables_ready(new)
rows, weights = np.ones((2, 256), np.float32), np.ones(256, np.float32)
assert (quantize_rows(new, rows, weights) == quantize_rows(formats()["q3_K"], rows, weights)).all()
assert built == [99] and tables_ready(new)
assert requires_imatrix("blk.0.ffn_up.weight", new) and not requires_imatrix("output.weight", new)
assert fallback(new, 32).name == "q4_0"
assert file_types()[1000] == "Q9_X" and file_type_of({"q9_X": 1, "f16": 5}) == 1000

name = "blk.0.ffn_up.weight"
recipe = recipes.Recipe(
    planner="1", ggml="1", model=recipes.ModelSource(name="m", architecture="llama", digest="d", path="m.gguf"),
    imatrix=None, sensitivity="none", seed=0, tolerance=0.05, budget="", size=1, bpw=1.0, loss=None, bound=None,
    status="", file_type=1000,
    tensors=(recipes.Choice(name=name, format="q9_X", bytes=220, shape=(256, 2), err=None, loss=None, why=""),),
)


def exported(dialect):
    texts, _ = export_recipe(recipe, dialect, Path("r.json"), output=None, compact=False, threads=1)
    return next(iter(texts.values()))


assert exported("ik_llama").endswith("=q9_X\\n")
assert "=q9_X\\n" in exported("gguf-tool-suite")
assert exported("evopress") == f"{name}: 9.25 (9.25-Q9_X.pth)\\n"
assert json.loads(exported("auto-round")) == {"model.layers.0.mlp.up_proj": "GGUF:Q9_X"}
"""


def script(row: str) -> str:
    return f"ROW = {row!r}\n{PRELUDE}\n{EVERYWHERE}"


def run(row: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    return subprocess.run([sys.executable, "-c", script(row)], capture_output=True, text=True, cwd=root, check=False)


def test_a_row_is_all_that_a_new_type_needs():
    done = run(ROW)
    assert done.returncode == 0, done.stderr


def test_without_its_row_a_new_type_is_known_by_the_library_alone():
    done = run("")
    line = next(
        n for n, text in enumerate(script("").splitlines(), 1) if text.startswith('assert "q9_X" in CANDIDATES')
    )
    assert f"line {line}, " in done.stderr  # after what the library says, which holds


def test_rows_are_of_the_library_s_types():
    assert set(TYPES) <= set(formats())
    for row in TYPES.values():
        assert row.fallback is None or row.fallback in TYPES
        assert set(row.sets) <= set(FORMAT_SETS)
        assert formats()[row.name].for_weights == row.weights


@pytest.mark.parametrize("name", ["q9_X", "", "Q4_K"])
def test_what_has_no_row_has_an_empty_one(name):
    row = type_of(name)
    assert (row.name, row.sets, row.weights, row.lattice, row.fallback) == (name, (), True, None, None)
