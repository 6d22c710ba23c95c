"""`planner measure --covariance`: formats compared as they will be rounded, and plans that remember it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import planner
from planner.formats.ggml import dequantize_rows, formats, quantize_rows
from planner.formats.ggml.refine import Metric, can_refine, refine_rows
from planner.gguf import open_model
from planner.gguf.covariance import Covariances
from planner.gguf.refinement import Refinement
from planner.measure import moments, survey_tensor
from planner.measure.metric import row_errors
from planner.recipe import load_recipe
from state import Store
from tests.conftest import ok
from tests.models import dense, experts, made_up_covariances, write_imatrix

FEW = "q2_K,q4_K,q4_0,iq4_nl,q8_0"
UNSEEN = "blk.1.attn_v.weight"


@pytest.fixture(params=[dense, experts])
def model(request, here):
    return request.param().write(here / "model.gguf")


@pytest.fixture
def covariances(model, here):
    made_up_covariances(model, here / "cov.gguf", skip=[UNSEEN])
    return Path("cov.gguf")


def found(state="model.planner"):
    """Measured errors by tensor and format, as `solve` uses them."""
    with Store.open(state, read_only=True) as store:
        entries = store.measurements(selected=True).values()
    return {(e.tensor, e.format): (e.err_var, e.err_mean, e.err_massive) for e in entries}


def test_errors_are_those_of_refined_codes_by_the_covariance(model, covariances):
    with open_model(model) as opened, Covariances.open(covariances) as known:
        for name in ("blk.0.attn_q.weight", "blk.1.attn_output.weight"):
            tensor = opened[name]
            survey = survey_tensor(
                opened, tensor, moments(tensor, known.imatrix, Refinement(known, 0.5)), find_massive=False
            )
            rows, h = opened.rows(tensor), known.matrix(tensor)
            for fmt in map(formats().get, FEW.split(",")):
                data = quantize_rows(fmt, rows, np.diag(h).copy())
                if can_refine(fmt):
                    data = refine_rows(fmt, rows, data, Metric.of(h.copy(), 0.5))
                d = dequantize_rows(fmt, data, tensor.row_length).astype(np.float64) - rows
                var, mean, massive = row_errors(survey, fmt, 0, rows)
                assert var + mean == pytest.approx(((d @ h.astype(np.float64)) * d).sum(axis=1), rel=1e-3)
                assert mean == pytest.approx((d @ survey.moments.mean[0]) ** 2)
                assert not massive.any()


def test_both_kinds_of_measurements_are_kept_apart(model, covariances, here, run):
    ok(run("measure", model, "--imatrix", covariances, "--types", FEW))
    plain = found()
    ok(run("measure", model, "--covariance", covariances, "--types", FEW))
    refined = found()
    assert set(refined) == set(plain)
    for key, errors in refined.items():
        if key[0] in (UNSEEN, "token_embd.weight"):
            assert errors == plain[key]
        else:
            assert sum(errors) != sum(plain[key])
    better = [sum(refined[key]) < sum(plain[key]) for key in plain if refined[key] != plain[key]]
    assert np.mean(better) > 0.9
    # neither is measured twice, whichever is asked for
    assert "0 of them new" in ok(run("measure", model, "--imatrix", covariances, "--types", FEW)).out
    assert found() == plain
    assert "0 of them new" in ok(run("measure", model, "--covariance", covariances, "--types", FEW)).out
    assert found() == refined
    # without being asked again, what it was made with last
    assert "0 of them new" in ok(run("measure", model, "--types", FEW)).out
    assert found() == refined
    # another shrinkage makes other codes
    assert " 0 of them new" not in ok(run("measure", model, "--shrinkage", 0.25, "--types", FEW)).out


def test_a_plan_remembers_how_it_is_to_be_rounded(model, covariances, here, run):
    ok(run("solve", model, "--covariance", covariances, "--shrinkage", 0.5, "--bpw", 5, "--types", FEW))
    recipe = load_recipe(here / "recipe.json")
    with Covariances.open(covariances) as known:
        assert recipe.covariance is not None
        assert (recipe.covariance.digest, recipe.covariance.shrinkage) == (known.digest, 0.5)
        assert recipe.imatrix.digest == known.imatrix.digest
    shown = " ".join(ok(run("inspect", "recipe.json")).out.split())
    assert f"codes refined against {covariances}, shrinkage 0.5" in shown
    assert json.loads(ok(run("inspect", "recipe.json", "--json")).out)["covariance"] == str(covariances)
    ok(run("quantize", model, "recipe.json", "out.gguf"))
    assert (here / "out.gguf").stat().st_size == recipe.size
    ok(run("quantize", model, "recipe.json", "same.gguf", "--covariance", covariances, "--shrinkage", 0.5))
    assert (here / "same.gguf").read_bytes() == (here / "out.gguf").read_bytes()
    result = run("export", "recipe.json", "--to", "llama-quantize")
    assert "with its own codes" in " ".join(result.err.split())
    ok(run("solve", model, "--imatrix", covariances, "--bpw", 5, "--types", FEW, "-o", "plain.json"))
    assert load_recipe(here / "plain.json").covariance is None
    assert "covariance" not in json.loads((here / "plain.json").read_text())
    assert "its own codes" not in run("export", "plain.json", "--to", "llama-quantize").err


def test_the_library_does_the_same(model, covariances, here, run):
    ok(run("measure", model, "--covariance", covariances, "--types", FEW, "--state", "command.planner"))
    with planner.open_state("library.planner", create=True) as state:
        state.measure(model, covariance=covariances, types=FEW)
        recipe = state.solve(bpw=5).recipe
    assert found("library.planner") == found("command.planner")
    assert recipe.covariance is not None
    planner.quantize(model, recipe, here / "library.gguf")
    ok(run("solve", "--state", "command.planner", "--bpw", 5))
    ok(run("quantize", model, "recipe.json", "command.gguf"))
    # the size of the metadata does not depend on who wrote it, nor does what is in it
    assert (here / "library.gguf").read_bytes() == (here / "command.gguf").read_bytes()


def test_what_cannot_be(model, covariances, here, run):
    measure = "measure", model, "--types", FEW
    write_imatrix(model, here / "x.imatrix", seed=3)
    for options, status, message in (
        (("--covariance", covariances, "--imatrix", "x.imatrix"), 1, "of another imatrix than x.imatrix"),
        (("--covariance", covariances, "--no-imatrix"), 2, "--covariance and --no-imatrix exclude each other"),
        (("--imatrix", "x.imatrix", "--no-imatrix"), 2, "--imatrix and --no-imatrix exclude each other"),
        (("--imatrix", "x.imatrix", "--shrinkage", 2), 2, "--shrinkage is of covariances"),
        (("--covariance", "x.imatrix"), 1, "an importance matrix without covariances"),
    ):
        result = run(*measure, *options)
        assert (result.status, message in " ".join(result.err.split())) == (status, True), result.text
    other = dense(width=512, inner=768).write(here / "other.gguf")
    strangers = made_up_covariances(other, here / "other.cov.gguf")
    result = run(*measure, "--covariance", strangers)
    assert (result.status, "of another model" in result.err) == (1, True), result.text

    ok(run("solve", model, "--covariance", covariances, "--bpw", 5, "--types", FEW))
    again = made_up_covariances(model, here / "again.gguf", seed=5)
    result = run("quantize", model, "recipe.json", "out.gguf", "--covariance", again)
    assert (result.status, "other covariances than those that recipe.json was planned with" in result.err) == (1, True)
    covariances.rename(here / "elsewhere.gguf")
    for command in (("quantize", model, "recipe.json", "out.gguf"), measure):
        result = run(*command)
        message = " ".join(result.err.split())
        assert (result.status, "not there" in message and "--covariance" in message) == (1, True), result.text
    assert not (here / "out.gguf").exists()
    ok(run("quantize", model, "recipe.json", "out.gguf", "--covariance", "elsewhere.gguf"))
