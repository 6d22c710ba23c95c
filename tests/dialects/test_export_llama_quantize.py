"""What llama-quantize would make of the exported file, by its own rules written down once more."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dialects.llama_quantize import base_type, command_line, tensor_types
from planner.errors import RecipeError
from planner.gguf import open_model
from planner.plan.assess import assess
from planner.plan.findings import Findings
from planner.plan.mixes import mix_formats
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.recipe import Choice, ImatrixSource, ModelSource, Recipe, load_recipe
from state import Store
from tests.dialects.inventories import MODELS, inventory, random_formats

TYPES = {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}


def parse(text):
    """parse_tensor_type_file and parse_tensor_type of tools/quantize/quantize.cpp: [(pattern, type)]."""
    found = []
    for word in text.split():
        name, separator, kind = word.partition("=")
        assert separator
        assert name
        found.append((name.lower(), TYPES[kind.lower()]))
    return found


def decide(options, name):
    """llama_tensor_get_type of src/llama-quant.cpp: the first pattern that is found anywhere in the name."""
    return next((kind for pattern, kind in options if re.search(pattern, name)), None)


def shell_words(command):
    return shlex.split(command.replace("\\\n", ""))


def recipe_of(formats, *, left_alone=(), imatrix=None, file_type=15):
    return Recipe(
        planner="0", ggml="0", model=ModelSource(name="m", architecture="llama", digest="0", path="a model.gguf"),
        imatrix=imatrix, sensitivity="prior", seed=0, tolerance=0.05, budget="4 bpw", size=9, bpw=4, loss=2, bound=1,
        status="optimal", file_type=file_type,
        tensors=tuple(
            Choice(name=name, format=fmt, bytes=9, err=0, loss=0, why="left alone" if name in left_alone else "solved")
            for name, fmt in formats.items()
        ),
    )  # fmt: skip


NAMES = st.from_regex(r"[a-z0-9_.\-]{1,12}", fullmatch=True)
FORMATS = st.sampled_from(["q4_K", "iq2_xxs", "q8_0", "f16", "bf16", "mxfp4"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, FORMATS, max_size=12), st.data())
def test_it_gives_the_recipe_back(formats, data):
    left_alone = data.draw(st.sets(st.sampled_from(sorted(formats)))) if formats else set()
    options = parse(tensor_types(recipe_of(formats, left_alone=left_alone)))
    for name, fmt in formats.items():
        kind = decide(options, name)
        assert kind == (None if name in left_alone else TYPES[fmt.lower()])


def test_names_that_contain_each_other():
    names = ("blk.1.ffn.weight", "blk.11.ffn.weight", "blkx1.ffn.weight", "a.blk.1.ffn.weight", "blk.1.ffn.weight.x")
    formats = dict(zip(names, ("q4_K", "q8_0", "q2_K", "f16", "q6_K"), strict=True))
    options = parse(tensor_types(recipe_of(formats)))
    assert {name: decide(options, name).name for name in formats} == {n: f.upper() for n, f in formats.items()}


@pytest.mark.parametrize("name", ["", "a\0b", "a" * 64])
def test_names_that_it_cannot_be_told(name):
    with pytest.raises(RecipeError, match="cannot be told about the tensor") as caught:
        tensor_types(recipe_of({name: "q4_K"}))
    assert "planner quantize" in caught.value.remedy
    assert tensor_types(recipe_of({name: "f32"}, left_alone=[name])) == ""


def test_the_command(tmp_path):
    imatrix = ImatrixSource(path="dir with/x's.imatrix", digest="0")
    types = tmp_path / "types.txt"
    words = shell_words(command_line(recipe_of({"a": "q4_K"}, imatrix=imatrix), types, 3))
    assert words == [
        "llama-quantize", "--imatrix", "dir with/x's.imatrix", "--tensor-type-file", str(types), "--override-kv",
        "general.file_type=int:15", "a model.gguf", "OUT.gguf", "Q8_0", "3",
    ]  # fmt: skip
    assert "--imatrix" not in command_line(recipe_of({"a": "q4_K"}), types, 3)


@pytest.mark.parametrize("number", range(60))
def test_the_file_says_what_it_is(number):
    known = {kind.value: kind.name.split("_", 1)[1] for kind in gguf.LlamaFileType if kind.value < 1024}
    base, override = base_type(recipe_of({}, file_type=number))
    assert base == "Q8_0"
    if number != 41:  # Q2_0, which only newer gguf packages have
        other = number in known and known[number] != "Q8_0"
        assert override == (["--override-kv", f"general.file_type=int:{number}"] if other else [])
    command = command_line(recipe_of({}, file_type=number), Path("x.types.txt"), 3)
    assert [word for line in command.split(" \\\n") for word in shlex.split(line)] == [
        "llama-quantize", "--tensor-type-file", "x.types.txt", *override, "a model.gguf", "OUT.gguf", base, "3",
    ]  # fmt: skip


def decide_of_march(options, name, base, mixed):
    """The same, from pull request 19770 to 22572: a rule of the base's own type is passed over, and without another
    the mix decides."""
    return next((kind for pattern, kind in options if re.search(pattern, name) and kind != base), mixed)


@pytest.mark.parametrize("model", MODELS)
def test_builds_that_ignore_the_type_of_the_base(model):
    """Issue 22544: what becomes of a recipe beside the bases Q4_K_M and Q8_0."""
    about = inventory(model)
    wanted = random_formats(model, 1)
    recipes = [assess(about, formats, None, why="solved").recipe for formats in (dict.fromkeys(wanted, "q4_K"), wanted)]
    mixed = {mix: mix_formats(about, mix) for mix in ("Q4_K_M", "Q8_0")}

    def changed(recipe, mix, base):
        options = parse(tensor_types(recipe))
        free = {choice.name: choice.format for choice in recipe.tensors if not choice.left_alone}
        free = dict(list(free.items())[:100])  # each tries every rule
        made = {name: decide_of_march(options, name, TYPES[base], TYPES[mixed[mix][name].lower()]) for name in free}
        return [name for name, fmt in free.items() if made[name] != TYPES[fmt.lower()]]

    assert changed(recipes[0], "Q4_K_M", "q4_k")
    for recipe in recipes:
        assert base_type(recipe)[0] == "Q8_0"
        assert not changed(recipe, "Q8_0", "q8_0")


def test_a_real_recipe(cheap, example, here, run):
    with Store.open(cheap, read_only=True) as store:
        recipe = make_plan(Findings.read(store), PlanRequest(budget=5_000_000)).recipe
    options = parse(tensor_types(recipe))
    with open_model(example.model) as model:
        for tensor in model.tensors:
            kind = decide(options, tensor.name)
            if tensor.format == "f32":
                assert kind is None
            else:
                assert kind == TYPES[recipe.formats[tensor.name].lower()]
    assert run("solve", "--state", cheap, "--budget", "5MB").status == 0
    assert load_recipe(here / "recipe.json").formats == recipe.formats
    exported = run("export", "recipe.json", "--to", "llama-quantize", "-t", 2)
    assert exported.status == 0, exported.text
    assert (here / "recipe.types.txt").read_text() == tensor_types(recipe)
    words = shell_words(exported.out)
    assert words[words.index("--tensor-type-file") + 1] == "recipe.types.txt"
    assert words[-1] == "2"
    again = run("export", "recipe.json", "--to", "llama-quantize", "-o", "elsewhere.txt")
    assert again.status == 0
    assert (here / "elsewhere.txt").read_bytes() == (here / "recipe.types.txt").read_bytes()
    assert run("export", "recipe.json", "--to", "nonsense").status == 2
