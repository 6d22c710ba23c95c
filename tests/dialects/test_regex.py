"""The automaton finds what other engines find: Python's for ECMAScript, Bash itself for extended expressions."""

from __future__ import annotations

import re
import shutil
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dialects.regex import Regex
from planner.errors import RecipeError

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\.", "c", "1", "[0-9]", "[a-c1]", r"\(", "-", "_"])


def grown(inner):
    return st.one_of(
        st.builds("{}{}".format, inner, inner),
        st.builds("({}|{})".format, inner, inner),
        st.builds("({}){}".format, inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])),
    )


def anchored(inner):
    return (
        grown(inner)
        | st.builds("^{}".format, inner)
        | st.builds("({}$|{})".format, inner, inner)
        | st.builds("(?{}{}){}".format, st.sampled_from(["=", "!"]), inner, inner)
        | st.builds(r"{}\{}{}".format, inner, st.sampled_from(["b", "B"]), inner)
    )


PATTERNS = st.recursive(ATOMS, anchored, max_leaves=10)
# glibc has its own ideas of anchors within repetitions: `(^.)+` does not find "11"
BASH_PATTERNS = st.builds("{}{}{}".format, st.sampled_from(["", "^"]), st.recursive(ATOMS, grown, max_leaves=10),
                          st.sampled_from(["", "$"]))  # fmt: skip
NAMES = st.text("abc.1(-_", max_size=8)


@settings(max_examples=800, deadline=None)
@given(PATTERNS, st.lists(NAMES, min_size=1, max_size=6))
def test_as_pythons_does(pattern, names):
    regex = Regex(pattern, "ecmascript")
    for name in names:
        if name or r"\B" not in pattern:  # which Python found nowhere in an empty text before 3.14
            assert regex.search(name) == bool(re.search(pattern, name)), (pattern, name)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no Bash")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(BASH_PATTERNS, NAMES), min_size=20, max_size=40))
def test_as_bash_does(pairs):
    script = 'while (($#)); do [[ "$2" =~ $1 ]] && echo 1 || echo 0; shift 2; done'
    words = [word for pair in pairs for word in pair]
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
    for (pattern, name), found in zip(pairs, done.stdout.split(), strict=True):
        assert Regex(pattern, "ere").search(name) == (found == "1"), (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(r"^a\x20b\x2cc$", "a b,c"), (r"^\x41\xc3\xa4$", "Aä"), ("^Aä$", "Aä"), (r"a\td", "a\td"), ("(?:a|b)+?c", "abc"),
     (r"[\d_]\.\w\s", "1.a "), ("[[:digit:]-]$", "x-")],
)  # fmt: skip
def test_escapes(pattern, name):
    assert Regex(pattern, "ecmascript").search(name)
    assert not Regex(pattern, "ecmascript").search("~")


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "a)", "[a", "*", "a**", "(?<=a)", "(?=a)*", "(?=a", r"(a)\1", "a{2,1}", "a{", "\\", "[b-a]", r"\xg0"],
)
def test_what_std_regex_or_planner_refuses(pattern):
    with pytest.raises(RecipeError, match="the pattern") as caught:
        Regex(pattern, "ecmascript")
    assert caught.value.remedy


@pytest.mark.parametrize("pattern", [r"blk\.\d+", r"\bffn"])
def test_what_bash_reads_otherwise(pattern):
    with pytest.raises(RecipeError, match="Bash understands otherwise"):
        Regex(pattern, "ere")


def test_no_pattern_makes_us_wait():
    begin = time.monotonic()
    looking = ("(?!a*b)(?=a*)b", "((?!.*b)a)*b", "(?=(a|(?=a*b))*)b")
    for pattern in ("(a+)+$", "(a|a)*b", "(a|aa)+" * 20 + "$", "(a*)*(a*)*b", "(.*a){20}", *looking):
        Regex(pattern, "ecmascript").search("a" * 2000 + "c")
    for pattern in ("(((a{100}){100}){100}){100}", "(" * 5000, "a{9999}" * 9999):
        with pytest.raises(RecipeError):
            Regex(pattern, "ecmascript")
    assert time.monotonic() - begin < 20


def test_layers_but_one():
    regex = Regex(r"^blk\.(?!0\.)\d+\.ffn_(?=up|gate)", "ecmascript")
    found = [
        f"blk.{i}.ffn_{role}"
        for i in (0, 1, 10)
        for role in ("up", "gate", "down")
        if regex.search(f"blk.{i}.ffn_{role}")
    ]
    assert found == ["blk.1.ffn_up", "blk.1.ffn_gate", "blk.10.ffn_up", "blk.10.ffn_gate"]


def test_names_alone_are_known():
    assert Regex(r"^blk\.0\.a-b$", "ere").literal == "blk.0.a-b"
    assert Regex(r"^blk.0$", "ere").literal is None
    assert Regex(r"blk", "ere").literal is None
    assert Regex("", "ecmascript").literal is None
    assert Regex("^$", "ecmascript").literal == ""
