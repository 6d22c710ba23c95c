"""`planner solve --check`: recipes beside each other on a text, by what they do to the model; the best is kept."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from planner.cli import checking
from planner.formats.ggml import formats
from planner.gguf import open_model, read_imatrix
from planner.llama.evaluate.baseline import record
from planner.llama.evaluate.compare import diverge
from planner.llama.passes import check as check_module
from planner.llama.passes import polish as polish_module
from planner.llama.passes.check import Checked, best_of, check
from planner.llama.passes.perturb import open_perturber
from planner.llama.passes.recipes import Followed, formats_to_follow
from planner.llama.text import spread_windows
from planner.plan.findings import Findings
from planner.plan.plan import make_plan
from planner.plan.request import PlanRequest
from planner.plan.rivals import Rival, rivals
from planner.recipe import load_recipe
from planner.report.checks import check_text
from state import Store
from tests.conftest import EXAMPLES, ok

TEXT = EXAMPLES / "evaluation.txt"
BUDGET = 4_500_000


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(polish_module, "TOKENS", 1024)


@pytest.fixture
def solve(run, example, cheap):
    """`planner solve … --check`, of a bad plan: by `uniform`, so that others are better."""

    def call(*more):
        return run(
            "solve", example.model, "--imatrix", example.sums, "--state", cheap, "--types", "k", "-t", 1, "--budget",
            BUDGET, "--sensitivity", "uniform", "--check", TEXT, *more,
        )  # fmt: skip

    return call


def silent(unit):
    return contextlib.nullcontext(lambda what, done, total: None)


def test_it_evaluates_what_the_recipes_do(example, cheap):
    """The same divergences as when every tensor is changed by the code that measures sensitivities."""
    with Store.open(cheap, read_only=True) as store:
        findings = Findings.read(store)
    request = PlanRequest(budget=BUDGET)
    found = rivals(findings, request, make_plan(findings, request))
    imatrix = read_imatrix(example.sums)
    with (
        open_model(example.model) as model,
        open_perturber(example.model, model, imatrix, context=64, threads=1, gpu_layers=0) as changer,
    ):
        (windows,) = spread_windows(changer.engine, TEXT, 64, 512)
        with record(changer.engine, windows) as baseline:
            ready = []
            for rival in found:
                wanted = formats_to_follow(model, rival.recipe, imatrix)
                ready.append((rival, Followed(rival.recipe, rival.label, imatrix, None, wanted)))
            checked = list(check(changer, ready, baseline, silent))
            for entry in checked:
                free = {c.name: c.format for c in entry.rival.recipe.tensors if not c.left_alone}
                changer.change({name: formats()[fmt] for name, fmt in free.items()})
                expected = diverge(changer.engine, baseline).kld
                np.testing.assert_array_equal(entry.klds.ravel(), expected)
    assert len(checked) >= 3
    assert len({entry.kld[0] for entry in checked}) == len(checked)


def test_the_best_is_kept(solve, here, run, cheap):
    done = ok(solve())
    recipe = load_recipe(here / "recipe.json")
    assert recipe.sensitivity != "uniform"
    assert recipe.size <= BUDGET
    assert recipe.formats == best_alone(run, cheap, recipe.sensitivity)
    table = done.out.split("\n\n")[1].splitlines()
    rows = {line.split("  ")[0]: line for line in table[1:]}
    assert rows[recipe.sensitivity].endswith("kept")
    values = {name: float(line.split(" ± ")[0].split()[-1]) for name, line in rows.items()}
    assert min(values, key=values.get) == recipe.sensitivity
    assert values["uniform"] > values[recipe.sensitivity]
    assert any(name.endswith("(mix)") for name in rows)
    assert max(map(len, done.out.split("\n\nrole")[0].splitlines()[1:])) <= 80  # the first has the text's path
    verdict = " ".join(done.out.split("Kept: ")[1].split())
    assert verdict.startswith(f"{recipe.sensitivity}. Its divergence is ")
    assert "beyond the noise (3 standard errors)." in verdict
    assert f"by {recipe.sensitivity}; proven" in done.out


def best_alone(run, cheap, source):
    ok(run("solve", "--state", cheap, "--types", "k", "--budget", BUDGET, "--sensitivity", source, "-o", "alone.json"))
    return load_recipe(Path("alone.json")).formats


def test_a_mix_is_kept_where_it_is_best(solve, here, monkeypatch):
    monkeypatch.setattr(check_module, "best_of", lambda checked: next(e for e in checked if e.rival.is_mix))
    monkeypatch.setattr(checking, "_to_follow", mixes_last(checking._to_follow))
    done = ok(solve())
    recipe = load_recipe(here / "recipe.json")
    assert recipe.size <= BUDGET
    assert "which a check found better" in recipe.status
    assert "proven optimal" not in done.out


def mixes_last(to_follow):
    """Mixes first, in truth: `best_of` above needs one from the start."""
    return lambda found, sources: to_follow(sorted(found, key=lambda rival: not rival.is_mix), sources)


@pytest.mark.parametrize("after", [0, 2])
def test_stopped(after, solve, here, monkeypatch):
    """The best of those that were evaluated is kept; before the first, the recipe as it was solved."""
    real = check_module.check

    def stopping(*arguments):
        for number, entry in enumerate(real(*arguments)):
            if number == after:
                raise KeyboardInterrupt
            yield entry

    monkeypatch.setattr(check_module, "check", stopping)
    done = ok(solve())
    recipe = json.loads((here / "recipe.json").read_text())
    assert recipe["sensitivity"] == ("structure" if after else "uniform")
    words = f"Stopped: {after} of " if after else "Stopped before a recipe was evaluated."
    assert words in done.err
    assert ("Evaluated in memory" in done.out) == (after > 0)


def entry(label, klds, *, mix=False, kept=True):
    recipe = type("R", (), {"size": 1_234_567, "bpw": 4.5})()
    return Checked(Rival(label, recipe, "a plan" if kept else None, is_mix=mix), np.array(klds, float))


def test_the_first_among_equals_and_none_that_breaks_a_rule():
    first, second = entry("a", [[1.0, 2.0]]), entry("b", [[2.0, 1.0]])
    best = entry("Q4_K_M", [[0.5, 0.5]], mix=True, kept=False)
    assert best_of([first, second, best]) is first
    never = entry("never", [[math.inf, 1.0]])
    assert best_of([never, second]) is second
    assert never.kld == (math.inf, 0.0)
    assert never.beside(second) == (math.inf, 0.0)
    text = check_text([first, best, never], first)
    assert "(-66.7 %" in text
    assert "In brackets" in text
    assert "above that of Q4_K_M" in text


@pytest.mark.parametrize(("shift", "words"), [(0.0, "within"), (1.0, "beyond")])
def test_noise_is_of_the_difference(shift, words):
    """Windows that differ widely say little of either recipe, and much of their difference."""
    rng = np.random.default_rng(0)
    easy = rng.lognormal(0, 2, (32, 1)) * np.ones((1, 8))
    ours = entry("structure", easy)
    theirs = entry("Q4_K_S", easy + shift + rng.normal(0, 0.1, easy.shape), mix=True)
    share, stderr = theirs.beside(ours)
    assert stderr * ours.kld[0] < ours.kld[1] / 10
    assert abs(share * ours.kld[0] - shift) < 0.1
    assert f"{words} the noise" in " ".join(check_text([ours, theirs], ours).split())
    assert check_text([ours], ours).endswith("Nothing else was to be compared.")


def test_from_a_state_alone(run, cheap):
    done = run("solve", "--state", cheap, "--budget", BUDGET, "--check", TEXT)
    assert done.status == 2
    assert "--check runs the model" in done.err


def test_after_polishing(solve, here):
    done = ok(solve("--polish", TEXT, "--polish-passes", 1))
    assert "of 1 exchanges kept" in done.out
    assert "Evaluated in memory" in done.out
    assert load_recipe(here / "recipe.json").size <= BUDGET
