"""Recipes evaluated without writing them: the same weights as in the file, told by what they predict."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import planner
from planner.formats.mlx import AFFINE, dequantize_affine, quantize_affine
from planner.gguf import open_model
from planner.recipe import load_recipe, save_recipe
from tests.conftest import EXAMPLES, ok
from tests.edited import edited
from tests.models import dense, made_up_covariances

TEXT = EXAMPLES / "evaluation.txt"
FEW = ("--text", TEXT, "-c", 128, "--chunks", 4, "-t", 2)


@pytest.fixture
def recipe(run, cheap, here):
    """A recipe of many types, planned with an imatrix."""
    ok(run("solve", "--state", cheap, "--bpw", "4.5"))
    return here / "recipe.json"


def found(result):
    """File → what JSON says of it, by the last part of its name."""
    return {Path(entry["path"]).name: entry for entry in json.loads(ok(result).out)["files"]}


def measured(entry):
    """The statistics alone."""
    about = ("path", "bytes", "bpw", "in_memory", "exact_activations")
    return {name: value for name, value in entry.items() if name not in about}


def dequantized(example: Path, quantized: Path, out: Path) -> Path:
    """The example in F16, holding what is left of its weights in a quantized file."""
    with open_model(quantized) as model:
        left = {tensor.name: model.rows(tensor).astype(np.float16) for tensor in model.tensors if tensor.rows > 1}
    return edited(example, out, arrays=lambda found: {name: left.get(name, array) for name, array in found.items()})


def test_the_weights_are_those_of_the_file(run, here, example, recipe):
    ok(run("quantize", example.model, recipe, "file.gguf"))
    dequantized(example.model, here / "file.gguf", here / "floats.gguf")
    result = run("evaluate", example.model, "floats.gguf", recipe, "file.gguf", *FEW, "--json")
    files = found(result)
    assert measured(files["recipe.json"]) == measured(files["floats.gguf"])
    assert (files["recipe.json"]["bytes"], files["recipe.json"]["bpw"]) == (
        files["file.gguf"]["bytes"], pytest.approx(files["file.gguf"]["bpw"]),
    )  # fmt: skip
    assert files["recipe.json"]["in_memory"]
    assert files["recipe.json"]["exact_activations"]
    # the file rounds activations too
    memory, file = (files[name]["kld"]["value"] for name in ("recipe.json", "file.gguf"))
    assert memory == pytest.approx(file, rel=0.1)
    assert memory != file
    assert [Path(entry["path"]).name for entry in json.loads(result.out)["files"]][1:] == [
        "floats.gguf", "recipe.json", "file.gguf",
    ]  # fmt: skip


def test_refined_codes_are_those_of_the_file(run, here, example, recipe):
    covariances = made_up_covariances(example.model, here / "cov.gguf")
    ok(run("quantize", example.model, recipe, "file.gguf", "--covariance", covariances))
    dequantized(example.model, here / "file.gguf", here / "floats.gguf")
    refined = ("--covariance", covariances)
    files = found(run("evaluate", example.model, "floats.gguf", recipe, *FEW, *refined, "--json"))
    assert measured(files["recipe.json"]) == measured(files["floats.gguf"])
    plain = found(run("evaluate", example.model, recipe, *FEW, "--json"))
    assert measured(plain["recipe.json"]) != measured(files["recipe.json"])


def test_a_recipe_that_changes_nothing_is_the_model(run, here, example, recipe):
    with open_model(example.model) as model:
        stored = {tensor.name: tensor.format for tensor in model.tensors}
    planned = load_recipe(recipe)
    choices = [choice.model_copy(update={"format": stored[choice.name]}) for choice in planned.tensors]
    save_recipe(planned.model_copy(update={"tensors": tuple(choices)}), here / "nothing.json")
    result = run("evaluate", example.model, example.model, recipe, "nothing.json", *FEW, "--json")
    assert "Edited: output.weight is now f16" in result.err
    files = found(result)
    itself = files["nothing.json"]
    assert measured(itself) == measured(json.loads(result.out)["files"][1])
    assert itself["bytes"] == pytest.approx(example.model.stat().st_size, rel=1e-3)
    assert not itself["exact_activations"]


def test_what_a_recipe_leaves_alone_is_put_back(run, here, example, cheap):
    """Each after the other gives what it gives alone."""
    for bpw in ("3", "8"):
        ok(run("solve", "--state", cheap, "--bpw", bpw, "-o", f"{bpw}.json"))
    ok(run("solve", "--state", cheap, "--bpw", "12", "--pin", "ffn=f16", "-o", "some.json"))
    names = ("3.json", "some.json", "8.json", "3.json")
    together = json.loads(ok(run("evaluate", example.model, *names, *FEW, "--json")).out)["files"][1:]
    for name, entry in zip(names, together, strict=True):
        alone = found(run("evaluate", example.model, name, *FEW, "--json"))[name]
        assert measured(alone) == measured(entry), name


def test_mlx_is_beside_gguf(run, here, example, cheap):
    types = ["--family", "mlx", "--types", "g64", "--state", cheap]
    ok(run("measure", example.model, "--imatrix", example.sums, *types))
    ok(run("solve", "--state", cheap, "--family", "mlx", "--bpw", "5", "-o", "mlx.json"))
    planned = load_recipe(here / "mlx.json")
    with open_model(example.model) as model:
        left = {}
        for name, fmt in planned.formats.items():
            tensor = model[name]
            rows = model.rows(tensor)
            if fmt in AFFINE:
                left[name] = dequantize_affine(AFFINE[fmt], quantize_affine(AFFINE[fmt], rows)).astype(np.float16)
            elif tensor.format == "f32":
                assert fmt == "f16"  # norms too have 16 bits in MLX: those of most of the model
                left[name] = rows.astype(np.float16).astype(np.float32)[0]
    assert len(left) > len(planned.tensors) - 3
    edited(
        example.model, here / "floats.gguf",
        arrays=lambda arrays: {name: left.get(name, array) for name, array in arrays.items()},
    )  # fmt: skip
    result = run("evaluate", example.model, "floats.gguf", "mlx.json", *FEW, "--json")
    files = found(result)
    assert measured(files["mlx.json"]) == measured(files["floats.gguf"])
    assert files["mlx.json"]["bytes"] == planned.size
    assert not files["mlx.json"]["exact_activations"]  # MLX does not round them either
    text = ok(run("evaluate", example.model, "mlx.json", *FEW)).out
    assert "In memory: mlx.json." in text
    assert "activations" not in text


def test_the_table_says_what_is_missing(run, here, example, recipe):
    out = ok(run("evaluate", example.model, recipe, *FEW)).out
    assert "In memory: recipe.json." in out
    assert "activations to 8 bits" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_log_probabilities_in_place_of_the_model(run, here, example, recipe):
    first = found(run("evaluate", example.model, recipe, *FEW, "--json"))
    again = found(run("evaluate", "prose-8m-f16.kld", recipe, "-t", 2, "--json"))
    assert again["recipe.json"] == first["recipe.json"]
    moved = load_recipe(recipe)
    gone = moved.model_copy(update={"model": moved.model.model_copy(update={"path": "gone.gguf"})})
    save_recipe(gone, here / "gone.json")
    refused = run("evaluate", "prose-8m-f16.kld", "gone.json")
    assert refused.status == 1
    assert "gone.gguf, is not there" in " ".join(refused.err.split())


def test_what_cannot_be(run, here, example, recipe, cheap):
    dense(vocabulary=96).write(here / "other.gguf")
    shutil.copy(recipe, here / "no.json")
    planned = load_recipe(recipe)
    assert planned.imatrix is not None
    lost = planned.model_copy(update={"imatrix": planned.imatrix.model_copy(update={"path": "lost.imatrix"})})
    save_recipe(lost, here / "lost.json")
    save_recipe(planned.model_copy(update={"imatrix": None}), here / "without.json")
    (here / "list.json").write_text("{}")
    ok(run("quantize", example.model, recipe, "file.gguf"))
    for status, arguments, words in (
        (1, ("other.gguf", recipe, *FEW), "is for another model"),
        (1, (example.model, "lost.json", *FEW), "imatrix lost.imatrix is not there. Say where it is with --imatrix"),
        (1, (example.model, "list.json", *FEW), "is not a recipe"),
        (1, (example.model, recipe, *FEW, "--imatrix", example.plain), "is not the imatrix"),
        (2, (example.model, "file.gguf", *FEW, "--imatrix", example.sums), "--imatrix is for recipes"),
        (2, (example.model, "file.gguf", *FEW, "--shrinkage", 1), "--shrinkage is for recipes"),
        (2, (example.model, recipe, *FEW, "--shrinkage", 1), "--shrinkage is of covariances"),
        (2, (example.model, recipe, *FEW, "--calibrate", cheap), "--calibrate is for files"),
        (2, (example.model, recipe, "--winogrande", "x.csv"), "Tasks are scored on files"),
    ):
        result = run("evaluate", *arguments)
        assert (result.status, words in " ".join(result.err.split())) == (status, True), (arguments, result.text)
    assert not list(here.glob("*.kld"))  # all is found before anything runs
    moved = found(run("evaluate", example.model, "lost.json", *FEW, "--imatrix", example.sums, "--json"))
    there = found(run("evaluate", example.model, recipe, *FEW, "--json"))
    assert measured(moved["lost.json"]) == measured(there["recipe.json"])


def test_a_model_that_is_quantized_cannot_be_changed(run, here, example, recipe):
    ok(run("quantize", example.model, recipe, "file.gguf"))
    with open_model(here / "file.gguf") as model:
        digest = model.digest
    planned = load_recipe(recipe)
    choices = [choice.model_copy(update={"format": "q2_K"}) if choice.shape[0] == 768 else choice
               for choice in planned.tensors]  # fmt: skip
    other = planned.model.model_copy(update={"digest": digest})
    save_recipe(planned.model_copy(update={"tensors": tuple(choices), "model": other}), here / "again.json")
    refused = run("evaluate", "file.gguf", "again.json", *FEW)
    assert refused.status == 1
    assert "is quantized already" in refused.err


def test_interrupted_what_is_finished_is_shown(start, here, example, recipe):
    """One recipe a hundred times: some are done when it is stopped, and it is not at the end."""
    many = [recipe] * 100
    process = start("evaluate", example.model, *many, "--text", TEXT, "-c", 128, "--chunks", 8, "-t", 1, cwd=here)
    kept = here / "prose-8m-f16.kld.json"
    deadline = time.monotonic() + 60
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    count = re.search(r"Stopped\. (\d+) of 101 files", err)
    assert count is not None, err
    assert out.count("recipe.json") >= int(count[1]) - 1 > 0
    assert sorted(path.name for path in here.iterdir()) == ["prose-8m-f16.kld", "prose-8m-f16.kld.json", "recipe.json"]


def test_the_library_takes_recipes(example, cheap, here):
    with planner.open_state(cheap, read_only=True) as state:
        recipe = state.solve(bpw=4.5).recipe
    recipe.save("recipe.json")
    options = {"text": TEXT, "ctx": 64, "chunks": 2, "threads": 2}
    result = planner.evaluate(example.model, recipe, "recipe.json", **options)
    first, second = result.quants
    assert first.statistics == second.statistics
    assert first.size.bytes == recipe.size
    assert first.in_memory
    assert re.search(r"In memory: recipe [0-9a-f]{8}, recipe\.json\.", " ".join(str(result).split()))
