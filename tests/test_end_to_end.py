"""From an F16 model, an imatrix and a size to a file of exactly the promised size, for sizes small and large."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest

from planner.formats.ggml import dequantize_rows, formats
from planner.gguf import open_model
from planner.recipe import load_recipe
from planner.sensitivity import ErrorParts, Facts, sensitivities
from planner.sizes import parse_size
from state import Store
from tests.models import CHEAP, FEW, MODELS, write_imatrix

BUDGETS = [2.0, 2.5, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 5.5, 6.25, 7.0, 8.0]


def test_twelve_sizes(example, cheap, whole, here, run):
    for bpw in BUDGETS:
        # kernels with lookup tables are slow: only where nothing else is small enough
        solved = run("solve", "--state", whole if bpw < 3 else cheap, "--bpw", bpw, "-o", "r.json")
        assert solved.status == 0, solved.text
        recipe = load_recipe(here / "r.json")
        assert recipe.bpw <= bpw
        assert f"{recipe.size:,} bytes" in solved.out
        written = run("quantize", example.model, "r.json", "out.gguf", "--force")
        assert written.status == 0, written.text
        assert (here / "out.gguf").stat().st_size == recipe.size
        assert "as promised" in written.out
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(here / "out.gguf").tensors}
        assert {name: tensor.tensor_type.name.lower() for name, tensor in tensors.items()} == {
            name: fmt.lower() for name, fmt in recipe.formats.items()
        }
        bits = 8 * sum(tensor.n_bytes for tensor in tensors.values())
        assert bits / sum(int(tensor.n_elements) for tensor in tensors.values()) == pytest.approx(recipe.bpw)
        assert recipe.bound <= recipe.loss <= recipe.bound * 1.001


def options(state):
    """Every tensor's options, put together by hand from what the state holds: (padded bytes, loss, format)."""
    with Store.open(state, read_only=True) as store:
        inventory = store.inventory()
        energies = store.energies(selected=True).values()
        facts = {entry.tensor: Facts.from_values(entry.values) for entry in energies if entry.values}
        found = list(store.measurements(selected=True).values())
    names = [tensor.name for tensor in inventory.tensors]
    weights = sensitivities("structure", names, facts, blocks=inventory.metadata["block_count"])
    every = {}
    for tensor in inventory.tensors:
        if tensor.left_alone is None:
            source = -(-tensor.nbytes // 32) * 32
            every[tensor.name] = [(source, 0.0, tensor.source_format)]
            for entry in found:
                if entry.tensor == tensor.name:
                    nbytes = tensor.elements // formats()[entry.format].block * formats()[entry.format].block_bytes
                    block = 256 if formats()[entry.format].block == 256 else 32 * formats()[entry.format].quantized
                    error = ErrorParts(entry.err_var, entry.err_mean, entry.err_massive)
                    loss = weights[tensor.name].loss(error, block)
                    every[tensor.name].append((-(-nbytes // 32) * 32, loss, entry.format))
    return every


@pytest.mark.parametrize("size", ["2.6MB", "3.1MB", "4000000", "4.75MB", "5MiB", "6.2MB", "8.25MB", "16MB"])
def test_what_is_left_of_a_budget_is_of_no_use(whole, here, run, size):
    assert run("solve", "--state", whole, "--budget", size, "-o", "r.json").status == 0
    recipe = load_recipe(here / "r.json")
    slack = parse_size(size) - recipe.size
    assert slack >= 0
    every = options(whole)
    assert recipe.loss == pytest.approx(
        sum(next(loss for _, loss, fmt in every[name] if fmt == choice) for name, choice in recipe.formats.items()
            if name in every), rel=1e-12,
    )  # fmt: skip
    for choice in recipe.tensors:
        for nbytes, loss, fmt in every.get(choice.name, []):
            if loss < choice.loss:
                assert nbytes - -(-choice.bytes // 32) * 32 > slack, f"{choice.name} could still become {fmt}"


def test_one_command_measures_solves_and_the_next_writes(example, here, run):
    solved = run("solve", example.model, "--imatrix", example.sums, "--budget", "5.2MB", "--types", FEW, "-t", "2")
    assert solved.status == 0, solved.text
    assert (here / "prose-8m-f16.planner").exists()
    assert "Next: planner quantize" in solved.out
    again = run("solve", "--budget", "5.2MB", "-o", "again.json")
    assert again.status == 0
    assert (here / "again.json").read_bytes() == (here / "recipe.json").read_bytes()
    written = run("quantize", example.model, "recipe.json", "out.gguf")
    assert written.status == 0, written.text
    assert (here / "out.gguf").stat().st_size == load_recipe(here / "recipe.json").size <= 5_200_000
    with open_model("out.gguf") as out, open_model(example.model) as source:
        assert out.metadata["general.name"] == source.metadata["general.name"]
        assert out.metadata["quantize.imatrix.file"] == str(example.sums)
        assert out.metadata["quantize.planner.recipe"]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("matrix", ["sums", "plain", "none"])
def test_models_of_every_kind(kind, matrix, here, run):
    model = MODELS[kind]().write(here / "model.gguf")
    given = []
    if matrix != "none":
        given = ["--imatrix", write_imatrix(model, here / "x.imatrix", sums=matrix == "sums")]
    for budget in (("--bpw", 5), ("--bpw", "7.5")):
        solved = run("solve", model, *given, *budget, "--types", CHEAP, "-t", "2")
        assert solved.status == 0, solved.text
        recipe = load_recipe(here / "recipe.json")
        written = run("quantize", model, "recipe.json", "out.gguf", "-f")
        assert written.status == 0, written.text
        assert (here / "out.gguf").stat().st_size == recipe.size
        assert recipe.sensitivity == {"sums": "structure", "plain": "structure+prior", "none": "prior"}[matrix]
        assert recipe.bpw <= float(budget[1])
        with open_model("out.gguf") as out, open_model(model) as source:
            assert {tensor.name: tensor.format for tensor in out.tensors} == recipe.formats
            for choice in recipe.tensors:
                tensor = out[choice.name]
                back = dequantize_rows(formats()[tensor.format], out.raw_rows(tensor), tensor.row_length)
                rows = source.rows(source[choice.name])
                assert np.square(back - rows).sum() <= 0.5 * np.square(rows).sum()


def test_a_split_model(here, run):
    whole_model = MODELS["dense"]().write(here / "whole.gguf")
    first = MODELS["dense"]().write(here / "parts.gguf", split=7)
    matrix = write_imatrix(whole_model, here / "x.imatrix")
    for model, name in ((whole_model, "whole"), (first, "parts")):
        places = ("-o", f"{name}.json", "--state", f"{name}.planner")
        solved = run("solve", model, "--imatrix", matrix, "--bpw", 5, "--types", FEW, *places)
        assert solved.status == 0, solved.text
    one, other = (json.loads((here / f"{name}.json").read_text()) for name in ("whole", "parts"))
    assert len(one["tensors"]) == 21
    assert {t["name"]: t for t in one["tensors"]} == {t["name"]: t for t in other["tensors"]}
    assert run("quantize", first, "parts.json", "merged.gguf").status == 0
    assert run("quantize", whole_model, "parts.json", "out.gguf").status == 0  # the same model
    assert (here / "merged.gguf").stat().st_size == other["size"] == one["size"]
    assert (here / "merged.gguf").read_bytes() == (here / "out.gguf").read_bytes()
    kept = run("quantize", first, "parts.json", "kept.gguf", "--keep-split")
    assert kept.status == 0, kept.text
    assert len(list(here.glob("kept-*-of-*.gguf"))) == len(list(here.glob("parts-*-of-*.gguf")))
