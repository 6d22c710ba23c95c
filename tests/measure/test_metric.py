"""Errors against the design's formulas, written out row by row; estimates against errors over all rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import ImatrixError, ModelError
from planner.formats.ggml import dequantize_rows, formats, quantize_rows, select_formats
from planner.gguf import open_model, read_imatrix
from planner.gguf.reach import Reach
from planner.measure import Job, Settings, measure_jobs, moments, survey_in_place, survey_tensor
from planner.measure.metric import row_errors
from planner.measure.survey import massive_channels
from planner.work import Stopped, Threads
from tests.models import FEW, Maker, dense, experts, tied, write_imatrix

FORMATS = select_formats(FEW)


def surveyed(model, imatrix, name, *, find_massive=False):
    tensor = model[name]
    return survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=find_massive)


def by_hand(model, imatrix, name, fmt, massive=()):
    """err_var, err_mean and err_massive of the design, over all rows, in plain float64."""
    tensor = model[name]
    entry = imatrix.entries[name] if imatrix and name in imatrix.entries else None
    top, bottom = np.zeros(3), np.zeros(3)
    everything = model.rows(tensor).reshape(tensor.matrices, -1, tensor.row_length)
    for expert, rows in enumerate(everything):
        width = tensor.row_length
        weights = None if entry is None else np.ascontiguousarray(entry.values[expert])
        v = np.ones(width) if entry is None else entry.values[expert].astype(np.float64)
        m = np.zeros(width) if entry is None or entry.means is None else entry.means[expert].astype(np.float64)
        seen = 1.0 if entry is None else entry.counts[expert]
        usual = np.ones(width, bool)
        usual[list(massive)] = False
        var = np.maximum(v - m**2, 0)
        for row in rows:
            back = dequantize_rows(fmt, quantize_rows(fmt, row[None].copy(), weights), width)[0]
            d, x = back.astype(np.float64) - row, row.astype(np.float64)
            top += seen * np.array([
                (var * d**2)[usual].sum(),
                (m * d)[usual].sum() ** 2,
                (var * d**2)[~usual].sum() + (m * d)[~usual].sum() ** 2,
            ])  # fmt: skip
            energy = (var * x**2)[usual].sum() + (m * x)[usual].sum() ** 2
            bottom += seen * np.array([energy, energy, (var * x**2)[~usual].sum() + (m * x)[~usual].sum() ** 2])
    return np.divide(top, bottom, out=np.zeros(3), where=bottom > 0)


def measured(model, imatrix, name, chosen=FORMATS, settings=None, *, find_massive=False):
    survey = surveyed(model, imatrix, name, find_massive=find_massive)
    estimates = {}
    for found in measure_jobs(model, [Job(survey, tuple(chosen))], settings or Settings(tolerance=1e-9), Threads(1)):
        estimates |= found.estimates
    return estimates


@pytest.mark.parametrize("sums", [True, False, None])
@pytest.mark.parametrize("name", ["blk.1.ffn_down_exps.weight", "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight"])
def test_exhaustive_errors_are_the_formula(name, sums, tmp_path):
    path = experts().write(tmp_path / "model.gguf")
    counts = {name: [3, 100, 0, 17]} if "exps" in name else None
    imatrix = None if sums is None else read_imatrix(write_imatrix(path, tmp_path / "x", sums=sums, counts=counts))
    with open_model(path) as model:
        found = measured(model, imatrix, name)
        for fmt in FORMATS:
            estimate = found[fmt.name]
            expected = by_hand(model, imatrix, name, fmt)
            assert list(estimate.error) == pytest.approx(expected, rel=1e-5)
            assert estimate.stderr == estimate.stderr_massive == 0
            assert (estimate.error.mean > 0) is bool(sums)


@pytest.mark.parametrize("name", ["blk.1.ffn_down_exps.weight", "blk.0.attn_output.weight"])
def test_rows_count_by_what_their_outputs_are_worth(name, tmp_path):
    """As if the rows had been scaled by the roots of that, but that kernels see them as they are."""
    path = experts().write(tmp_path / "model.gguf")
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x"))
    with open_model(path) as model:
        tensor, plain = model[name], surveyed(model, imatrix, name)
        worth = np.random.default_rng(0).lognormal(0, 2, tensor.rows_per_matrix).astype(np.float32)
        known = replace(imatrix, reach={name: Reach(1.0, 100, worth)})
        survey, rows = surveyed(model, known, name), model.rows(tensor).astype(np.float64)
        rows = rows.reshape(tensor.matrices, -1, tensor.row_length)
        assert survey.columns == pytest.approx(np.einsum("i,mij->mj", worth, rows**2), rel=1e-5)
        assert survey.out_var == pytest.approx(plain.out_var * worth)
        assert survey.out_mean**2 == pytest.approx(plain.out_mean**2 * worth)
        assert survey.expected_error == pytest.approx(plain.expected_error * worth)
        assert survey.made == pytest.approx((plain.out_var + plain.out_mean**2).sum(axis=1))
        exact = measured(model, known, name)
        for fmt in FORMATS:
            errors = np.zeros(2)
            for matrix in range(tensor.matrices):
                back = row_errors(plain, fmt, matrix, rows[matrix].astype(np.float32))[:2]
                errors += plain.moments.usage[matrix] * (back @ worth)
            assert list(exact[fmt.name].error[:2]) == pytest.approx(errors / survey.energy, rel=1e-5)
        drawn = measured(model, known, name, settings=Settings(tolerance=0.1))["q4_K"]
        assert drawn.error.total == pytest.approx(exact["q4_K"].error.total, abs=4 * drawn.stderr + 1e-9)
        short = replace(imatrix, reach={name: Reach(1.0, 100, worth[1:])})
        with pytest.raises(ImatrixError, match="outputs in the model, and"):
            surveyed(model, short, name)


def test_experts_that_nobody_uses_do_not_count(tmp_path):
    name = "blk.0.ffn_up_exps.weight"
    maker = experts()
    path = maker.write(tmp_path / "model.gguf")
    rng = np.random.default_rng(0)
    maker.arrays[name][2] = rng.standard_cauchy(maker.arrays[name][2].shape).clip(-100, 100)
    other = maker.write(tmp_path / "other.gguf")
    for counts, same in (([5, 9, 0, 1], True), ([5, 9, 1, 1], False)):
        imatrix = read_imatrix(write_imatrix(path, tmp_path / "x", counts={name: counts}))
        with open_model(path) as one, open_model(other) as two:
            first, second = (measured(model, imatrix, name)["q4_K"] for model in (one, two))
        assert (first == second) is same


def massive_model(tmp_path, matrices=1):
    """An ffn_down whose channels 3 and 300 get activations a thousand times as strong."""
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 256)
    maker.matrix("blk.0.ffn_down", *([matrices] if matrices > 1 else []), 64, 512)
    path = maker.write(tmp_path / "model.gguf")

    def strong(name, second, means):
        second[:], means[:] = 1.0, 0.1
        second[:, [3, 300]], means[:, [3, 300]] = 1e6, 900

    return path, read_imatrix(write_imatrix(path, tmp_path / "x", change=strong))


def test_a_matrix_that_is_looked_up_too_has_the_error_of_its_rows(tmp_path):
    """Errors of logits weigh channels by the imatrix; rows that are embeddings are as far off as they are."""
    name, fmt = "token_embd.weight", formats()["q4_0"]
    paths = [maker(vocabulary=640).write(tmp_path / f"{maker.__name__}.gguf") for maker in (tied, dense)]
    imatrix = read_imatrix(write_imatrix(paths[0], tmp_path / "x", embedding=True))
    with open_model(paths[0]) as model, open_model(paths[1]) as other:
        survey = survey_in_place(model, model[name], moments(model[name], imatrix))
        others = [(model, moments(model[name], None)), (other, moments(other[name], imatrix))]
        assert not any(survey_in_place(of, of[name], known).looked_up for of, known in others)
        rows = model.rows(model[name])
        back = dequantize_rows(fmt, quantize_rows(fmt, rows.copy(), survey.moments.weights[0]), 256)
        expected = float(np.square(back.astype(np.float64) - rows).sum() / np.square(rows.astype(np.float64)).sum())
        for settings in (Settings(tolerance=1e-9), Settings(tolerance=0.05)):
            job = Job(survey.slim(), (fmt,))
            (found,) = (each.estimates["q4_0"] for each in measure_jobs(model, [job], settings, Threads(1)))
            logits = by_hand(model, imatrix, name, fmt)[:2].sum()
            assert found.error.total == pytest.approx(logits, abs=4 * found.stderr + 1e-7)
            assert found.error.massive == pytest.approx(expected, abs=4 * found.stderr_massive + 1e-7)
            assert found.error.massive > 1.05 * found.error.total


def test_massive_channels_are_kept_apart(tmp_path):
    path, imatrix = massive_model(tmp_path)
    name = "blk.0.ffn_down.weight"
    with open_model(path) as model:
        survey = surveyed(model, imatrix, name, find_massive=True)
        assert np.flatnonzero(survey.massive[0]).tolist() == [3, 300]
        found = measured(model, imatrix, name, find_massive=True)
        for fmt in FORMATS:
            expected = by_hand(model, imatrix, name, fmt, massive=[3, 300])
            estimate = found[fmt.name]
            assert list(estimate.error) == pytest.approx(expected, rel=1e-5)
            assert estimate.error.massive > 0
        rows = model.rows(model[name]).astype(np.float64)
        second, mean = survey.moments.second[0], survey.moments.mean[0]
        usual = ~survey.massive[0]
        var = survey.moments.variance[0]
        energy = ((rows**2 * var)[:, usual].sum(axis=1) + ((rows * mean)[:, usual].sum(axis=1)) ** 2).sum()
        heavy = ((rows**2 * var)[:, ~usual].sum(axis=1) + ((rows * mean)[:, ~usual].sum(axis=1)) ** 2).sum()
        assert survey.energy == pytest.approx(energy, rel=1e-5)
        assert survey.energy_massive == pytest.approx(heavy, rel=1e-5)
        assert second.shape == (512,)


def test_what_is_massive():
    class Fake:
        usage = np.ones(1)
        token_second = np.ones((1, 100))

    columns = np.ones((1, 100))
    assert not massive_channels(Fake, columns).any()
    columns[0, 7] = 40  # 40 times the others, 29 % of the whole
    assert np.flatnonzero(massive_channels(Fake, columns)[0]).tolist() == [7]
    columns[0, 7] = 20
    assert not massive_channels(Fake, columns).any()
    columns = np.ones((1, 10_000))
    Fake.token_second = np.ones((1, 10_000))
    columns[0, 7] = 100  # but 1 % of the whole
    assert not massive_channels(Fake, columns).any()


def test_the_survey_is_the_formula(tmp_path):
    path = experts().write(tmp_path / "model.gguf")
    name = "blk.0.ffn_gate_exps.weight"
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x", counts={name: [1, 2, 3, 10]}))
    with open_model(path) as model:
        survey = surveyed(model, imatrix, name)
        rows = model.rows(model[name]).reshape(4, 256, 256).astype(np.float64)
        entry = imatrix.entries[name]
        second, mean = entry.values.astype(np.float64), entry.means.astype(np.float64)
        var = np.maximum(second - mean**2, 0)
        assert survey.out_mean == pytest.approx(np.einsum("eij,ej->ei", rows, mean), rel=1e-4, abs=1e-5)
        assert survey.out_var == pytest.approx(np.einsum("eij,ej->ei", rows**2, var), rel=1e-5)
        assert survey.columns == pytest.approx((rows**2).sum(axis=1), rel=1e-5)
        assert survey.moments.usage.tolist() == [0.25, 0.5, 0.75, 2.5]
        slim = survey.slim()
        assert slim.energy == pytest.approx(survey.energy, rel=1e-12)
        import hashlib

        assert survey.digest == hashlib.sha256(model.raw_rows(model[name]).tobytes()).hexdigest()


def test_reading_in_small_pieces_makes_no_difference(tmp_path, monkeypatch):
    from planner.measure import loop, survey

    path = dense(vocabulary=96).write(tmp_path / "model.gguf")
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x"))
    with open_model(path) as model:
        whole, large = surveyed(model, imatrix, "output.weight"), measured(model, imatrix, "output.weight")
        monkeypatch.setattr(survey, "_CHUNK", 700)
        monkeypatch.setattr(loop, "_KERNEL_WEIGHTS", 700)
        pieces, small = surveyed(model, imatrix, "output.weight"), measured(model, imatrix, "output.weight")
    assert pieces.digest == whole.digest
    assert np.allclose(pieces.out_var, whole.out_var, rtol=1e-6)
    assert np.allclose(pieces.columns, whole.columns, rtol=1e-6)
    for name in large:
        assert small[name].error.total == pytest.approx(large[name].error.total, rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e25])
def test_weights_that_are_no_numbers(bad, tmp_path):
    maker = dense(vocabulary=96)
    maker.arrays["output.weight"] = maker.arrays["output.weight"].astype(np.float32)
    maker.arrays["output.weight"][9, 9] = bad
    with open_model(maker.write(tmp_path / "model.gguf")) as model:
        with pytest.raises(ModelError, match=r"output\.weight holds NaN or infinite") as caught:
            surveyed(model, None, "output.weight")
        assert "planner inspect" in caught.value.remedy


@pytest.mark.parametrize(("weight", "importance"), [(1.5e19, 1.0), (1e10, 1e30)])
def test_weights_too_large_to_square_in_a_row(weight, importance, tmp_path):
    maker = dense(vocabulary=96)
    maker.arrays["output.weight"] = np.zeros((96, 256), np.float32)
    maker.arrays["output.weight"][9] = weight
    model = maker.write(tmp_path / "model.gguf")

    def large(name, second, means):
        second[:], means[:] = importance, 0.0

    matrix = read_imatrix(write_imatrix(model, tmp_path / "x.imatrix", change=large))
    with open_model(model) as opened, pytest.raises(ModelError, match=r"output\.weight has weights that are too large"):
        surveyed(opened, matrix, "output.weight")


def test_surveys_stop_when_told(tmp_path):
    with open_model(dense(vocabulary=96).write(tmp_path / "model.gguf")) as model:
        tensor = model["output.weight"]
        with pytest.raises(Stopped):
            survey_tensor(model, tensor, moments(tensor, None), find_massive=False, stop=lambda: True)


def test_rows_that_no_usual_block_divides(tmp_path):
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 72, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 72)
    maker.matrix("blk.0.attn_q", 128, 72, dtype=np.float32)
    path = maker.write(tmp_path / "model.gguf")
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x"))
    with open_model(path) as model:
        chosen = (formats()["f16"], formats()["bf16"])
        found = measured(model, imatrix, "blk.0.attn_q.weight", chosen)
        for fmt in chosen:
            expected = by_hand(model, imatrix, "blk.0.attn_q.weight", fmt)
            assert list(found[fmt.name].error[:2]) == pytest.approx(expected[:2], rel=1e-4)


def test_a_format_that_cannot_hold_the_weights_is_left_out(tmp_path):
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 64, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 64)
    maker.matrix("blk.0.attn_q", 128, 64, dtype=np.float32)
    maker.arrays["blk.0.attn_q.weight"][100, 3] = 1e6  # beyond F16
    with open_model(maker.write(tmp_path / "model.gguf")) as model:
        survey = surveyed(model, None, "blk.0.attn_q.weight")
        chosen = (formats()["f16"], formats()["bf16"])
        (found,) = measure_jobs(model, [Job(survey, chosen)], Settings(), Threads(1))
        assert set(found.estimates) == {"bf16"}
        assert "blk.0.attn_q.weight" in found.unusable["f16"]


def test_what_is_lost_of_weights_too_small_to_square_is_not_nothing(tmp_path):
    """In F32, with squares below float32 and scales below those that blocks have."""
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 256, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 256)
    maker.matrix("blk.0.attn_q", 96, 256, scale=1e-30, dtype=np.float32)
    path = maker.write(tmp_path / "model.gguf")
    for settings in (Settings(), Settings(tolerance=1e-9)):
        with open_model(path) as model:
            for estimate in measured(model, None, "blk.0.attn_q.weight", settings=settings).values():
                assert estimate.error.variance == 1
