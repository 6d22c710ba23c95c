"""Names of tensors taken apart, once for all: what each module makes of a name is what the parser says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.dialects.patterns import compacted, escaped
from planner.names.gguf import Name, ahead, block_prefix, has_massive_channels, is_expert, parse_name, role_of
from planner.report.columns import role_name

towers = st.sampled_from(["", "v.", "enc.", "mm.a."])
numbers = st.integers(0, 10**6).map(str)
roles = st.sampled_from(["attn_q", "ffn_down", "ffn_down_exps", "ffn_up", "nextn.eh_proj", "time_mix_w1", "ffn_norm"])
kinds = st.sampled_from([".weight", ".bias", ""])


@given(towers, numbers, roles, kinds)
def test_all_read_a_block_s_tensor_alike(tower, number, role, kind):
    name = f"{tower}blk.{number}.{role}{kind}"
    assert parse_name(name) == Name(tower, number, role + kind)
    assert role_of(name) == (None if tower else int(number), role)
    assert block_prefix(name) == f"{tower}blk.{number}"
    assert role_name(name) == tower + role + (kind if kind == ".bias" else "")
    assert has_massive_channels(name) == role.startswith("ffn_down")
    assert not is_expert(name)
    assert ahead([name]) == ({name} if role.startswith("nextn.") and not tower else set())


@given(st.text())
def test_any_text_is_taken_apart_and_put_together_again(text):
    for name in (text, f"blk.3.{text}", f"v.blk.03.{text}", f"{text}.weight"):
        parsed = parse_name(name)
        assert name == (parsed.rest if parsed.prefix is None else f"{parsed.prefix}.{parsed.rest}")
        role_of(name), is_expert(name), block_prefix(name), role_name(name), has_massive_channels(name)


@given(numbers, st.integers(0, 500), st.sampled_from(["gate", "up", "down"]), kinds)
def test_one_expert_has_the_role_of_the_stack(number, expert, part, kind):
    name = f"blk.{number}.ffn_{part}.{expert}{kind}"
    assert is_expert(name)
    assert role_of(name) == (int(number), f"ffn_{part}_exps")
    assert has_massive_channels(name) == (part == "down")
    assert not is_expert(f"v.{name}")


def test_numbers_that_no_block_has():
    assert role_of("blk.9999999999.attn_q.weight") == (None, "attn_q")
    assert role_of("blk.3.") == (None, "blk.3.")
    assert parse_name("") == Name("", None, "")


def test_leading_zeros_are_not_merged():
    """A pattern of numbers has none, so such a name has a pattern of its own."""
    names = dict.fromkeys(["blk.0.x.weight", "blk.1.x.weight", "blk.01.x.weight"], "q4_K")
    patterns = [pattern for pattern, _ in compacted(names, escaped)]
    assert patterns == [r"^blk\.[01]\.x\.weight$", r"^blk\.01\.x\.weight$"]
