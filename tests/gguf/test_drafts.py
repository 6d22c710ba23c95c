"""Files without draft heads: what a model made without them would be, which llama.cpp loads, and predicts the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import planner
from planner.errors import ModelError
from planner.gguf import open_model
from planner.gguf.drafts import draft_heads, pairs_without
from planner.gguf.layout import header_bytes
from planner.gguf.quantize import quantize_model
from planner.llama import library
from planner.llama.engine import Engine
from planner.recipe import load_recipe
from state import HEADLESS, Store
from tests import architectures
from tests.models import delta_net, write_imatrix

# Those with heads in a GGUF that this llama.cpp loads; lists with a number a block are in some of them
WITH_HEADS = ["qwen3next", "qwen35", "qwen35moe", "glm4moe", "glm-dsa", "deepseek32", "nemotron_h_moe"]
TOKENS = np.arange(1, 33, dtype=np.int32)[None]


def logits_of(path):
    with Engine(path, context=32, threads=1) as engine:
        return np.concatenate([block.logits.copy() for block in engine.windows(TOKENS, first=0)])


def pairs_of(path):
    with open_model(path) as model:
        return {key: model.metadata.raw(key) for key in model.metadata}


def loads_with_heads(path):
    """Whether llama.cpp loads the file where it is asked for draft heads, too."""
    api = library.llama()
    parameters = api.llama_model_default_params()
    parameters.load_mtp = True
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    if model:
        api.llama_model_free(model)
    return bool(model)


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_the_file_is_as_if_made_without_heads(architecture, tmp_path):
    whole = architectures.write_model(architecture, tmp_path / "whole.gguf", heads=1)
    plain = architectures.write_model(architecture, tmp_path / "plain.gguf", heads=0)
    out = tmp_path / "out.gguf"
    with open_model(whole) as model:
        heads = draft_heads(model)
        written = quantize_model(model, {}, None, out, file_type=1, dropped=heads)
        kept = {tensor.name for tensor in model.tensors} - heads
        promised = header_bytes(model, file_type=1, dropped=heads)
        promised += sum(-(-model.by_name[name].nbytes // 32) * 32 for name in kept)
    assert heads
    assert written.bytes == promised == out.stat().st_size
    added = {"general.file_type", "general.quantization_version"}
    assert {key: raw for key, raw in pairs_of(out).items() if key not in added} == {
        key: raw for key, raw in pairs_of(plain).items() if key not in added
    }
    with open_model(out) as dropped, open_model(plain) as made:
        assert {tensor.name: tensor.shape for tensor in dropped.tensors} == {
            tensor.name: tensor.shape for tensor in made.tensors
        }
    assert loads_with_heads(out)
    np.testing.assert_array_equal(logits_of(out), logits_of(whole))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    model = architectures.write_model("qwen35", folder / "m.gguf")
    matrix = write_imatrix(model, folder / "x.imatrix")
    with planner.open_state(folder / "s.planner", create=True) as state:
        state.measure(model, imatrix=matrix, types="q4_0,q6_K,q8_0")
    return folder


def test_from_the_state_to_the_file(folder, run, tmp_path):
    """What solve promises without the model is what quantize writes; every command knows that heads are gone."""
    recipe, out = tmp_path / "r.json", tmp_path / "o.gguf"
    solved = run("solve", "--state", folder / "s.planner", "--bpw", 6, "--draft", "drop", "-o", recipe)
    assert solved.status == 0, solved.text
    with open_model(folder / "m.gguf") as model:
        heads, names = draft_heads(model), set(model.by_name)
    assert f"{len(heads)} tensors of draft heads (nextn), as asked" in solved.out
    plan = load_recipe(recipe)
    assert plan.draft == "drop"
    assert set(plan.formats) == names - heads
    wrote = run("quantize", folder / "m.gguf", recipe, out)
    assert "as promised" in wrote.out, wrote.text
    assert out.stat().st_size == plan.size
    assert loads_with_heads(out)
    assert "without the model's draft heads" in run("inspect", recipe).out
    same = run("diff", recipe, out).out
    assert f"All {len(names - heads)} tensors have the same types" in same
    again = run("import", recipe, "--state", folder / "s.planner", "-o", tmp_path / "again.json")
    assert again.status == 0, again.text
    assert load_recipe(tmp_path / "again.json") == plan
    plan = plan.model_copy(update={"tensors": (*plan.tensors, plan.tensors[0].model_copy(update={"name": min(heads)}))})
    plan.save(tmp_path / "both.json")
    refused = run("quantize", folder / "m.gguf", tmp_path / "both.json", out, "--force")
    assert "leaves draft heads out" in " ".join(refused.err.split()), refused.text
    exported = run("export", recipe, "--to", "llama-quantize", "-o", tmp_path / "t.txt")
    assert "other quantizers keep them" in " ".join(exported.err.split()), exported.text


def test_the_curve_is_of_files_without_heads(folder, run):
    shown = run("frontier", "--state", folder / "s.planner", "--draft", "drop", "--from", "5bpw", "--json")
    assert shown.status == 0, shown.text
    points = json.loads(shown.out)["points"]
    with planner.open_state(folder / "s.planner", read_only=True) as state:
        for point in points[:: len(points) - 1]:
            found = state.solve(budget=point["bytes"], draft="drop").recipe
            assert (found.size, found.loss) == (point["bytes"], pytest.approx(point["loss"]))


def test_a_state_of_before_is_to_be_measured_again(folder, tmp_path, run):
    shutil.copyfile(folder / "s.planner", tmp_path / "old.planner")
    with Store.open(tmp_path / "old.planner") as store:
        inventory = store.inventory()
        metadata = {key: value for key, value in inventory.metadata.items() if key != HEADLESS}
        store.set_inventory(inventory.model_copy(update={"metadata": metadata}))
    refused = run("solve", "--state", tmp_path / "old.planner", "--bpw", 6, "--draft", "drop")
    assert refused.status == 1
    assert "planner measure MODEL" in refused.err


def test_what_cannot_be_left_out(tmp_path):
    """Heads that are not the last blocks, and a file of a head alone."""
    maker = delta_net(blocks=2)
    maker.pairs["block_count"] = 4
    with (
        open_model(maker.write(tmp_path / "odd.gguf")) as model,
        pytest.raises(ModelError, match="not its last blocks"),
    ):
        pairs_without(model, draft_heads(model))
    alone = delta_net(blocks=2)
    for name in list(alone.arrays):
        if name.startswith(("blk.0.", "blk.1.")):
            del alone.arrays[name]
    with open_model(alone.write(tmp_path / "alone.gguf")) as model, pytest.raises(ModelError, match="draft head alone"):
        pairs_without(model, draft_heads(model))
