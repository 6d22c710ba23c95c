"""layer_config as people write it, against AutoRound's own reading of keys and of schemes, written down once more."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.dialects.exports import export_recipe
from planner.dialects.imports import read_choices
from planner.errors import RecipeError
from tests.dialects.inventories import recipe_of

ROLES = ("attn_q", "attn_norm", "ffn_gate_inp", "ffn_down")
NAMES = [
    "token_embd.weight", "output.weight", "output_norm.weight",
    *(f"blk.{block}.{role}.weight" for block in range(3) for role in ROLES),
]  # fmt: skip
MODULES = {
    "token_embd.weight": "model.embed_tokens", "output.weight": "lm_head",
    **{f"blk.{block}.attn_q.weight": f"model.layers.{block}.self_attn.q_proj" for block in range(3)},
    **{f"blk.{block}.ffn_down.weight": f"model.layers.{block}.mlp.down_proj" for block in range(3)},
}  # fmt: skip


def read(config):
    return read_choices(json.dumps(config), "auto-round", NAMES, "qwen3moe", "it")


def to_standard_regex(key):
    if not any(sign in key for sign in (".*", "^", "$", "|", "(", ")", "[", "]", "?", "+")):
        return re.escape(key)
    return re.sub(r"\.(?!\*)", r"\\.", key)


KEYS = [
    "self_attn", "mlp", "mlp.*", "lm_head", "layers.1", "model.layers.1.mlp.down_proj", "q_proj$", "^model.layers.[02]",
    "embed_tokens", "no_such", "down_proj|q_proj", "layers.1.self_attn.q_proj",
]  # fmt: skip


@given(st.lists(st.sampled_from(KEYS), unique=True, min_size=1), st.randoms())
def test_keys_are_searched_for_as_auto_round_does(keys, rng):
    config = {key: rng.choice(["GGUF:Q4_K_S", "gguf:q6_k", "Gguf:Q8_0"]) for key in keys}
    wanted = {key: value for key, value in config.items() if key in MODULES.values()}
    for key in [key for key in keys if key not in MODULES.values()]:
        wanted |= {path: config[key] for path in MODULES.values() if re.search(to_standard_regex(key), path)}
    kinds = {"GGUF:Q4_K_S": "q4_K", "GGUF:Q6_K": "q6_K", "GGUF:Q8_0": "q8_0"}
    found = read(config)
    assert found.formats == {name: kinds[wanted[path].upper()] for name, path in MODULES.items() if path in wanted}
    assert any("'no_such'" in note for note in found.notes) == ("no_such" in keys)


@pytest.mark.parametrize(
    ("value", "fmt", "note"),
    [
        ("gguf:q2_k_s", "q2_K", None),
        ("GGUF:Q4_K_M", "q4_K", "is the type q4_K"),
        ("GGUF:Q3_K_L", "q3_K", "is the type"),
        ({"scheme": "GGUF:Q4_K_S"}, "q4_K", None),
        ({"scheme": "gguf:q8_0"}, "q8_0", None),
        ("GGUF:Q5_1", "q5_1", None),
        ({"scheme": "GGUF:Q4_K_S", "bits": 6}, "q6_K", "6 bits alone"),
        ({"bits": 4}, "q4_K", "4 bits alone"),
        ({"bits": 8}, "q8_0", "8 bits"),
        ({"bits": 3, "group_size": 16, "sym": True, "data_type": "int"}, "q3_K", "3 bits"),
        ({"bits": 16}, None, None),
        ({"bits": 16, "data_type": "float"}, None, None),
        ({"data_type": "fp16"}, None, None),
        ("BF16", None, None),
        ({"scheme": "bf16"}, None, None),
    ],
)
def test_schemes(value, fmt, note):
    found = read({"mlp": value, "lm_head": "GGUF:Q6_K"})
    assert found.formats.get("blk.1.ffn_down.weight") == fmt
    assert found.formats["output.weight"] == "q6_K"
    assert len(found.notes) == (note is not None)
    assert note is None or note in found.notes[0]


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ("GGUF:Q4_K", "Write GGUF:Q4_K_S instead"),
        ("W4A16", "Write GGUF:Q4_K_S instead"),
        ("gguf:iq4_xs", "GGUF:Q4_K_S"),
        ({"bits": 7}, "Known are"),
        ({"bits": 4, "group_size": 128}, "Write GGUF:Q4_K_S"),
        ("MXFP4", "GGUF:Q4_K_S"),
        ({"scheme": "W8A16"}, "Write GGUF:Q8_0"),
        ({"bits": 4, "data_type": "mx_fp"}, "Known are"),
        ({}, "Known are"),
        (True, "Known are"),
        ({"bits": True}, "Known are"),
        ({"bits": "4"}, "Known are"),
        (["GGUF:Q6_K"], "Known are"),
        ({"scheme": ["GGUF:Q6_K"]}, "Known are"),
        ({"scheme": {"bits": 4}}, "Known are"),
    ],
)
def test_what_is_no_type_says_what_to_write(value, instead):
    with pytest.raises(RecipeError, match="no type of GGUF") as caught:
        read({"mlp": value})
    assert instead in caught.value.remedy


def test_keys_that_decide_nothing():
    config = {
        "mlp.down_porj": "GGUF:Q6_K", "input_layernorm": {"bits": 16}, "mlp.gate": {"bits": 16},
        "model.layers.0.mlp.down_proj": "GGUF:Q8_0", "down_proj": "GGUF:Q4_K_S", r"layers\.[0-2]": "GGUF:Q2_K_S",
    }  # fmt: skip
    found = read(config)
    assert found.formats == {f"blk.{block}.ffn_down.weight": "q4_K" for block in range(3)}
    nothing, dots, hidden = found.notes
    assert nothing.startswith("2 keys find no tensor: 'mlp.down_porj', 'layers")
    assert "bare" in dots
    assert "1 of 6 keys decides nothing" in hidden
    assert "'model.layers.0.mlp.down_proj' (behind 'down_proj')" in hidden


@pytest.mark.parametrize("outer", ["model.language_model.", "language_model.model.", "thinker.model."])
def test_models_that_see_as_well(outer):
    config = {
        f"{outer}layers.1.mlp.down_proj": "GGUF:Q6_K", f"^{outer}layers.[0-9]+.self_attn": "GGUF:Q5_K_S",
        "visual.blocks": {"bits": 16},
    }  # fmt: skip
    found = read(config)
    wanted = {f"blk.{block}.attn_q.weight": "q5_K" for block in range(3)}
    assert found.formats == {"blk.1.ffn_down.weight": "q6_K", **wanted}
    assert found.notes == ("1 key finds no tensor: 'visual.blocks'.",)


@pytest.mark.parametrize("dialect", ["auto-round", "mlx-lm"])
def test_rows_that_no_type_fills(dialect, tmp_path):
    recipe = recipe_of({"blk.0.ffn_up.weight": "q4_K", "blk.0.ffn_down.weight": "q4_K"})
    odd = recipe.tensors[0].model_copy(update={"shape": (36, 4), "format": "iq4_nl"})
    recipe = recipe.model_copy(update={"tensors": (odd, recipe.tensors[1])})
    texts, exported = export_recipe(recipe, dialect, tmp_path / "r.json")
    config = json.loads(next(iter(texts.values())))
    entry = config.get("quantization", config)["model.layers.0.mlp.up_proj"]
    assert entry is False or entry["bits"] == 16
    assert any("blk.0.ffn_up.weight" in note and "rows" in note for note in exported.notes)
