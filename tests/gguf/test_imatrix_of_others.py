"""Importance matrices as others publish them, by the names and in the forms that theirs have.

Unsloth: `imatrix_unsloth.gguf_file` (so that nothing takes it for a model), before July 2025 `imatrix_unsloth.dat`.
Bartowski: `NAME-imatrix.gguf`, before that `NAME.imatrix`, which is legacy. Sums of squares and counts alone, experts
by themselves, none of the embeddings, the output and draft heads; experts that no token reached count zero.
"""

from __future__ import annotations

import shutil
import struct

import numpy as np
import pytest

from planner.gguf import open_model, read_imatrix
from tests.conftest import ok
from tests.models import experts, write_imatrix

IDLE, EXPERTS = 3, 4
COUNTS = {f"blk.0.ffn_{role}_exps.weight": [64, 7, 200, 0] for role in ("gate", "up", "down")}
NOT_IN_IT = ("output.weight", "blk.1.ffn_down_shexp.weight")


@pytest.fixture
def model(here):
    return experts(count=EXPERTS).write(here / "Model-BF16.gguf")


@pytest.fixture
def unsloth(here, model):
    return write_imatrix(model, here / "imatrix_unsloth.gguf_file", sums=False, skip=NOT_IN_IT, counts=COUNTS)


def legacy_of(imatrix, path, dataset):
    """What llama-imatrix wrote before July 2025: means times the calls of a tensor, all its experts flat; an expert
    without tokens ones. `dataset` is the path that it was given."""
    out = struct.pack("<i", len(imatrix.entries))
    for name, entry in imatrix.entries.items():
        calls, values = int(entry.counts.max()), entry.values.ravel()
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, values.size)
        out += (values * np.float32(calls)).astype("<f4").tobytes()
    out += struct.pack("<ii", 125, len(dataset)) + dataset.encode()
    path.write_bytes(out)
    return path


def test_unsloths(model, unsloth, run, here):
    imatrix = read_imatrix(unsloth)
    assert not imatrix.has_means
    with open_model(model) as opened:
        coverage = imatrix.require(opened)
        assert set(coverage.missing) == {"token_embd.weight", *NOT_IN_IT}
        assert coverage.without == ("blk.1.ffn_down_shexp.weight",)
        assert coverage.never_activated == dict.fromkeys(COUNTS, (IDLE,))
        match = imatrix.match(opened["blk.0.ffn_up_exps.weight"])
        assert (match.values[IDLE] == 1).all()
        assert (match.values[0] != 1).any()
        assert match.counts.tolist() == COUNTS["blk.0.ffn_up_exps.weight"]
    shown = ok(run("inspect", unsloth, "--model", model)).out
    assert "ffn_down_shexp" in shown
    assert "1 of 4" in shown
    ok(run("measure", model, "--imatrix", unsloth, "--types", "k", "-t", 1, "--state", "m.planner"))
    ok(run("solve", "--state", "m.planner", "--bpw", 5))
    ok(run("quantize", model, "recipe.json", "out.gguf", "-t", 1))


@pytest.mark.parametrize("name", ["Model-imatrix.gguf", "imatrix.gguf", "IMATRIX_UNSLOTH.GGUF", "imatrix"])
def test_the_name_says_nothing(name, unsloth, here):
    shutil.copy(unsloth, here / name)
    assert read_imatrix(here / name).digest == read_imatrix(unsloth).digest


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("imatrix_unsloth.dat", "unsloth_calibration_Model.txt"),
        ("Model.imatrix", "/training_dir/calibration_datav3.txt"),
    ],
)
def test_their_older_files_say_the_same(name, dataset, model, unsloth, run, here):
    """Weights of the kernels are the same up to rounding; tokens of single experts are not known any more."""
    newer = read_imatrix(unsloth)
    older = read_imatrix(legacy_of(newer, here / name, dataset))
    assert older.legacy
    assert older.datasets == (dataset,)
    assert older.chunk_count == 125
    with open_model(model) as opened:
        assert older.require(opened).covered == newer.require(opened).covered
        for tensor in opened.tensors:
            one, two = newer.weights(tensor), older.weights(tensor)
            assert (one is None) == (two is None)
            if one is not None:
                np.testing.assert_allclose(two, one, rtol=1e-6)
    assert dataset in " ".join(ok(run("inspect", name, "--model", model)).out.split())
    ok(run("measure", model, "--imatrix", name, "--types", "q4_K", "-t", 1, "--state", "old.planner"))


def test_theirs_are_merged(model, unsloth, run, here):
    other = write_imatrix(model, here / "Model-imatrix.gguf", sums=False, skip=NOT_IN_IT, seed=1)
    ok(run("imatrix", "--merge", unsloth, "--merge", other, "-o", "both.gguf"))
    both, one, two = (read_imatrix(path) for path in (here / "both.gguf", unsloth, other))
    for name, entry in both.entries.items():
        assert entry.counts.tolist() == (one.entries[name].counts + two.entries[name].counts).tolist()
        sums = one.entries[name].raw_sum2 + two.entries[name].raw_sum2
        np.testing.assert_allclose(entry.raw_sum2.ravel(), sums.ravel(), rtol=1e-6)
    assert both.entries["blk.0.ffn_up_exps.weight"].counts[IDLE] == 64
    with open_model(model) as opened:
        assert not both.require(opened).never_activated
