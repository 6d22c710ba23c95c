"""What mlx-lm would make of the predicate and of the dictionary; the nearest of MLX's formats by trying all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import RecipeError
from planner.ggml import formats
from planner.recipes.exports import export_recipe
from planner.recipes.mlx_lm import module_paths, nearest_affine
from tests.recipes.inventories import recipe_of

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
