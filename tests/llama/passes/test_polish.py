"""`planner solve --polish`: exchanges within the limits, kept only where the text says that they help."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planner.errors import InferenceError
from planner.formats.ggml import select_formats
from planner.gguf import open_model, read_imatrix
from planner.llama.evaluate.baseline import record
from planner.llama.passes import polish as polish_module
from planner.llama.passes.perturb import open_perturber
from planner.llama.passes.polish import Polish
from planner.llama.text import spread_windows
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from state import Store
from tests.conftest import EXAMPLES

TEXT = EXAMPLES / "calibration.txt"
BUDGET = 4_500_000


@pytest.fixture
def polish(example, cheap):
    """A polish of a bad plan: by `uniform`, so that there is much to gain. The state is closed: it is read once."""
    with Store.open(cheap, read_only=True) as store:
        findings = Findings.read(store)
    request = PlanRequest(budget=BUDGET, sensitivity="uniform", formats=select_formats("k,legacy"))
    with open_model(example.model) as model:
        imatrix = read_imatrix(example.sums)
        with open_perturber(example.model, model, imatrix, context=64, threads=1, gpu_layers=0) as changer:
            (windows,) = spread_windows(changer.engine, TEXT, 64, 2048)
            with Polish.start(findings, request, changer, windows, make_plan(findings, request)) as polish:
                yield polish


def test_what_helps_is_kept_and_nothing_else(polish):
    before = polish.before[0]
    exchanges = list(polish.run(8))
    assert len(exchanges) <= 8
    kept = [exchange for exchange in exchanges if exchange.kept]
    assert kept, "the last block is worth more than uniform sensitivities have it"
    assert all(exchange.difference < -3 * exchange.stderr for exchange in kept)
    assert polish.now[0] == pytest.approx(before + sum(exchange.difference for exchange in kept))
    plan = polish.plan_as_it_stands()
    assert plan.recipe.size <= BUDGET
    changed = [choice for choice in plan.recipe.tensors if choice.why == "polished"]
    assert {choice.name for choice in changed} <= {name for exchange in kept for name in exchange.changes}
    # the solver's answer is the best by the sensitivities that it was given
    assert plan.recipe.loss >= polish.plan.recipe.loss >= plan.recipe.bound


def test_the_engine_holds_the_recipe_as_it_stands(polish):
    for exchange in polish.run(3):
        assert all(before != after for before, after in exchange.changes.values())
    assert polish._evaluate() == pytest.approx(polish._klds)


@pytest.mark.parametrize("error", [KeyboardInterrupt, InferenceError("out of memory")])
def test_a_start_that_fails_keeps_nothing(error, polish, monkeypatch):
    baselines = []

    def recorded(*arguments, **more):
        baselines.append(record(*arguments, **more))
        return baselines[-1]

    def fail(self, progress=None):
        raise error

    monkeypatch.setattr(polish_module, "record", recorded)
    monkeypatch.setattr(Polish, "_evaluate", fail)
    windows = np.ones((1, 64), np.int32)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        Polish.start(polish._findings, polish._request, polish._perturber, windows, polish.plan)
    assert len(baselines) == 1
    with pytest.raises(ValueError, match="closed"):
        baselines[0].rows(0)


def test_stopped_before_the_first_exchange(run, example, cheap, here, monkeypatch):
    def stop(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(polish_module, "record", stop)
    arguments = ("--imatrix", example.sums, "--state", cheap, "--types", "k", "-t", 1, "--budget", BUDGET)
    found = run("solve", example.model, *arguments, "--polish", TEXT)
    assert found.status == 0, found.text
    assert "Stopped before the first exchange." in found.err
    assert "nan" not in found.out
    assert json.loads((here / "recipe.json").read_text())["size"] <= BUDGET


def test_from_the_command_line(run, example, cheap, here):
    arguments = ("--imatrix", example.sums, "--state", cheap, "--types", "k", "-t", 1)
    found = run(
        "solve",
        example.model,
        *arguments,
        "--budget",
        BUDGET,
        "--polish",
        TEXT,
        "--polish-passes",
        1,
        "-o",
        "recipe.json",
    )
    assert found.status == 0, found.text
    assert "At most 1 exchanges of" in found.err
    assert "of 1 exchanges kept: KLD" in found.out
    assert json.loads((here / "recipe.json").read_text())["size"] <= BUDGET
    without = run("solve", "--state", cheap, "--budget", BUDGET, "--polish", TEXT)
    assert without.status == 2
    assert "Give MODEL too" in without.err
