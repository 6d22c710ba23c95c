"""`planner sensitivity` on the example model, and what `solve` makes of it."""

from __future__ import annotations

import json
import math
import re
import signal
import time

import pytest

from planner.errors import ModelError, StateFileError
from planner.gguf import open_model, read_imatrix
from planner.llama.passes.calibrate import calibration_recipes, remember
from planner.llama.passes.kld import mean_kld
from planner.llama.passes.perturb import open_perturber
from planner.llama.passes.trials import Trials, plan_trials
from planner.llama.text import spread_windows
from planner.plan.findings import Findings
from planner.recipe import load_recipe, save_recipe
from state import Store
from tests.conftest import EXAMPLES
from tests.models import CHEAP, dense, made_up_covariances

TEXT = EXAMPLES / "calibration.txt"
SHORT = ("--tokens", 1024, "-c", 128, "--types", CHEAP, "-t", 1)
AFFORDABLE = 512


def sensitivity(run, example, state, *more):
    return run("sensitivity", example.model, "--imatrix", example.sums, "--state", state, "--text", TEXT, *SHORT, *more)


def test_passes_are_measured_kept_and_used(run, example, cheap, here):
    found = sensitivity(run, example, cheap, "--passes", 5)
    assert found.status == 0, found.text
    assert "5 passes of" in found.err
    assert found.out.count("bpw: KLD") == 3
    with Store.open(cheap, read_only=True) as store:
        passes = store.passes()
    assert len(passes) == 8
    assert all(0 < entry.kld < 0.5 and entry.stderr > 0 for entry in passes)

    again = sensitivity(run, example, cheap, "--passes", 5)
    assert "5 passes were there already" in again.err
    with Store.open(cheap, read_only=True) as store:
        assert store.passes() == passes

    solved = run("solve", "--state", cheap, "--bpw", "4.4", "-o", "recipe.json")
    assert solved.status == 0, solved.text
    assert "by measured" in solved.out
    assert "KLD" in solved.out
    recipe = json.loads((here / "recipe.json").read_text())
    assert recipe["sensitivity"] == "measured"
    evaluated = next(entry.kld for entry in passes if entry.label.startswith("4.4"))
    assert 0.5 < recipe["loss"] / evaluated < 2  # in nats
    by_structure = run("solve", "--state", cheap, "--bpw", "4.4", "--sensitivity", "structure", "-o", "other.json")
    assert "expected" not in by_structure.out


def test_without_passes_measured_sensitivities_are_an_error(run, cheap, here):
    found = run("solve", "--state", cheap, "--bpw", "4.4", "--sensitivity", "measured")
    assert found.status == 2
    assert "planner sensitivity MODEL --text FILE" in found.err


def test_passes_of_another_imatrix_do_not_count(run, example, cheap, here):
    assert sensitivity(run, example, cheap, "--passes", 2, "--no-calibrate").status == 0
    other = run(
        "solve", example.model, "--imatrix", example.plain, "--state", cheap, "--bpw", 5, "--types", "q8_0,q4_0"
    )
    assert other.status == 0, other.text
    assert "by structure+prior" in other.out


def test_a_text_that_is_too_short(run, example, cheap, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time.")
    found = run("sensitivity", example.model, "--imatrix", example.sums, "--state", cheap, "--text", short, *SHORT)
    assert found.status == 2
    assert "has 6 tokens, and 1,024 are needed: 8 windows of 128." in " ".join(found.err.split())


def test_designs(cheap):
    with Store.open(cheap, read_only=True) as store:
        findings = Findings.read(store)
    alone = plan_trials(findings, None, None, affordable=AFFORDABLE)
    assert len(alone) == 58
    assert all(len(trial.changes) == 1 for trial in alone)
    groups = plan_trials(findings, None, None, affordable=10)
    assert [trial.label for trial in groups] == [
        trial.label for trial in plan_trials(findings, "factored", None, affordable=AFFORDABLE)
    ]
    assert len(groups) == 8 + 7 + 2
    assert len(plan_trials(findings, None, 20, affordable=AFFORDABLE)) == 20


def test_a_pass_is_repeatable_and_both_thread_counts_agree(example, cheap, monkeypatch):
    imatrix, klds = read_imatrix(example.sums), []
    with Store.open(cheap) as store, open_model(example.model) as model:
        trials = plan_trials(Findings.read(store), None, None, affordable=AFFORDABLE)[7:9]
        for threads in (1, 2, 2):
            with open_perturber(example.model, model, imatrix, context=64, threads=threads, gpu_layers=0) as changer:
                (windows,) = spread_windows(changer.engine, TEXT, 64, 512)
                with Trials.start(store, changer, windows) as run:
                    monkeypatch.setattr(store, "add_passes", lambda entries: None)  # else it is there the next time
                    klds.append([entry.kld for entry in run.run(trials)])
    assert klds[1] == klds[2]
    assert klds[0] == pytest.approx(klds[1], rel=0.02)


def test_calibration_covers_the_usual_sizes(cheap):
    with Store.open(cheap, read_only=True) as store:
        sizes = [recipe.bpw for recipe in calibration_recipes(Findings.read(store))]
    assert sizes == pytest.approx([3.0, 4.42, 6.5], abs=0.02)


def test_errors_of_means_are_between_windows():
    import numpy as np

    values = np.repeat(np.arange(8.0)[:, None], 100, axis=1)
    mean, error = mean_kld(values)
    assert mean == 3.5
    assert error == pytest.approx(np.arange(8.0).std(ddof=1) / 8**0.5)
    assert mean_kld(values[:2])[1] < error / 5  # few windows: between tokens


def test_interrupted_passes_go_on(start, run, example, cheap, here):
    arguments = ["sensitivity", example.model, "--imatrix", example.sums, "--state", cheap, "--text", TEXT, *SHORT]
    process = start(*arguments, "--no-calibrate", "--passes", 6, cwd=here)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with Store.open(cheap, read_only=True) as store:
            if store.passes():
                break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    with Store.open(cheap, read_only=True) as store:
        before = store.passes()
    if process.returncode == 130:  # else it was done already
        assert "weights were put back" in errors
        assert "The same command goes on" in errors
    found = sensitivity(run, example, cheap, "--passes", 6, "--no-calibrate")
    assert found.status == 0, found.text
    with Store.open(cheap, read_only=True) as store:
        assert store.passes()[: len(before)] == before
        assert len(store.passes()) == 6


def test_evaluations_calibrate_predictions(run, example, cheap, here):
    assert sensitivity(run, example, cheap, "--passes", 2, "--no-calibrate").status == 0

    def solved():
        found = run("solve", "--state", cheap, "--bpw", "5", "-o", "recipe.json")
        assert found.status == 0, found.text
        (line,) = (line for line in found.out.splitlines() if line.startswith("KLD"))
        return [float(word) for word in re.findall(r"[\d.]+(?:e-\d+)?", line)]

    doubtful = solved()
    assert run("quantize", example.model, "recipe.json", "out.gguf").status == 0
    evaluate = ("evaluate", example.model, "out.gguf", "--text", TEXT, "-c", 64, "--chunks", 24, "-t", 1)
    found = run(*evaluate, "--json", "--calibrate", cheap)
    assert found.status == 0, found.text
    actual = json.loads(found.out)["files"][-1]["kld"]["value"]
    kld, low, high = solved()
    assert high / low < doubtful[2] / doubtful[1]
    assert abs(math.log(kld / actual)) <= abs(math.log(doubtful[0] / actual)) + 1e-9
    assert run(*evaluate, "--calibrate", cheap).status == 0  # once
    with Store.open(cheap, read_only=True) as store:
        assert len(store.passes()) == 3


def test_refined_codes_have_passes_and_evaluations_of_their_own(run, example, cheap, here):
    made_up_covariances(example.model, here / "cov.gguf")
    measuring = "--covariance", "cov.gguf", "--state", cheap
    passes = "--text", TEXT, *SHORT, "--passes", 2, "--no-calibrate"
    found = run("sensitivity", example.model, *measuring, *passes)
    assert found.status == 0, found.text
    with Store.open(cheap, read_only=True) as store:
        refined = {entry.subject for entry in store.passes()}
    assert run("solve", "--state", cheap, "--bpw", "5", "-o", "recipe.json").status == 0
    assert run("quantize", example.model, "recipe.json", "refined.gguf").status == 0
    plain = load_recipe(here / "recipe.json").model_copy(update={"covariance": None})
    save_recipe(plain, here / "plain.json")
    assert run("quantize", example.model, "plain.json", "plain.gguf").status == 0
    files = "refined.gguf", "plain.gguf"
    found = run("evaluate", example.model, *files, "--text", TEXT, "-c", 64, "--chunks", 4, "--calibrate", cheap)
    assert found.status == 0, found.text
    message = " ".join(found.err.split())
    assert "plain.gguf is not kept in" in message
    assert "refined.gguf is not kept" not in message
    with Store.open(cheap, read_only=True) as store:
        assert [entry.label for entry in store.passes() if not entry.errors] == ["refined.gguf"]
    # passes of codes that are not refined are others
    ordinary = "--imatrix", "cov.gguf", "--state", cheap
    assert run("sensitivity", example.model, *ordinary, *passes).status == 0
    with Store.open(cheap, read_only=True) as store:
        assert len({entry.subject for entry in store.passes()} - refined) == 1


def test_calibrating_needs_a_text_and_the_state_of_the_model(run, example, cheap, here, tmp_path):
    assert run("evaluate", example.model, example.model, "--winogrande", "x.csv", "--calibrate", cheap).status == 2
    other = tmp_path / "other.gguf"
    dense().write(other)
    with Store.open(cheap) as store, pytest.raises(ModelError, match="has not the tensors of"):
        remember(store, other, None, None)
    with Store.open(tmp_path / "new.planner", create=True) as store, pytest.raises(StateFileError, match="no finished"):
        remember(store, other, None, None)


def test_minutes_run_all_that_tells_if_there_is_time(run, example, cheap):
    arguments = ["--imatrix", example.sums, "--state", cheap, "--text", TEXT, "-c", 128, "--types", CHEAP]
    found = run("sensitivity", example.model, *arguments, "--tokens", 128, "--minutes", 60)
    assert found.status == 0, found.err
    with Store.open(cheap, read_only=True) as store:
        passes, wanted = store.passes(), plan_trials(Findings.read(store), None, AFFORDABLE, affordable=AFFORDABLE)
    assert len(passes) == len(wanted) > 58
    assert all(entry.errors for entry in passes)  # no file was made for calibration
    assert {entry.label for entry in passes[:2]} == {
        "output.weight",
        "token_embd.weight",
    }  # no other pass tells of them
    assert any(len(entry.errors) > 1 for entry in passes[2:6])
    assert "recipes lose less than those made without passes: " in " ".join(found.out.split())


def test_a_deadline_that_is_past_runs_nothing(example, cheap):
    imatrix = read_imatrix(example.sums)
    with Store.open(cheap) as store, open_model(example.model) as model:
        trials = plan_trials(Findings.read(store), None, 4, affordable=AFFORDABLE)
        with open_perturber(example.model, model, imatrix, context=64, threads=1, gpu_layers=0) as changer:
            (windows,) = spread_windows(changer.engine, TEXT, 64, 128)
            with Trials.start(store, changer, windows) as run:
                assert not list(run.run(trials, time.monotonic()))
                assert len(list(run.run(trials, time.monotonic() + 600))) == 4


def test_minutes_exclude_passes(run, example):
    found = run("sensitivity", example.model, "--text", TEXT, "--minutes", 1, "--passes", 3)
    assert found.status == 2
    assert "--design, --passes and --minutes exclude each other." in found.err
