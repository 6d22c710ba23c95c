"""Activations rounded to 8 bits: against ggml's own kernels, and the errors expected of tensors of all kinds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.formats.mlx import AFFINE
from planner.formats.registry import activation_blocks
from planner.gguf import open_model, read_imatrix
from planner.measure import Survey, moments, survey_tensor
from planner.measure.anatomy import read_anatomy
from planner.measure.rounding import rounded, rounding_of
from planner.sensitivity import NOT_ROUNDED, ErrorParts, Rounding, TensorSensitivity
from tests.models import dense, experts, tied, write_imatrix


@pytest.fixture
def activations() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((40, 768)) * np.random.default_rng(2).standard_normal((40, 768))


def test_fine_blocks_are_those_of_q8_0(activations):
    q8_0, rows = formats()["q8_0"], activations.astype(np.float32)
    theirs = dequantize_rows(q8_0, quantize_rows(q8_0, rows, None), 768)
    ours = rounded(rows.astype(np.float64), 32)
    # its scales have 11 bits
    assert np.abs(ours - theirs).max() <= np.abs(rows).max() * (2**-11 + 1 / 127)
    assert np.square(ours - rows).sum() == pytest.approx(np.square(theirs - rows).sum(), rel=0.05)


def test_coarse_blocks_are_those_of_q8_k(activations):
    """quantize_row_q8_K_ref of ggml-quants.c, block by block."""
    ours = rounded(activations, 256)
    for row, found in zip(activations, ours, strict=True):
        for start in range(0, 768, 256):
            block = row[start : start + 256]
            inverse = -127 / block[np.argmax(np.abs(block))]
            theirs = np.minimum(127, np.rint(inverse * block)) / inverse
            np.testing.assert_allclose(found[start : start + 256], theirs, atol=1e-12)


def test_short_blocks_and_zeros():
    rows = np.random.default_rng(0).standard_normal((3, 300))
    np.testing.assert_array_equal(rounded(rows, 256)[:, 256:], rounded(rows[:, 256:], 256))
    np.testing.assert_array_equal(rounded(np.zeros((2, 64)), 32), np.zeros((2, 64)))


def test_losses_know_the_blocks():
    for name in ("f32", "f16", "bf16", *AFFINE):
        assert activation_blocks()[name] == 0
    sensitivity = TensorSensitivity(ErrorParts(2.0, 3.0, 0.0), "measured", rounding=Rounding(0.01, 0.04))
    error = ErrorParts(0.1, 0.1, 0)
    assert sensitivity.loss(error) == pytest.approx(0.5)
    assert sensitivity.loss(error, 32) == pytest.approx(0.52)
    assert sensitivity.loss(error, 256) == pytest.approx(0.58)
    assert sensitivity.times(2).loss(error, 256) == pytest.approx(1.16)


def roundings(maker, folder, **imatrix) -> dict[str, tuple[Survey, Rounding]]:
    path = maker.write(folder / "model.gguf")
    matrix = read_imatrix(write_imatrix(path, folder / "x.imatrix", **imatrix))
    with open_model(path) as model:
        anatomy, is_tied = read_anatomy(model), "output.weight" not in model.by_name
        surveys = [
            survey_tensor(model, tensor, moments(tensor, matrix), find_massive="ffn_down" in tensor.name)
            for tensor in model.tensors
            if tensor.rows > 1
        ]
        return {survey.tensor.name: (survey, rounding_of(survey, anatomy, tied=is_tied)) for survey in surveys}


@pytest.mark.parametrize("maker", [dense(), experts()])
def test_every_product_has_one(maker, tmp_path):
    for name, (_, found) in roundings(maker, tmp_path).items():
        if name == "token_embd.weight":
            assert found == NOT_ROUNDED
        else:
            assert 1e-6 < found.fine < found.coarse < 0.01, name


def test_a_tied_embedding_is_multiplied(tmp_path):
    assert roundings(tied(), tmp_path)["token_embd.weight"][1].coarse > 0


def test_one_large_channel_spoils_its_block(tmp_path):
    """Drawn by hand: Gaussian activations with the imatrix's moments, through all weights."""
    with open_model(dense().write(tmp_path / "model.gguf")) as model:
        tensor, anatomy = model["blk.0.attn_q.weight"], read_anatomy(model)
        plain = moments(tensor, None)
        second, mean = plain.second.copy(), plain.mean.copy()
        second[0, 5], mean[0, 7], second[0, 7] = 400.0, 30.0, 901.0
        known = replace(plain, second=second, mean=mean, weights=second.astype(np.float32), has_mean=True)
        small, large = (survey_tensor(model, tensor, each, find_massive=False) for each in (plain, known))
        weight = model.rows(tensor, 0, tensor.rows).astype(np.float64)
        before, after = (rounding_of(survey, anatomy, tied=False) for survey in (small, large))
    rows = mean[0] + np.sqrt(second[0] - mean[0] ** 2) * np.random.default_rng(9).standard_normal((2000, len(mean[0])))
    for block, found in ((32, after.fine), (256, after.coarse)):
        error = (rounded(rows, block) - rows) @ weight.T
        assert found == pytest.approx(np.square(error).sum() / np.square(rows @ weight.T).sum(), rel=0.15)
    assert after.coarse / after.fine > 3 * before.coarse / before.fine


def test_massive_channels_are_left_out(tmp_path):
    with open_model(dense().write(tmp_path / "model.gguf")) as model:
        tensor, anatomy = model["blk.0.ffn_down.weight"], read_anatomy(model)
        plain = moments(tensor, None)
        second = plain.second.copy()
        second[0, 5] = 1e6
        massive = replace(plain, second=second, weights=second.astype(np.float32))
        surveys = [survey_tensor(model, tensor, each, find_massive=True) for each in (plain, massive)]
        assert surveys[1].massive[0, 5]
        without, with_it = (rounding_of(survey, anatomy, tied=False) for survey in surveys)
    assert with_it.fine == pytest.approx(without.fine, rel=0.05)
    assert with_it.coarse == pytest.approx(without.coarse, rel=0.05)
