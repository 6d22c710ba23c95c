"""What mlx-lm would make of the predicate and of the dictionary; the nearest of MLX's formats by trying all."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.dialects.exports import export_recipe
from planner.dialects.imports import guess_dialect, read_choices
from planner.dialects.mlx_lm import nearest_affine
from planner.errors import RecipeError
from planner.formats.ggml import formats
from planner.formats.mlx import AFFINE
from planner.formats.registry import FAMILIES, family_of
from planner.names.mlx import module_paths
from planner.names.transformers import ARCHITECTURES
from planner.plan.assess import assess
from tests.dialects.inventories import MODELS, inventory, recipe_of

BLOCK = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
# Modules of mlx-lm's models (0.32): what `named_modules` gives where `to_quantized` is there, without routers
MODULES = {
    ("llama", "ffn_up"): "model.layers.1.mlp.up_proj",
    ("llama", "ffn_down_exps"): "model.layers.1.block_sparse_moe.switch_mlp.down_proj",
    ("qwen3moe", "ffn_gate_exps"): "model.layers.1.mlp.switch_mlp.gate_proj",
    ("qwen2moe", "ffn_up_shexp"): "model.layers.1.mlp.shared_expert.up_proj",
    ("deepseek2", "ffn_up_shexp"): "model.layers.1.mlp.shared_experts.up_proj",
    ("deepseek2", "attn_k_b"): "model.layers.1.self_attn.embed_q",
    ("deepseek2", "attn_v_b"): "model.layers.1.self_attn.unembed_out",
    ("deepseek2", "attn_kv_a_mqa"): "model.layers.1.self_attn.kv_a_proj_with_mqa",
    ("qwen3next", "attn_qkv"): "model.layers.1.linear_attn.in_proj_qkvz",
    ("qwen3next", "attn_gate"): "model.layers.1.linear_attn.in_proj_qkvz",
    ("qwen35", "ssm_beta"): "language_model.model.layers.1.linear_attn.in_proj_b",
    ("qwen35moe", "ffn_down_exps"): "language_model.model.layers.1.mlp.switch_mlp.down_proj",
    ("jamba", "ssm_x"): "model.layers.1.mamba.x_proj",
    ("jamba", "ffn_up_exps"): "model.layers.1.feed_forward.switch_mlp.up_proj",
    ("phi3", "attn_qkv"): "model.layers.1.self_attn.qkv_proj",
    ("phi3", "ffn_up"): "model.layers.1.mlp.gate_up_proj",
}


@pytest.mark.parametrize(("architecture", "role"), MODULES)
def test_modules_of_mlx_lm(architecture, role):
    assert module_paths(f"blk.1.{role}.weight", architecture) == [MODULES[architecture, role]]


@given(st.floats(1, 20), st.sampled_from([32, 64, 96, 128, 256, 2880]))
def test_the_nearest(bpw, row):
    every = [(abs(bits + 32 / group - bpw), bits + 32 / group) for bits in (2, 3, 4, 5, 6, 8)
             for group in (32, 64, 128) if row % group == 0]  # fmt: skip
    found = nearest_affine(bpw, row)
    assert (abs(found.bpw - bpw), found.bpw) == min(every)
    assert row % found.group == 0
    assert nearest_affine(bpw, 72) is None


def decided(source, dictionary, paths):
    """By the predicate, and as `class_predicate` of mlx_lm.utils.load_model reads the dictionary."""
    scope: dict[str, object] = {}
    exec(source, scope)
    by_predicate = {path: scope["quant_predicate"](path, None) for path in paths}
    by_dictionary = {path: dictionary.get(path, False) for path in paths}
    assert by_predicate == by_dictionary
    return by_predicate


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(("architecture", "prefix"), [("qwen3", ""), ("qwen35", "language_model.")])
def test_every_module_gets_the_nearest_to_its_tensor(architecture, prefix, compact, tmp_path):
    kinds = ("q4_K", "iq2_xxs", "q6_K", "f16", "q8_0", "iq3_s", "bf16")
    names = {f"blk.{i}.{role}.weight": kinds[(i * j) % len(kinds)] for i in range(14) for j, role in enumerate(BLOCK)}
    names["token_embd.weight"] = "q5_K"
    recipe = recipe_of(names, architecture=architecture, left_alone={"blk.0.ffn_gate_inp.weight": "f32"})
    texts, exported = export_recipe(recipe, "mlx-lm", tmp_path / "r.json", compact=compact)
    dictionary, source = (texts[tmp_path / f"r{suffix}"] for suffix in (".mlx.json", ".mlx.py"))
    paths = {name: module_paths(name, architecture)[0] for name in names}
    found = decided(source, json.loads(dictionary)["quantization"], [*paths.values(), "model.layers.0.mlp.gate"])
    assert found.pop("model.layers.0.mlp.gate") is False
    assert all(path.startswith(prefix) for path in found)
    for name, fmt in names.items():
        if not formats()[fmt].quantized:
            assert found[paths[name]] is False
        else:
            assert found[paths[name]] == nearest_affine(formats()[fmt].bpw, 256).parameters
    assert "MLX has none of the recipe's types" in exported.notes[0]
    assert source.count("\n") < 70 or not compact


@pytest.mark.parametrize("name", ["blk.0.frobnicator.weight", "enc.blk.0.attn_q.weight", "blk.0.attn_q.weight\n"])
def test_tensors_without_a_module(name, tmp_path):
    with pytest.raises(RecipeError, match="module"):
        export_recipe(recipe_of({name: "q4_K"}), "mlx-lm", tmp_path / "r.json")


def test_other_architectures_and_recipes_without_shapes(tmp_path):
    with pytest.raises(RecipeError, match="modules of bloom models are not known"):
        export_recipe(recipe_of({"output.weight": "q4_K"}, architecture="bloom"), "mlx-lm", tmp_path / "r.json")
    recipe = recipe_of({"output.weight": "q4_K"})
    bare = recipe.model_copy(update={"tensors": (recipe.tensors[0].model_copy(update={"shape": ()}),)})
    with pytest.raises(RecipeError, match="shapes"):
        export_recipe(bare, "mlx-lm", tmp_path / "r.json")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("model", [name for name, architecture in MODELS.items() if architecture in ARCHITECTURES])
def test_recipes_of_mlx_come_back(model, seed, tmp_path):
    known = FAMILIES["mlx"].inventory(inventory(model))
    rng = random.Random(f"{model} {seed}")
    wanted = {}
    for tensor in known.tensors:
        if tensor.left_alone is None:
            fits = [name for name, fmt in AFFINE.items() if fmt.fits(tensor.row_length)]
            wanted[tensor.name] = rng.choice([*fits, tensor.source_format])
    for path_names in _modules(known, wanted).values():  # what is one module has one format
        wanted |= dict.fromkeys(path_names, wanted[path_names[0]])
    recipe = assess(inventory(model), wanted, None, family="mlx", why="solved").recipe
    names = [tensor.name for tensor in inventory(model).tensors]
    texts, _ = export_recipe(recipe, "mlx-lm", tmp_path / "r.json")
    table, _ = export_recipe(recipe, "csv", tmp_path / "r.json")
    text = texts[tmp_path / "r.mlx.json"]
    assert guess_dialect(tmp_path / "config.json", text) == "mlx-lm"
    for dialect, source in (("mlx-lm", text), ("csv", table[tmp_path / "r.csv"])):
        found = read_choices(source, dialect, names, known.architecture, "it").formats
        assert family_of(found.values()) == "mlx"
        back = assess(inventory(model), found, None, family="mlx", why="solved").recipe
        assert (back.formats, back.size, back.family) == (recipe.formats, recipe.size, "mlx")


def _modules(known, wanted):
    found: dict[str, list[str]] = {}
    for name in wanted:
        for path in module_paths(name, known.architecture):
            found.setdefault(path, []).append(name)
    return found


def read(config, names=("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight", "output_norm.weight")):
    return read_choices(
        config if isinstance(config, str) else json.dumps(config), "mlx-lm", names, "llama", "it"
    ).formats


def test_the_config_of_a_published_model():
    usual = {"group_size": 64, "bits": 4}
    config = {"model_type": "llama", "quantization": usual, "quantization_config": usual}
    assert read(config) == dict.fromkeys(
        ("blk.0.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"), "mlx_q4_g64"
    )
    usual |= {"mode": "affine", "lm_head": {"group_size": 32, "bits": 8}, "model.layers.0.self_attn.q_proj": False}
    assert read(config) == {"blk.0.ffn_down.weight": "mlx_q4_g64", "output.weight": "mlx_q8_g32"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "holds no dictionary"),
        ({"model_type": "llama"}, "has no quantization in it"),
        ({"quantization": {"group_size": 64, "bits": 7}}, "none of MLX's affine formats"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization": {"group_size": 32, "bits": 4, "lm_head": 3}}, "has 3 for lm_head"),
        ({"quantization": {"group_size": 64, "bits": 4, "lm_head": {"bits": [2]}}}, "for lm_head"),
    ],
)
def test_what_is_no_config_of_mlx(config, words):
    with pytest.raises(RecipeError, match=words):
        read(config)


def test_a_module_that_is_two_in_mlx_has_one_format():
    path = "model.layers.0.self_attn."
    entries = {f"{path}embed_q": {"group_size": 64, "bits": 4}, f"{path}unembed_out": {"group_size": 64, "bits": 8}}
    config = json.dumps({"quantization": {"group_size": 64, "bits": 4, **entries}})
    with pytest.raises(RecipeError, match=r"they are one tensor: blk\.0\.attn_kv_b"):
        read_choices(config, "mlx-lm", ["blk.0.attn_kv_b.weight"], "deepseek2", "it")


def test_modules_that_are_none_of_the_models():
    """Whatever stands before them; routers and norms are the model's, planned or not."""
    usual = {"group_size": 64, "bits": 4}
    own = {"group_size": 32, "bits": 8}
    names = ["blk.1.attn_q.weight", "blk.1.attn_norm.weight", "blk.1.ffn_gate_inp.weight", "output.weight"]
    for outer in ("model.", "language_model.model.", "model.language_model."):
        layer = f"{outer}layers.1"
        entries = {f"{layer}.self_attn.q_proj": own, f"{layer}.mlp.gate": own, "vision_tower.blocks.0.attn": False}
        config = json.dumps({"quantization": usual | entries | {f"{layer}.self_attn.q_porj": own}})
        found = read_choices(config, "mlx-lm", names, "qwen3moe", "it")
        assert found.formats == {"blk.1.attn_q.weight": "mlx_q8_g32", "output.weight": "mlx_q4_g64"}
        assert found.notes == (
            "2 modules find no tensor: vision_tower.blocks.0.attn, layers.1.self_attn.q_porj.",
        )  # fmt: skip


def test_models_that_others_quantized():
    usual = {"bits": 4, "group_size": 128, "quant_method": "auto-round"}
    with pytest.raises(RecipeError, match=r"quantized by 'auto-round', not by MLX"):
        read({"quantization_config": usual})
    assert read({"quantization_config": {"bits": 4, "group_size": 128}})


AHEAD = {"blk.1.attn_q.weight": "q4_K", "blk.1.nextn.eh_proj.weight": "q6_K", "blk.1.ffn_up_exps.weight": "q4_K"}


@pytest.mark.parametrize("dialect", ["mlx-lm", "auto-round"])
def test_layers_that_look_ahead_are_left_out(dialect, tmp_path):
    names = {"blk.0.attn_q.weight": "q4_K", "blk.10.attn_q.weight": "q5_K", "output.weight": "q8_0"}
    recipe = recipe_of(names | AHEAD, architecture="glm4moe", left_alone={"blk.1.nextn.enorm.weight": "f32"})
    texts, exported = export_recipe(recipe, dialect, tmp_path / "r.json")
    plain, _ = export_recipe(recipe_of(names, architecture="glm4moe"), dialect, tmp_path / "r.json")
    assert texts == plain
    assert "in layers that predict several tokens ahead (nextn)" in exported.notes[-1]
    assert all(name in exported.notes[-1] for name in AHEAD)
    with pytest.raises(RecipeError):
        export_recipe(recipe_of(AHEAD, architecture="glm4moe"), dialect, tmp_path / "r.json")


@pytest.mark.parametrize("dialect", ["mlx-lm", "auto-round"])
def test_one_tensor_without_a_module_is_not_all(dialect, tmp_path):
    names = {"blk.0.attn_q.weight": "q4_K", "output.weight": "q8_0"}
    texts, exported = export_recipe(recipe_of(names | {"blk.0.frob.weight": "q4_K"}), dialect, tmp_path / "r.json")
    plain, _ = export_recipe(recipe_of(names), dialect, tmp_path / "r.json")
    assert texts == plain
    assert "blk.0.frob.weight" in exported.notes[-1]
    assert "no module" in exported.notes[-1]
