"""Sampled errors are as near to those of all rows as they say, and no row more is measured than that takes."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from planner.formats.ggml import select_formats
from planner.gguf import open_model, read_imatrix
from planner.measure import Job, Settings, loop, measure_jobs, moments, survey_tensor
from planner.measure.metric import Spread, corrected, row_errors, standard_error
from planner.measure.sampling import stages
from planner.work import Threads
from tests.models import FEW, Maker, dense, write_imatrix

FORMATS = select_formats(FEW)


def surveyed(model, imatrix, name, *, find_massive=False):
    tensor = model[name]
    return survey_tensor(model, tensor, moments(tensor, imatrix), find_massive=find_massive)


def test_a_looser_tolerance_needs_fewer_rows(tmp_path):
    path = dense(width=256, vocabulary=4096, blocks=1).write(tmp_path / "model.gguf")
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x"))
    with open_model(path) as model:
        survey = surveyed(model, imatrix, "output.weight")
        rows, errors = [], []
        for tolerance in (0.2, 0.02, 0.005):
            (found,) = measure_jobs(model, [Job(survey, FORMATS)], Settings(tolerance=tolerance), Threads(1))
            rows.append(found.rows["q4_K"])
            for estimate in found.estimates.values():
                assert estimate.stderr <= tolerance * estimate.error.total
            errors.append(found.estimates["q4_K"])
        assert rows == sorted(rows)
        assert rows[0] < rows[-1] <= 4096
        assert errors[0].error.total == pytest.approx(errors[-1].error.total, rel=0.5)


def exact(model, survey, fmt):
    """The error over all rows, by the tested function, without any sampling."""
    usage, tensor = survey.moments.usage, survey.tensor
    total = np.zeros(3)
    for matrix in range(tensor.matrices):
        begin = matrix * tensor.rows_per_matrix
        rows = model.rows(tensor, begin, begin + tensor.rows_per_matrix)
        total += usage[matrix] * row_errors(survey, fmt, matrix, rows).sum(axis=1)
    heavy = survey.energy_massive
    return (total[0] + total[1]) / survey.energy, total[2] / heavy if heavy > 0 else 0.0


@pytest.mark.parametrize("types", ["q2_K,q3_K,q4_0,q6_K,q8_0", "q3_K", "q8_0"])
def test_sampled_errors_are_within_their_standard_errors(types, example):
    """At three standard errors, at least 99 % of tensor x format, over several seeds: of formats that tell each other's
    spread, and of one alone."""
    chosen = select_formats(types)
    imatrix = read_imatrix(example.sums)
    inside = sampled = 0
    with open_model(example.model) as model:
        names = [tensor.name for tensor in model.tensors if tensor.rows > 1 and tensor.name != "token_embd.weight"]
        for name in names:
            survey = surveyed(model, imatrix, name, find_massive="ffn_down" in name)
            truth = {fmt.name: exact(model, survey, fmt) for fmt in chosen}
            for seed in range(5):
                settings = Settings(seed=seed, tolerance=0.08)
                (found,) = measure_jobs(model, [Job(survey, chosen)], settings, Threads(1))
                for fmt, estimate in found.estimates.items():
                    assert estimate.stderr <= settings.tolerance * estimate.error.total
                    if estimate.stderr > 0:
                        sampled += 1
                        close = abs(estimate.error.total - truth[fmt][0]) <= 3 * estimate.stderr
                        inside += close and abs(estimate.error.massive - truth[fmt][1]) <= 3 * estimate.stderr_massive
                    else:
                        assert estimate.error.total == pytest.approx(truth[fmt][0], rel=1e-6)
    assert sampled > 200
    assert inside >= 0.99 * sampled


@pytest.mark.parametrize("outlier", [1.0, 4.0, 8.0])
def test_no_draw_weighs_much_whether_energy_or_range_rules_errors(outlier, tmp_path):
    """Of rows with an outlier in each block, and rows without. By energy alone, some weigh 3.3 times the mean."""
    maker = Maker()
    maker.pairs = {"block_count": 1, "embedding_length": 256, "attention.head_count": 1}
    maker.matrix("token_embd", 64, 256)
    maker.matrix("blk.0.attn_q", 1024, 256)
    maker.arrays["blk.0.attn_q.weight"][::8, ::32] *= outlier
    chosen = select_formats("q2_K,q3_K,q4_0,q4_K,q5_0,q6_K,q8_0")
    with open_model(maker.write(tmp_path / "model.gguf")) as model:
        survey = surveyed(model, None, "blk.0.attn_q.weight")
        errors = {
            fmt: row_errors(survey, fmt, 0, model.rows(model["blk.0.attn_q.weight"])).sum(axis=0) for fmt in chosen
        }
    for seed in range(20):
        stage = next(stages(survey.expected_error.reshape(2, -1), np.zeros(1024), seed, "x", 64))
        for fmt, each in errors.items():
            assert (each[stage.rows] * stage.weights < 2 * each.sum()).all(), fmt.name


def test_each_format_is_measured_until_it_is_precise_and_no_row_twice(tmp_path, monkeypatch):
    path = dense(width=256, inner=512, vocabulary=96, blocks=1).write(tmp_path / "model.gguf")
    imatrix = read_imatrix(write_imatrix(path, tmp_path / "x"))
    calls = []

    def wild(survey, fmt, matrix, rows):
        errors = row_errors(survey, fmt, matrix, rows)
        calls.append((fmt.name, rows.sum(axis=1).tolist()))
        if fmt.name == "q4_0":  # a lognormal factor, by the row's own content
            noise = [np.random.default_rng(zlib.crc32(row.tobytes())).normal() for row in rows]
            errors *= np.exp(noise)
        return errors

    monkeypatch.setattr(loop, "row_errors", wild)
    with open_model(path) as model:
        survey = surveyed(model, imatrix, "blk.0.ffn_up.weight")
        chosen = select_formats("q3_K,q4_0,q4_K,q5_0,q6_K")
        (found,) = measure_jobs(model, [Job(survey, chosen)], Settings(tolerance=0.1), Threads(1))
    assert found.rows["q4_0"] > 2 * found.rows["q4_K"] >= 16
    for name, count in found.rows.items():
        sums = [total for fmt, totals in calls if fmt == name for total in totals]
        assert len(sums) == len(set(sums)) == count


def test_what_is_known_of_draws_is_taken_off():
    """Errors that are any mixture of what is expected are exact from any draws, and the rest is as it was."""
    rng = np.random.default_rng(0)
    guesses = rng.lognormal(0, 1, (2, 3000))
    massive = np.where(rng.random(3000) < 0.02, 5.0, 0.0)
    mixed = 3 * guesses[0] + 2 * guesses[1] + massive
    noisy = mixed * rng.lognormal(0, 0.1, 3000)
    apart = []
    for seed in range(300):
        stage = next(stages(guesses, massive, seed, "x", 64))
        assert stage.known.shape == (3, 64)
        found = corrected(np.stack([mixed, noisy, np.ones(3000)])[:, stage.rows] * stage.weights, stage.known)
        assert found[0].mean() == pytest.approx(mixed.sum(), rel=1e-4)
        apart.append([found[1].mean() / noisy.sum() - 1, (noisy[stage.rows] * stage.weights).mean() / noisy.sum() - 1])
    better, plain = np.std(apart, axis=0)
    assert better < 0.2 * plain
    assert abs(np.mean(apart, axis=0)[0]) < 4 * better / np.sqrt(300)
    # where rows are alike there is nothing to explain
    stage = next(stages(np.ones((2, 3000)), np.zeros(3000), 0, "x", 64))
    draws = noisy[None, stage.rows] * stage.weights
    assert corrected(draws, stage.known) == pytest.approx(draws)


def test_standard_errors_of_few_draws():
    draws = np.random.default_rng(0).lognormal(0, 0.3, (9, 32))
    spreads = [Spread.of(row, 31) for row in draws]
    plain = [row.std(ddof=1) / row.mean() / np.sqrt(32) for row in draws]
    alone = [standard_error([spread], 32, 31, 0.0) for spread in spreads]
    assert all(1 < wide / narrow < 1.5 for wide, narrow in zip(alone, plain, strict=True))
    together = [
        standard_error([spread, *spreads[:at], *spreads[at + 1 :]], 32, 31, 0.0) for at, spread in enumerate(spreads)
    ]
    assert all(more >= less for more, less in zip(together, alone, strict=True))
    assert together[int(np.argmin(plain))] > 1.05 * min(alone)  # the luckiest is not believed
    # one format that is unlike the others does not touch them
    odd = [*spreads, Spread(1e6, 1e9)]
    assert standard_error(odd, 32, 31, 0.0) < 1.2 * standard_error(spreads, 32, 31, 0.0)
    assert standard_error(spreads, 32, 31, 0.75) == pytest.approx(standard_error(spreads, 32, 31, 0.0) / 2)
    assert standard_error([Spread.of(np.ones(16), 15)], 16, 15, 0.0) == 0
    assert standard_error([Spread.of(np.zeros(16), 15)], 16, 15, 0.0) == 0
    # less than nothing on the whole: they tell nothing
    assert standard_error([Spread.of(draws[0] - 2, 31), *spreads], 32, 31, 0.0) == np.inf
