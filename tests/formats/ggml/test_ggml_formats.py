"""The table of formats against the gguf package's, and the names that users give."""

from __future__ import annotations

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import KernelError, RecipeError, UsageError
from planner.formats.ggml import (
    CANDIDATES,
    FORMAT_SETS,
    format_by_id,
    format_named,
    formats,
    library,
    library_digest,
    library_version,
    select_formats,
)
from planner.formats.mlx import AFFINE

KNOWN = {kind.name.lower(): kind for kind in gguf.GGMLQuantizationType}
WRONG_THERE = {"q8_1"}  # the gguf package has the size of older versions: two f32 where ggml has two f16
BOTH = sorted(name for name in formats() if name.lower() in KNOWN)


def test_the_library_and_the_gguf_package_know_the_same_types():
    assert len(BOTH) >= 30
    assert set(CANDIDATES) <= set(BOTH)
    assert {"f32", "f16", "bf16", "tq1_0", "tq2_0", "mxfp4"} <= set(BOTH)


@pytest.mark.parametrize("name", BOTH)
def test_sizes_and_numbers(name):
    entry, kind = formats()[name], KNOWN[name.lower()]
    if name not in WRONG_THERE:
        assert (entry.block, entry.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
    assert entry.id == kind.value
    assert entry.bpw == 8 * entry.block_bytes / entry.block
    assert format_by_id(kind.value) is entry
    assert entry.quantized == (name not in ("f32", "f16", "bf16", "i8", "i16", "i32", "i64", "f64"))


def test_nineteen_candidates():
    assert len(CANDIDATES) == len(set(CANDIDATES)) == 19
    needing = {name for name in CANDIDATES if formats()[name].needs_imatrix}
    assert needing == {"iq1_s", "iq2_xxs", "iq2_xs"}
    assert format_by_id(10**6) is None
    assert format_by_id(-1) is None


@given(st.sampled_from(BOTH), st.integers(-4096, 4096))
def test_rows_are_whole_blocks(name, length):
    entry = formats()[name]
    assert entry.fits(length) == (length > 0 and length % entry.block == 0)
    if entry.fits(length):
        assert entry.row_bytes(length) * entry.block == length * entry.block_bytes
    else:
        with pytest.raises(ValueError, match="no whole number"):
            entry.row_bytes(length)


@pytest.mark.parametrize("name", [n for n in BOTH if formats()[n].for_weights])
def test_names_in_any_case(name):
    assert format_named(name) is format_named(name.upper()) is format_named(f" {name.lower()} ") is formats()[name]


@pytest.mark.parametrize(
    ("name", "near"), [("q4k", "q4_K"), ("iq3xxs", "iq3_xxs"), ("q9_K", "q6_K"), ("q8", "q8_0"), ("Q4_K_M", "q4_K")]
)
def test_wrong_names_get_near_ones(name, near):
    with pytest.raises(UsageError, match="is not a tensor type") as caught:
        format_named(name)
    assert near in caught.value.problem


@pytest.mark.parametrize("name", ["q8_K", "q8_1", "i32", "f64", "", "x" * 1000])
def test_types_that_are_not_for_weights(name):
    with pytest.raises(UsageError, match="is not a tensor type"):
        format_named(name)


def names(choice):
    return {entry.name for entry in select_formats(choice)}


def test_sets():
    assert names("all") == set(CANDIDATES)
    assert names("k") == {"q2_K", "q3_K", "q4_K", "q5_K", "q6_K"}
    assert names("LEGACY") == {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}
    assert names("cpu-repack") == set(FORMAT_SETS["cpu-repack"])
    assert names("k,iq,legacy") == names("all")
    assert names(" k , q8_0,,") == names("k") | {"q8_0"}
    assert names(["k", "bf16"]) == names("k") | {"bf16"}
    assert names("-iq") == names("k,legacy")
    assert names("all,-iq1_s,-legacy,q8_0") == names("all") - {"iq1_s"} - names("legacy") | {"q8_0"}
    assert names("mxfp4,tq2_0") == {"mxfp4", "tq2_0"}


def test_smallest_first_and_each_once():
    chosen = select_formats("all,q4_K,Q4_k")
    assert [entry.bpw for entry in chosen] == sorted(entry.bpw for entry in chosen)
    assert len({entry.name for entry in chosen}) == len(chosen)


@pytest.mark.parametrize("choice", ["", ",", "q4_K,-k", "-all", []])
def test_nothing_left(choice):
    with pytest.raises(UsageError, match="No types are left") as caught:
        select_formats(choice)
    assert "cpu-repack" in caught.value.remedy


@pytest.mark.parametrize("choice", ["q4_k_m", "k,nonsense", "-nonsense", "--k"])
def test_unknown_types(choice):
    with pytest.raises(UsageError, match="is not a tensor type"):
        select_formats(choice)


def test_which_library():
    assert library_version()[0].isdigit()
    assert len(library_digest()) == 64


@pytest.mark.parametrize("what", ["missing", "text", "other"])
def test_a_library_of_the_users_own(what, tmp_path, monkeypatch):
    path = tmp_path / "libggml-base.so"
    if what == "text":
        path.write_text("no library")
    elif what == "other":
        import _ctypes

        path = _ctypes.__file__  # a library, but not that one
    monkeypatch.setenv("PLANNER_GGML", str(path))
    with pytest.raises(KernelError) as caught:
        library.load.__wrapped__()
    assert "PLANNER_GGML" in str(caught.value)
    monkeypatch.setenv("PLANNER_GGML", str(library.load().path))
    assert library.load.__wrapped__().version == library_version()


@given(st.sampled_from(BOTH), st.lists(st.integers(1, 64), min_size=1, max_size=4), st.integers(1, 8))
def test_bytes_of_a_tensor_are_those_of_its_rows(name, shape, blocks):
    entry = formats()[name]
    shape[0] = blocks * entry.block
    rows = 1
    for size in shape[1:]:
        rows *= size
    assert entry.tensor_bytes(shape) == rows * entry.row_bytes(shape[0])
    entry.check_rows("a", shape[0])


@pytest.mark.parametrize(("entry", "piece"), [(formats()["q4_K"], "blocks"), (AFFINE["mlx_q4_g128"], "groups")])
def test_rows_that_blocks_do_not_fill(entry, piece):
    with pytest.raises(RecipeError, match=f"^a.weight cannot be {entry.name}: its rows of 1,000 weights") as found:
        entry.check_rows("a.weight", 1000)
    assert str(found.value).endswith(f"no multiple of {entry.block}.\nChoose a format with smaller {piece}.")
    with pytest.raises(ValueError, match="no whole number"):
        entry.tensor_bytes((1000, 2))
