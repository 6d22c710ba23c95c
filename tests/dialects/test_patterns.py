"""Merged patterns find the same tensors as names one by one, and no others."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dialects.patterns import any_of, compacted, escaped, escaped_ecmascript, numbers

FORMATS = st.sampled_from(["q4_K", "q6_K", "iq3_s"])
ROLES = st.sampled_from([".attn_q.weight", ".attn_k.weight", ".ffn_down.weight", ".ffn_down_exps.weight", ".a", ".ab"])
BLOCKS = st.integers(0, 120).map(str) | st.sampled_from(["007", "00", "999999999999999999999"])
NAMES = st.builds("{}blk.{}{}".format, st.sampled_from(["", "v.", "x y."]), BLOCKS, ROLES) | st.sampled_from(
    ["output.weight", "token_embd.weight", "a+b", "[", "blk.", "blk..x", "blk.1", "ablk.1.x"]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, FORMATS, max_size=60), st.sets(NAMES, max_size=20))
def test_exactly_the_same_tensors(formats, others):
    patterns = compacted(formats, escaped)
    assert len(patterns) <= len(formats)
    for name in others | set(formats):
        found = {fmt for pattern, fmt in patterns if re.search(pattern, name)}
        assert found == ({formats[name]} if name in formats else set()), (name, patterns)


@settings(max_examples=300, deadline=None)
@given(st.sets(st.integers(0, 400), min_size=1))
def test_numbers(members):
    pattern = re.compile(numbers(map(str, members)))
    assert {number for number in range(1000) if pattern.fullmatch(str(number))} == members


@settings(max_examples=300, deadline=None)
@given(st.sets(st.text("ab.", min_size=1, max_size=6), min_size=1, max_size=5))
def test_any_of(texts):
    pattern = re.compile(any_of(sorted(texts), escaped))
    assert all(pattern.fullmatch(text) for text in texts)
    assert not any(pattern.fullmatch(text + "c") for text in texts)
    assert "(|" not in pattern.pattern
    assert "|)" not in pattern.pattern


def test_few_patterns():
    blocks = {f"blk.{block}.{role}.weight": "q4_K" for block in range(40) for role in ("attn_q", "attn_k", "ffn_up")}
    assert (
        compacted(blocks, escaped) == [(r"^blk\.([0-9]|[1-3][0-9])\.(attn_(k|q)|ffn_up)\.weight$", "q4_K")]
        or len(compacted(blocks, escaped)) == 1
    )
    blocks["blk.7.attn_q.weight"] = "q6_K"
    assert len(compacted(blocks, escaped)) == 3


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=10))
def test_escapes_are_ascii(text):
    written = escaped_ecmascript(text, " ,=")
    assert all(33 <= ord(character) < 127 and character not in ",=" for character in written)
    assert re.fullmatch(written.encode(), text.encode("utf-8", "surrogateescape"))
