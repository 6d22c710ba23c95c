"""Open files pickle as references: what is unpickled is the same file, or none."""

from __future__ import annotations

import os
import pickle
import shutil

import numpy as np
import pytest

from planner.formats.ggml import formats
from planner.formats.mlx import AFFINE
from planner.gguf import open_model, read_imatrix
from planner.gguf.covariance import Covariances
from planner.gguf.refinement import Refinement, SharedMetric
from planner.work import Unseen
from tests.models import dense, made_up_covariances, write_imatrix


def again(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.fixture
def model(tmp_path):
    return dense().write(tmp_path / "model.gguf")


def test_a_model_is_opened_once(model):
    with open_model(model) as opened:
        data = pickle.dumps(opened)
        assert len(data) < 1000
        other = pickle.loads(data)
        assert other is not opened
        assert pickle.loads(data) is other
        for tensor in opened.tensors:
            assert np.array_equal(other.raw_rows(again(tensor)), opened.raw_rows(tensor))


def test_calibration_is_opened_too(model, tmp_path):
    matrix = read_imatrix(write_imatrix(model, tmp_path / "x"))
    assert again(matrix).digest == matrix.digest
    covariances = Covariances.open(made_up_covariances(model, tmp_path / "cov.gguf"))
    refinement = again(Refinement(covariances, 0.25))
    assert refinement.key == Refinement(covariances, 0.25).key
    # one file, opened as the one and as the other
    assert again(read_imatrix(tmp_path / "cov.gguf")).digest == covariances.imatrix.digest


def test_those_who_refine_against_one_matrix_have_it_once(model, tmp_path):
    with (
        Covariances.open(made_up_covariances(model, tmp_path / "cov.gguf")) as covariances,
        open_model(model) as opened,
    ):
        tensor = opened["blk.0.ffn_down.weight"]
        data = pickle.dumps(SharedMetric(Refinement(covariances), tensor, 0, users=2))
        first, second = pickle.loads(data), pickle.loads(data)
        metric = first.get()
        assert second.get() is metric
        first.done()
        first.done()
        assert second.get() is metric
        assert np.array_equal(metric.matrix, Refinement(covariances).metric(tensor, 0).matrix)
        other = again(SharedMetric(Refinement(covariances, 0.5), tensor, 0, users=2))
        assert not np.array_equal(other.get().matrix, metric.matrix)


def test_a_copy_is_the_same_and_another_time_of_change_too(model, tmp_path):
    with open_model(model) as opened:
        data = pickle.dumps(opened)
    shutil.copy(model, tmp_path / "copy")
    (tmp_path / "copy").replace(model)
    os.utime(model, ns=(1, 1))
    assert pickle.loads(data).by_name


@pytest.mark.parametrize("change", ["weights", "names", "size"])
def test_another_file_of_the_name_is_told(change, model):
    with open_model(model) as opened:
        data, tensor = pickle.dumps(opened), opened["blk.1.ffn_up.weight"]
        pickle.loads(data)  # and is not remembered beyond a change
    content = bytearray(model.read_bytes())
    if change == "weights":
        content[tensor.offset : tensor.offset + tensor.nbytes] = bytes(tensor.nbytes)
    elif change == "names":
        content = content.replace(b"blk.1.ffn_up", b"blk.7.ffn_up")
    else:
        content += bytes(32)
    model.write_bytes(content)
    with pytest.raises(Unseen, match="another file has its name") as caught:
        pickle.loads(data)
    assert caught.value.path == str(model)


def test_a_file_that_is_not_there_is_told(model):
    with open_model(model) as opened:
        data = pickle.dumps(opened)
    model.unlink()
    with pytest.raises(Unseen, match="no such file") as caught:
        pickle.loads(data)
    assert str(model) == caught.value.path


def test_formats_are_those_of_the_library():
    for fmt in (*formats().values(), *AFFINE.values()):
        assert again(fmt) is fmt
