from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import RecipeError
from planner.formats.ggml import formats
from planner.gguf import fallback, requires_imatrix, tensor_order, why_left_alone


@pytest.mark.parametrize(
    ("name", "shape", "left_alone"),
    [
        ("blk.0.attn_q.weight", (256, 256), False),
        ("blk.0.ffn_down_exps.weight", (512, 256, 8), False),
        ("token_embd.weight", (256, 4096), False),
        ("output.weight", (256, 4096), False),
        ("per_layer_token_embd.weight", (256, 4096), False),
        ("blk.0.attn_q.weight", (256,), True),
        ("blk.0.attn_q.weight", (256, 1, 1), True),
        ("blk.0.attn_q.weight", (256, 1, 2), False),
        ("blk.0.attn_q.bias", (256, 2), True),
        ("blk.0.attn_q.weight_scale", (256, 2), True),
        ("five5", (256, 2), False),
        ("sixsix", (256, 2), True),
        ("blk.0.attn_q_norm.weight", (128, 32), True),
        ("blk.0.attn_norm_2.weight", (128, 32), False),
        ("blk.0.ffn_gate_inp.weight", (256, 8), True),
        ("blk.0.ffn_gate_inp_shexp.weight", (256, 8), False),
        ("blk.0.ssm_conv1d.weight", (4, 256), True),
        ("blk.0.ssm_in.weight", (256, 256), False),
        ("blk.0.time_mix_w1.weight", (256, 32), True),
        ("blk.0.time_mix_key.weight", (256, 256), False),
        ("blk.0.altup_proj.weight", (4, 4), True),
        ("position_embd.weight", (256, 512), True),
        ("token_types.weight", (256, 2), True),
        ("v.position_embd.weight", (256, 512), True),
        ("v.patch_embd.weight", (16, 16, 3, 256), True),
        ("blk.0.indexer.k_proj.weight", (256, 64), True),
    ],
)
def test_what_llama_cpp_leaves_alone(name, shape, left_alone):
    assert (why_left_alone(name, shape, "llama") is not None) == left_alone


def test_rules_of_one_architecture_and_of_types():
    assert why_left_alone("blk.0.ssm_beta.weight", (256, 64), "glm5-next")
    assert why_left_alone("blk.0.ssm_beta.weight", (256, 64), "llama") is None
    assert why_left_alone("x.weight", (256, 64), "llama", "i32")
    assert why_left_alone("x.weight", (256, 64), "llama", "bf16") is None


@pytest.mark.parametrize(
    ("wanted", "row_length", "given_"),
    [
        ("q4_K", 512, "q4_K"), ("q4_K", 288, "q5_0"), ("q4_K", 100, "f16"), ("q5_K", 32, "q5_1"), ("q6_K", 96, "q8_0"),
        ("iq1_s", 32, "iq4_nl"), ("iq4_xs", 64, "iq4_nl"), ("q3_K", 64, "q4_0"), ("tq2_0", 64, "q4_0"),
        ("q4_0", 33, "f16"), ("q8_0", 32, "q8_0"), ("bf16", 7, "bf16"),
    ],
)  # fmt: skip
def test_fallbacks_are_llama_cpps(wanted, row_length, given_):
    assert fallback(formats()[wanted], row_length).name == given_


def test_every_format_has_a_fallback_that_fits_or_an_error():
    for fmt in formats().values():
        for row_length in (1, 32, 33, 64, 128, 256, 288):
            try:
                assert fallback(fmt, row_length).fits(row_length)
            except RecipeError:
                assert fmt.block > 32


def test_who_needs_an_imatrix():
    def needing(name):
        return {fmt.name for fmt in formats().values() if requires_imatrix(name, fmt)}

    everywhere = {"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"}
    assert needing("blk.0.attn_q.weight") == everywhere
    # llama-quantize lets these pass, and the kernel aborts
    assert needing("output.weight") == needing("token_embd.weight") == {"iq2_xxs", "iq2_xs", "iq1_s"}


def layer(name):
    """sscanf(name, "blk.%d."): read from left to right, as far as it goes."""
    if not name.startswith("blk."):
        return -1
    rest = name[4:].lstrip(" \t\n\v\f\r")
    sign = rest[:1] if rest[:1] in ("+", "-") else ""
    digits = ""
    for letter in rest[len(sign) :]:
        if letter not in "0123456789":
            break
        digits += letter
    return int(sign + digits) if digits else -1


def before(a, b):
    """weight_name_comparer."""
    if layer(a) != layer(b):
        return layer(a) < layer(b)
    return a.encode() < b.encode()


parts = st.sampled_from(
    ["blk.", "1", "0", "12", "9", ".", "-", "+", " ", "a", "output", "é", "B", "token_embd", "\U0001f600", "\uffff"]
)


@given(st.lists(st.lists(parts, max_size=5).map("".join), unique=True))
def test_tensors_are_ordered_as_the_loader_does(names):
    expected = sorted(names, key=functools.cmp_to_key(lambda a, b: -1 if before(a, b) else 1 if before(b, a) else 0))
    assert tensor_order(names) == expected


def test_the_order_of_a_usual_model():
    names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "token_embd.weight", "a.blk.0", "blk.2"]
    assert tensor_order(names) == [
        "a.blk.0",
        "output.weight",
        "token_embd.weight",
        "blk.2",
        "blk.2.a",
        "blk.2.b",
        "blk.10.a",
    ]
