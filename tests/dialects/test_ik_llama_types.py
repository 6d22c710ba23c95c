"""Recipes with the types that ik_llama.cpp alone has: out and in again, with its library and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.dialects.exports import export_recipe
from planner.dialects.imports import read_choices
from planner.errors import RecipeError
from planner.formats.ggml import IK_TYPES, file_type_of, load_ik, nearest_known
from planner.formats.registry import family_of
from planner.recipe import Choice, ModelSource, Recipe, parse_recipe, save_recipe
from planner.recipe.recount import recount

ALL = {f"blk.{number}.ffn_up.weight": name for number, name in enumerate((*IK_TYPES, "q4_K", "iq4_xs"))}


def recipe_of(formats):
    choices = tuple(
        Choice(name=name, format=fmt, bytes=1, shape=(512, 4), err=None, loss=None, why="")
        for name, fmt in formats.items()
    )
    return Recipe(
        planner="1", ggml="1", family="ik_llama", imatrix=None, sensitivity="none", seed=0, tolerance=0.05, budget="",
        model=ModelSource(name="m", architecture="llama", digest="d", path="m.gguf"), size=1, bpw=1.0, loss=None,
        bound=None, status="", file_type=140, tensors=choices,
    )  # fmt: skip


@pytest.mark.parametrize("dialect", ["ik_llama", "gguf-tool-suite", "csv"])
@pytest.mark.parametrize("compact", [False, True])
def test_dialects_that_know_them_say_them(dialect, compact, ik_library):
    if dialect == "csv" and compact:
        return
    texts, _ = export_recipe(recipe_of(ALL), dialect, Path("r.json"), compact=compact)
    found = read_choices(next(iter(texts.values())), dialect, list(ALL), "llama", "here")
    assert (found.formats, found.notes) == (ALL, ())
    assert family_of(found.formats.values()) == "ik_llama"


def test_the_command_names_the_file_s_type():
    assert load_ik() is None  # nothing of this needs the library
    _, exported = export_recipe(recipe_of(ALL), "ik_llama", Path("r.json"))
    assert exported.command.endswith("m.gguf OUT.gguf IQ4_K 1")
    assert file_type_of({"iq4_k": 5, "f32": 9}) != 140  # what counts as quantized is the library's word


@pytest.mark.parametrize("dialect", ["llama-quantize", "auto-round", "mlx-lm", "evopress"])
def test_dialects_without_them_refuse(dialect):
    with pytest.raises(RecipeError, match=r"planned for ik_llama\.cpp, and .* has none of ik_llama\.cpp's") as caught:
        export_recipe(recipe_of(ALL), dialect, Path("r.json"))
    assert "--to ik_llama" in caught.value.remedy


def test_without_the_library_rules_say_what_to_set_and_the_nearest_can_be_had():
    rules = ",".join(f"^{name.replace('.', chr(92) + '.')}$={fmt}" for name, fmt in ALL.items())
    with pytest.raises(RecipeError, match="which ggml does not have: iq2_ks") as caught:
        read_choices(rules, "ik_llama", list(ALL), "llama", "here")
    assert "PLANNER_GGML_IK" in caught.value.remedy
    found = read_choices(rules, "ik_llama", list(ALL), "llama", "here", nearest=True)
    assert found.formats == {name: nearest_known(fmt) or fmt for name, fmt in ALL.items()}


def test_the_nearest_are_ggml_s_with_the_library_too(ik_library):
    found = read_choices(".*=iq4_ks", "ik_llama", list(ALL), "llama", "here", nearest=True)
    assert set(found.formats.values()) == {"iq4_xs"}


def test_recipes_are_kept_and_counted_again(ik_library, tmp_path):
    save_recipe(recipe_of({"a.weight": "IQ4_KS", "b.weight": "iq2_k"}), tmp_path / "r.json")
    back = parse_recipe((tmp_path / "r.json").read_text(), "r.json")
    assert back.family == "ik_llama"
    counted, changes = recount(back)
    assert [choice.bytes for choice in counted.tensors] == [4 * (4 + 2 * 136), 4 * 2 * 76]  # with the scales of rows
    assert len(changes) == 2
    assert counted.file_type in (138, 145)


def test_a_recipe_that_cannot_be_counted_says_what_to_set():
    with pytest.raises(RecipeError, match=r"a\.weight: The types of ik_llama\.cpp need its library") as caught:
        recount(recipe_of({"a.weight": "iq4_ks"}))
    assert "PLANNER_GGML_IK" in caught.value.remedy
