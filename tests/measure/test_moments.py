"""What the imatrix says of a tensor, and what stands for what it does not say."""

from __future__ import annotations

import numpy as np
import pytest

from planner.gguf import open_model, read_imatrix
from planner.gguf.legacy import legacy_bytes
from planner.measure import moments
from tests.models import experts, write_imatrix

EXPERTS, PLAIN = "blk.0.ffn_down_exps.weight", "blk.0.attn_q.weight"


@pytest.fixture
def model(tmp_path):
    with open_model(experts().write(tmp_path / "model.gguf")) as opened:
        yield opened


def read(model, tmp_path, change=None, kind="gguf", **options):
    path = write_imatrix(model.path, tmp_path / "x.imatrix", change=change, **options)
    if kind == "dat":
        entries = read_imatrix(path).entries.items()
        path.write_bytes(legacy_bytes(((name, entry.values) for name, entry in entries), chunk_count=1, datasets=()))
    return read_imatrix(path)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_what_is_whole_is_taken_as_it_is(kind, model, tmp_path):
    imatrix = read(model, tmp_path, kind=kind, counts={EXPERTS: [3, 0, 9, 4]})
    for name in (EXPERTS, PLAIN):
        entry, found = imatrix.match(model[name]), moments(model[name], imatrix)
        assert np.array_equal(found.second, entry.values.astype(np.float64))
        assert np.array_equal(found.weights, entry.values)
        assert np.array_equal(found.usage, entry.counts / entry.counts.mean())
        assert found.known
        if kind == "gguf":
            assert np.array_equal(found.mean, entry.means.astype(np.float64))


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_channels_that_nothing_reached_count_as_the_median_of_the_others(kind, model, tmp_path):
    holes = [0, 7, *range(32, 64)]

    def change(name, second, means):
        if name in (EXPERTS, PLAIN):
            second[0, holes[1:]], second[0, 0] = 0, 1e-39  # with sums that then say nothing
            second[0, 1] = 1e9

    imatrix = read(model, tmp_path, change, kind)
    for name in (EXPERTS, PLAIN):
        entry, found = imatrix.match(model[name]), moments(model[name], imatrix)
        assert np.array_equal(found.weights, entry.values)  # the kernels get what there is
        seen = np.delete(entry.values[0].astype(np.float64), holes)
        assert (found.second[0, holes] == np.median(seen)).all()
        assert np.array_equal(np.delete(found.second[0], holes), seen)
        assert (found.variance[0, holes] == found.second[0, holes]).all()
        assert not found.mean[0, holes].any()
        assert np.array_equal(found.second[1:], entry.values[1:].astype(np.float64))


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_an_expert_of_zeros_is_one_that_was_never_used(kind, model, tmp_path):
    def change(name, second, means):
        if name == EXPERTS:
            second[[1, 3]] = 0

    found = moments(model[EXPERTS], read(model, tmp_path, change, kind))
    assert np.array_equal(found.usage, [2, 0, 2, 0])
    assert (found.second[[1, 3]] == 1).all()
    assert not found.mean[[1, 3]].any()
    if kind == "gguf":
        idle = moments(model[EXPERTS], read(model, tmp_path, counts={EXPERTS: [64, 0, 64, 0]}))
        assert np.array_equal(found.usage, idle.usage)
        assert np.array_equal(found.second, idle.second)
        assert np.array_equal(found.mean, idle.mean)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_a_tensor_of_zeros_is_not_known(kind, model, tmp_path):
    def change(name, second, means):
        if name in (EXPERTS, PLAIN):
            second[:] = 0

    imatrix = read(model, tmp_path, change, kind)
    for name in (EXPERTS, PLAIN):
        found = moments(model[name], imatrix)
        assert not found.known
        assert (found.second == 1).all()
        assert (found.usage == 1).all()
        assert not found.mean.any()
    assert not moments(model[PLAIN], read(model, tmp_path, counts={PLAIN: [0]})).known
    assert not moments(model[PLAIN], None).known
