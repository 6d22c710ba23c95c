"""The file that a person keeps: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import OutputError, RecipeError
from planner.recipe import Choice, ImatrixSource, ModelSource, Recipe, load_recipe, recipe_schema, save_recipe

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COUNT = st.integers(0, 2**63 - 1)
REAL = st.floats(0, 1e300)
CHOICE = st.builds(Choice, name=TEXT, format=TEXT, bytes=COUNT, err=REAL, loss=REAL, why=TEXT)
RECIPE = st.builds(
    Recipe,
    planner=TEXT,
    ggml=TEXT,
    model=st.builds(ModelSource, name=TEXT, architecture=TEXT, digest=TEXT, path=TEXT),
    imatrix=st.none() | st.builds(ImatrixSource, path=TEXT, digest=TEXT),
    sensitivity=TEXT,
    seed=st.integers(-(2**63), 2**63 - 1),
    tolerance=REAL,
    budget=TEXT,
    size=COUNT,
    bpw=REAL,
    loss=REAL,
    bound=REAL,
    status=TEXT,
    file_type=st.integers(0, 2**32 - 1),
    tensors=st.lists(CHOICE, max_size=3, unique_by=lambda choice: choice.name).map(tuple),
)


@settings(max_examples=30, deadline=None)
@given(recipe=RECIPE)
def test_what_is_saved_is_loaded(recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("r") / "recipe.json"
    save_recipe(recipe, path)
    assert load_recipe(path) == recipe
    lines = path.read_text(encoding="utf-8").split("\n")
    for choice in recipe.tensors:  # one tensor a line: recipes can be compared with diff
        assert (
            sum(json.loads(line.strip(" ,")) == choice.model_dump(mode="json") for line in lines if '"err"' in line)
            >= 1
        )
    assert json.loads(path.read_text(encoding="utf-8"))["format_version"] == 1


def small() -> Recipe:
    return Recipe(
        planner="0", ggml="0", model=ModelSource(name="m", architecture="llama", digest="0", path="m.gguf"),
        imatrix=None, sensitivity="prior", seed=0, tolerance=0.05, budget="4 bpw", size=9, bpw=4, loss=2, bound=1,
        status="optimal", file_type=15,
        tensors=(Choice(name="a", format="q4_K", bytes=9, err=0.1, loss=2, why="solved"),),
    )  # fmt: skip


def test_the_gap():
    recipe = small()
    assert recipe.gap == 0.5
    assert recipe.model_copy(update={"bound": 2.0}).gap == 0
    assert recipe.model_copy(update={"loss": 0.0}).gap == 0
    assert recipe.formats == {"a": "q4_K"}


def test_existing_files(tmp_path):
    path = tmp_path / "recipe.json"
    save_recipe(small(), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save_recipe(small().model_copy(update={"seed": 5}), path, force=False)
    assert path.read_bytes() == before
    save_recipe(small().model_copy(update={"seed": 5}), path)
    assert load_recipe(path).seed == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.json"]
    with pytest.raises(OutputError, match="cannot be written"):
        save_recipe(small(), tmp_path / "no" / "recipe.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("size"), "size"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(size=-1), "size"),
        (lambda data: data.update(size="many"), "size"),
        (lambda data: data.update(format_version=2), "format_version"),
        (lambda data: data["tensors"][0].update(format=None), r"tensors\.0\.format"),
        (lambda data: data["tensors"].append(data["tensors"][0]), "twice"),
        (lambda data: data.update(tensors=5), "tensors"),
        (lambda data: data.update(loss=float("nan")), "loss"),
    ],
)
def test_other_json(change, words, tmp_path):
    data = small().model_dump(mode="json")
    change(data)
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(data))
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path)
    assert "recipe.json" in caught.value.problem
    assert caught.value.remedy


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=200))
def test_other_files(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("r") / "recipe.json"
    path.write_bytes(data)
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_files_that_are_not_there_or_far_too_large(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.json")
    with pytest.raises(RecipeError, match="is a directory"):
        load_recipe(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 40)
    with pytest.raises(RecipeError, match="too large"):
        load_recipe(tmp_path / "large.json")


def test_the_schema_is_in_the_docs():
    written = json.loads((Path(__file__).parents[2] / "docs/recipe.schema.json").read_text(encoding="utf-8"))
    assert written == recipe_schema(), "run `python docs/refresh.py`"
    assert set(written["properties"]) == set(Recipe.model_fields)
