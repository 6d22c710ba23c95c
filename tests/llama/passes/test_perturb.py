"""Weights in the engine's memory: changed as `planner quantize` would change them, and put back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import InferenceError, UsageError
from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.gguf import open_model, read_imatrix
from planner.gguf.covariance import Covariances
from planner.gguf.quantize import quantize_model
from planner.gguf.refinement import Refinement
from planner.llama.passes.perturb import open_perturber
from planner.measure import moments, survey_tensor
from planner.measure.metric import row_errors
from tests.models import made_up_covariances

CHANGED = "blk.3.ffn_down.weight"
SETTINGS = {"context": 16, "threads": 2, "gpu_layers": 0}


@pytest.fixture
def model(example):
    with open_model(example.model) as opened:
        yield opened


@pytest.fixture
def imatrix(example):
    return read_imatrix(example.sums)


def held(changer, name):
    (weight,) = changer.weights[name]
    return weight.read().copy()


def test_all_weights_are_found_and_are_the_files(example, model, imatrix):
    with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
        quantizable = {tensor.name for tensor in model.tensors if tensor.format == "f16"}
        assert quantizable <= set(changer.weights)
        for name in quantizable:
            assert np.array_equal(held(changer, name), model.raw_rows(model[name]).reshape(-1))


@pytest.mark.parametrize("name", ["q3_K", "q4_0", "iq4_nl"])
def test_a_change_is_what_the_format_does(example, model, imatrix, name):
    tensor, fmt = model[CHANGED], formats()[name]
    with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
        (errors,) = changer.change({CHANGED: fmt}).values()
        rows = model.rows(tensor)
        back = dequantize_rows(fmt, quantize_rows(fmt, rows, imatrix.match(tensor).values[0]), tensor.row_length)
        expected = quantize_rows(formats()["f16"], back, None)
        assert np.array_equal(held(changer, CHANGED), expected.reshape(-1))
        assert np.array_equal(held(changer, "output.weight"), model.raw_rows(model["output.weight"]).reshape(-1))
    survey = survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=True)
    energies = [survey.energy, survey.energy, survey.energy_massive or 1.0]
    assert errors == pytest.approx(row_errors(survey, fmt, 0, rows).sum(axis=1) / energies)


def test_a_change_is_what_refined_codes_are(example, model, tmp_path):
    tensor, fmt = model[CHANGED], formats()["q3_K"]
    path = made_up_covariances(example.model, tmp_path / "cov.gguf")
    with Covariances.open(path) as covariances:
        refinement, imatrix = Refinement(covariances), covariances.imatrix
        with open_perturber(example.model, model, imatrix, refinement=refinement, **SETTINGS) as changer:
            (errors,) = changer.change({CHANGED: fmt}).values()
            quantize_model(
                model, {CHANGED: "q3_K"}, imatrix, tmp_path / "x.gguf", file_type=1, refinement=refinement, threads=1
            )
            with open_model(tmp_path / "x.gguf") as file:
                back = file.rows(file[CHANGED])
            assert np.array_equal(held(changer, CHANGED), quantize_rows(formats()["f16"], back, None).reshape(-1))
        survey = survey_tensor(model, tensor, moments(tensor, imatrix, refinement), find_massive=True)
        energies = [survey.energy, survey.energy, survey.energy_massive or 1.0]
        expected = row_errors(survey, fmt, 0, model.rows(tensor)).sum(axis=1) / energies
    assert errors == pytest.approx(expected, rel=1e-6)


def test_restoring_puts_back_every_bit(example, model, imatrix):
    with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
        changer.change({CHANGED: formats()["q2_K"], "output.weight": formats()["q4_0"]})
        changer.restore([CHANGED])
        assert np.array_equal(held(changer, CHANGED), model.raw_rows(model[CHANGED]).reshape(-1))
        assert not np.array_equal(held(changer, "output.weight"), model.raw_rows(model["output.weight"]).reshape(-1))
        changer.restore()
        assert np.array_equal(held(changer, "output.weight"), model.raw_rows(model["output.weight"]).reshape(-1))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_everything_is_back_whatever_happened(example, model, imatrix, error, monkeypatch):
    checked = []

    def fail_half_way():
        with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
            monkeypatch.setattr(changer, "check", checked.append)
            changer.change({CHANGED: formats()["q2_K"]})
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert checked == [CHANGED]


def test_memory_that_is_not_the_file_is_noticed(example, model, imatrix):
    with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
        (weight,) = changer.weights[CHANGED]
        weight.write(np.array([1], np.uint8), weight.nbytes - 1)
        with pytest.raises(InferenceError, match=r"blk\.3\.ffn_down\.weight in llama\.cpp's memory"):
            changer.check(CHANGED)
        with pytest.raises(ValueError, match="do not fit"):
            weight.write(np.zeros(2, np.uint8), weight.nbytes - 1)


def test_a_change_moves_the_predictions_and_restoring_moves_them_back(example, model, imatrix):
    windows = np.arange(32, dtype=np.int32).reshape(2, 16)

    def logits(changer):
        return np.stack([block.logits.copy() for block in changer.engine.windows(windows, first=8)])

    with open_perturber(example.model, model, imatrix, **SETTINGS) as changer:
        before = logits(changer)
        changer.change({CHANGED: formats()["q2_K"]})
        assert not np.array_equal(logits(changer), before)
        changer.restore()
        assert np.array_equal(logits(changer), before)


def test_a_quantized_model_is_refused_and_one_in_part_is_not(model, imatrix, tmp_path):
    path = tmp_path / "q8_0.gguf"
    matrices = [tensor.name for tensor in model.tensors if tensor.rows > 1]
    quantize_model(model, dict.fromkeys(matrices, "q8_0"), None, path, file_type=7)
    with (
        open_model(path) as quantized,
        pytest.raises(UsageError, match=r"is q8_0, quantized already"),
        open_perturber(path, quantized, None, **SETTINGS),
    ):
        pytest.fail("it was accepted")
    quantize_model(model, {CHANGED: "q8_0"}, None, path, file_type=7, force=True)
    with open_model(path) as partly, open_perturber(path, partly, None, **SETTINGS) as changer:
        assert CHANGED not in changer.weights
        assert changer.weights
