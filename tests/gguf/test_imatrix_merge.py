"""Importance matrices merged, converted and written: llama-imatrix's bytes, and sums that add up."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from planner.errors import ImatrixError, OutputError
from planner.gguf import read_imatrix
from planner.gguf.imatrix_writer import write_imatrix, write_legacy_imatrix
from planner.gguf.sums import Sums, TensorSums, merge_imatrices
from tests.models import dense, experts
from tests.models import write_imatrix as make_imatrix

FLOATS = st.floats(0, 1e6, width=32)


@st.composite
def several(draw: st.DrawFn, sizes: dict[str, tuple[int, int]]) -> Sums:
    """Sums of tensors with these values and experts; every expert was used."""
    tensors = {}
    for name, (width, count) in sizes.items():
        tensors[name] = TensorSums(
            draw(arrays(np.float32, width * count, elements=FLOATS)),
            draw(arrays(np.float32, width * count, elements=FLOATS)),
            draw(arrays(np.int64, count, elements=st.integers(1, 4000))),
        )
    return Sums(64, tensors, [draw(st.text(min_size=1).filter(str.isprintable))])


SIZES = {"blk.0.attn_q.weight": (3, 1), "blk.0.ffn_up_exps.weight": (2, 4)}


@settings(max_examples=40, deadline=None)
@given(first=several(SIZES), second=several(SIZES))
def test_what_is_written_is_read_and_merging_adds(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("merge")
    for number, sums in enumerate((first, second)):
        size = write_imatrix(sums, folder / f"{number}.gguf", force=False)
        assert size == (folder / f"{number}.gguf").stat().st_size
    files = [read_imatrix(folder / f"{number}.gguf") for number in range(2)]
    assert files[0].datasets == tuple(first.datasets)
    assert files[0].chunk_count == first.chunk_count
    merged = merge_imatrices(files)
    for name in SIZES:
        one, two, both = first.tensors[name], second.tensors[name], merged.tensors[name]
        np.testing.assert_array_equal(both.sum2, one.sum2 + two.sum2)
        np.testing.assert_array_equal(both.sums, one.sums + two.sums)
        np.testing.assert_array_equal(both.counts, one.counts + two.counts)
    assert merged.datasets == [*first.datasets, *second.datasets]


@settings(max_examples=40, deadline=None)
@given(sums=several(SIZES))
def test_a_legacy_file_keeps_the_means(tmp_path_factory, sums):
    path = tmp_path_factory.mktemp("legacy") / "x.dat"
    assert write_legacy_imatrix(sums, path, force=False) == path.stat().st_size
    back = read_imatrix(path)
    assert back.legacy
    assert back.chunk_count == sums.chunk_count
    for name, (width, count) in SIZES.items():
        entry = sums.tensors[name]
        means = entry.sum2.reshape(count, width) / entry.counts[:, None]
        np.testing.assert_allclose(back.entries[name].values.reshape(count, width), means, rtol=1e-6, atol=1e-30)
    again = merge_imatrices([back], 64)  # and from there to GGUF
    write_imatrix(again, path.with_suffix(".gguf"), force=False)
    for name, entry in read_imatrix(path.with_suffix(".gguf")).entries.items():
        np.testing.assert_allclose(entry.values, back.entries[name].values, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("name", ["sums", "plain"])
def test_a_file_that_is_merged_with_nothing_stays_what_it_is(example, name, tmp_path):
    source: Path = getattr(example, name)
    write_imatrix(merge_imatrices([read_imatrix(source)]), tmp_path / "x.gguf", force=False)
    theirs, ours = read_imatrix(source), read_imatrix(tmp_path / "x.gguf")
    assert ours.digest == theirs.digest
    assert (ours.datasets, ours.chunk_count, ours.chunk_size) == (
        theirs.datasets,
        theirs.chunk_count,
        theirs.chunk_size,
    )
    # llama-imatrix's own bytes
    assert name == "sums" or (tmp_path / "x.gguf").read_bytes() == source.read_bytes()


def test_an_idle_expert_gets_ones_and_an_idle_tensor_nothing_in_a_legacy_file(tmp_path):
    ones, zeros = np.full(4, 8, np.float32), np.zeros(2, np.float32)
    sums = Sums(4, {"a": TensorSums(ones, None, np.array([4, 0])), "b": TensorSums(zeros, None, np.array([0]))})
    write_legacy_imatrix(sums, tmp_path / "x.dat", force=False)
    back = read_imatrix(tmp_path / "x.dat")
    assert list(back.entries) == ["a"]
    assert back.entries["a"].values.tolist() == [[2, 2, 1, 1]]
    with pytest.raises(ImatrixError, match="Nothing was collected"):
        write_legacy_imatrix(Sums(4, {"b": sums.tensors["b"]}), tmp_path / "y.dat", force=False)


def test_one_count_for_all_experts_beside_one_for_each(tmp_path):
    each = Sums(4, {"a": TensorSums(np.ones(4, np.float32), None, np.array([4, 6]))}, ["x"])
    all_ = Sums(4, {"a": TensorSums(np.ones(4, np.float32), None, np.array([8]))}, ["y"])
    write_imatrix(each, tmp_path / "each.gguf", force=False)
    write_imatrix(all_, tmp_path / "all.gguf", force=False)
    for order in (["each", "all"], ["all", "each"]):
        merged = merge_imatrices([read_imatrix(tmp_path / f"{name}.gguf") for name in order])
        assert merged.tensors["a"].counts.tolist() == [12, 14]


def test_sums_that_one_file_lacks_are_dropped(here, run):
    model = dense().write(here / "m.gguf")
    make_imatrix(model, here / "a.gguf", seed=1)
    make_imatrix(model, here / "b.gguf", seed=2, sums=False)
    done = run("imatrix", "--merge", "a.gguf", "--merge", "b.gguf", "-o", "c.gguf")
    assert done.status == 0, done.text
    assert not read_imatrix("c.gguf").has_means


def test_matrices_of_other_models_are_refused(here, run):
    one, other, mixed = (
        dense().write(here / "m.gguf"),
        dense(width=512).write(here / "n.gguf"),
        experts().write(here / "e"),
    )
    for model, name in ((one, "a"), (other, "b"), (mixed, "c")):
        make_imatrix(model, here / f"{name}.imatrix")
    for name in "bc":
        done = run("imatrix", "--merge", "a.imatrix", "--merge", f"{name}.imatrix", "-o", "x.gguf")
        assert done.status == 1
        assert "of another model" in done.err
        done = run("imatrix", one, "--merge", f"{name}.imatrix", "-o", "x.gguf")
        assert done.status == 1
        assert "of another model" in done.err
    assert not (here / "x.gguf").exists()


@pytest.mark.parametrize(("value", "status"), [(1.0, 0), (1e36, 1)])
def test_counts_beyond_those_of_a_legacy_file(value, status, here, run):
    sums = Sums(1, {"a": TensorSums(np.full(4, value, np.float32), None, np.array([1, 2**40]))}, ["x"])
    write_imatrix(sums, here / "x.gguf", force=False)
    done = run("imatrix", "--merge", "x.gguf", "-o", "y.dat", "--output-format", "dat")
    assert done.status == status, done.text
    if status == 0:
        values = read_imatrix("y.dat").entries["a"].values
        np.testing.assert_allclose(values.ravel(), read_imatrix("x.gguf").entries["a"].values.ravel(), rtol=1e-6)
    else:
        assert "too large for a legacy file" in done.err
        assert not (here / "y.dat").exists()


@pytest.mark.parametrize("name", ["blk.0.attn_k.weigh\x01", "a" * 60])
def test_names_that_no_gguf_can_have(name, here, run):
    sums = Sums(4, {name: TensorSums(np.ones(2, np.float32), None, np.array([4]))}, ["x"])
    write_legacy_imatrix(sums, here / "x.dat", force=False)
    done = run("imatrix", "--merge", "x.dat", "-o", "y.gguf")
    assert done.status == 1
    assert "No GGUF can have an entry named" in done.err
    assert not (here / "y.gguf").exists()


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_sums_too_large_to_be_added_up(form, here, run):
    write = write_imatrix if form == "gguf" else write_legacy_imatrix
    write(Sums(4, {"a": TensorSums(np.full(2, 3e38, np.float32), None, np.array([4]))}, ["x"]), here / "x", force=False)
    done = run("imatrix", "--merge", "x", "--merge", "x", "-o", "y.gguf")
    assert done.status == 1
    assert "too large to be added up" in done.err
    assert not (here / "y.gguf").exists()


def test_outputs_are_not_overwritten_and_inputs_never(here, run):
    make_imatrix(dense().write(here / "m.gguf"), here / "a.gguf")
    assert run("imatrix", "--merge", "a.gguf", "-o", "x.dat", "--output-format", "dat").status == 0
    again = run("imatrix", "--merge", "a.gguf", "-o", "x.dat", "--output-format", "dat")
    assert again.status == 1
    assert "--force" in again.err
    before = (here / "a.gguf").read_bytes()
    assert run("imatrix", "--merge", "a.gguf", "-o", "a.gguf", "-f").status == 1
    assert (here / "a.gguf").read_bytes() == before
    with pytest.raises(OutputError):
        write_imatrix(Sums(4), here / "no" / "x.gguf", force=True)


def test_nothing_to_do_says_what_to_give(run, here):
    assert "--text FILE" in run("imatrix").err
    assert "--text FILE" in run("imatrix", "m.gguf").err
    assert "Which model" in run("imatrix", "--text", "x.txt").err


def test_bytes_of_the_header(tmp_path):
    """As `gguf_write_to_file` puts them: key, type and value; name, dimensions without trailing ones, offset."""
    sums = Sums(4, {"a": TensorSums(np.ones(2, np.float32), None, np.array([4]))}, ["t"])
    write_imatrix(sums, tmp_path / "x.gguf", force=False)
    data = (tmp_path / "x.gguf").read_bytes()
    assert data.startswith(b"GGUF" + struct.pack("<IQQ", 3, 2, 4))
    assert struct.pack("<Q", 9) + b"a.in_sum2" + struct.pack("<IQIQ", 1, 2, 0, 0) in data
    assert struct.pack("<Q", 8) + b"a.counts" + struct.pack("<IQIQ", 1, 1, 0, 32) in data
    assert len(data) % 32 == 0


def test_counts_are_asked_about_without_being_changed():
    one = TensorSums(np.ones(6, np.float32), None, np.array([4]))
    assert one.fits(3)
    assert one.counts.tolist() == [4]
    one.set_experts(3)
    assert one.counts.tolist() == [4, 4, 4]
    assert one.fits(1)
    one.set_experts(1)
    assert one.counts.tolist() == [4]
    unlike = TensorSums(np.ones(6, np.float32), None, np.array([4, 5]))
    assert unlike.fits(2)
    assert not unlike.fits(1)
    assert not unlike.fits(3)
    with pytest.raises(ValueError, match="2 experts do not fit 3"):
        unlike.set_experts(3)
    assert unlike.counts.tolist() == [4, 5]
