"""What mutated files have found, the essence of each."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import struct
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("spelt", ["Q8_0", "q8_0 "])
@pytest.mark.parametrize("shapes", [True, False])
def test_formats_that_an_editor_spells_otherwise(spelt, shapes, state, run):
    assert run("solve", "--state", state, "--bpw", 6).status == 0
    recipe = json.loads(Path("recipe.json").read_text())
    for choice in recipe["tensors"]:
        if not choice["why"].startswith("left alone"):
            choice["format"] = spelt
        if not shapes:
            del choice["shape"]
    Path("recipe.json").write_text(json.dumps(recipe))
    for dialect in (
        "llama-quantize",
        "ik_llama",
        "auto-round",
        "evopress",
        "rco",
        "csv",
        *(["mlx-lm"] if shapes else []),
    ):
        done = run("export", "recipe.json", "--to", dialect, "-o", "exported")
        assert done.status == 0, done.text
        if dialect != "rco" or spelt != "Q8_0":  # which is how that spells it
            assert spelt not in Path("exported").read_text().replace("GGUF:Q8_0", "").replace("Q8_0.pth", "")
    done = run("quantize", "model.gguf", "recipe.json", "new.gguf", "-t", 1)
    assert done.status == 0, done.text
    recipe["tensors"][0]["format"] = "q8_7"
    Path("recipe.json").write_text(json.dumps(recipe))
    done = run("export", "recipe.json", "--to", "auto-round", "-o", "exported")
    assert done.status == 1
    assert "q8_7" in done.err


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tensor SET nbytes = 9223372036854775807",
        "UPDATE model SET header_bytes = 9223372036854775807",
        "UPDATE model SET alignment = 0",
        "UPDATE tensor SET elements = 0",
        "UPDATE tensor SET elements = elements + 1",
        "UPDATE tensor SET row_length = 7",
        "UPDATE tensor SET shape = '[]'",
        "DELETE FROM tensor",
        "UPDATE measurement SET err_var = -1",
        """UPDATE energies SET "values" = replace("values", 'mean', 'means')""",
        """UPDATE energies SET "values" = replace("values", '"write":', '"write":-')""",
    ],
)
def test_states_whose_numbers_cannot_be(statement, state, run):
    change(state, statement)
    for command in ("solve", "--bpw", 6, "-o", "new.json"), ("import", "model.gguf", "-o", "new.json"):
        done = run(*command, "--state", state)
        assert done.status == 1, done.text
        assert "is damaged" in " ".join(done.err.split())
    assert not Path("new.json").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("norm", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_norms_that_are_no_numbers(norm, bad, here, run):
    maker = dense(width=32, inner=64, vocabulary=32, blocks=1)
    maker.arrays[norm][3] = bad
    model = maker.write(here / "model.gguf")
    for family, types in ("gguf", "q8_0"), ("mlx", "g32"):
        arguments = ("--no-imatrix", "--bpw", 9, "--family", family, "--types", types, "-t", 1)
        done = run("solve", model, *arguments)
        assert done.status == 1, done.text
        assert f"{norm} holds NaN or infinite" in done.err


@pytest.mark.parametrize("content", ["", "[]", '{"content": 3}', "[" * 3000])
def test_digests_that_are_not_ours(content, model, state, run):
    change(state, f"UPDATE energies SET content_digest = '{content}'")
    done = run("measure", model, "--state", state, "--types", "q8_0", "-t", 1)
    assert done.status == 1
    assert "is damaged" in " ".join(done.err.split())


def test_an_export_without_its_imatrix_leaves_nothing(state, here, run):
    assert run("solve", "--state", state, "--bpw", 6).status == 0
    write_imatrix(here / "model.gguf", here / "x.imatrix", seed=7)
    before = set(here.iterdir())
    done = run("export", "recipe.json", "--to", "ik_llama")
    assert done.status == 1
    assert "not the imatrix" in done.err
    assert set(here.iterdir()) == before


def test_names_without_end(here, run):
    maker = dense(width=32, inner=64, vocabulary=32, blocks=1)
    model = maker.write(here / "model.gguf")
    short, long = (struct.pack("<Q", len(name)) + name for name in (b"made up", b"made up" + b"x" * 32 * 160))
    model.write_bytes(model.read_bytes().replace(short, long))  # all that follows stays aligned
    done = run("import", model, "-o", "new.json")
    assert done.status == 0, done.text
    maker.architecture = "y" * 5000
    done = run("import", maker.write(here / "model.gguf"), "-o", "other.json")
    assert done.status == 1
    assert "general.architecture has 5,000 characters" in done.err


def test_sizes_that_leave_no_room_for_names(state, here, run):
    assert run("solve", "--state", state, "--bpw", 6).status == 0
    recipe = json.loads(Path("recipe.json").read_text())
    norm = next(choice for choice in recipe["tensors"] if choice["why"].startswith("left alone"))
    recipe["tensors"], norm["bytes"], norm["shape"] = [norm], 2**62, [1]
    Path("large.json").write_text(json.dumps(recipe | {"size": 2**62}))
    done = run("diff", "large.json", "recipe.json")
    assert done.status == 0, done.text
    assert "…ge.json" in done.out or "large.json" in done.out


def test_shapes_without_elements(state, here, run):
    assert run("solve", "--state", state, "--bpw", 6).status == 0
    recipe = json.loads(Path("recipe.json").read_text())
    recipe["tensors"][0] |= {"shape": [32, 0], "bytes": 0}
    Path("recipe.json").write_text(json.dumps(recipe))
    for dialect in "mlx-lm", "csv":
        done = run("export", "recipe.json", "--to", dialect)
        assert done.status == 1
        assert "tensors.0.shape.1" in done.err


@pytest.mark.parametrize("fmt", ["1.0e+30", "iq1_s"])
def test_sources_that_no_tensor_is_stored_in(fmt, model, state, run):
    assert run("solve", "--state", state, "--bpw", 6).status == 0
    change(state, f"UPDATE tensor SET source_format = '{fmt}' WHERE name = 'blk.0.attn_v.weight'")
    for command in ("solve", "--bpw", 6), ("import", "recipe.json"), ("diff", model, model):
        done = run(*command, "--state", state)
        assert done.status == 1
        assert f"blk.0.attn_v.weight, stored in {fmt}" in " ".join(done.err.split())


@pytest.mark.parametrize("fmt", ["1.0e+30", "iq1_s"])
def test_measurements_that_no_tensor_can_have(fmt, model, state, run):
    change(state, f"UPDATE measurement SET format = '{fmt}' WHERE format = 'q4_0' AND tensor = 'blk.0.attn_v.weight'")
    done = run("solve", "--state", state, "--bpw", 6)
    assert done.status == 0, done.text
    recipe = json.loads(Path("recipe.json").read_text())
    for choice in recipe["tensors"]:
        if choice["name"] == "blk.0.attn_v.weight":
            assert choice["format"] in ("q8_0", "f16")
            choice["format"] = fmt
    Path("recipe.json").write_text(json.dumps(recipe))
    done = run("diff", "recipe.json", model, "--state", state)
    assert done.status == 1
    assert "blk.0.attn_v.weight" in done.err
