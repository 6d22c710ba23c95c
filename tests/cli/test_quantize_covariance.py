"""`planner quantize --covariance`: files of refined codes, as large as promised, that say what they are."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import gguf
import numpy as np
import pytest

from planner import files
from planner.formats.ggml import dequantize_rows
from planner.formats.ggml.refine import Metric, refine_rows
from planner.gguf import conversion, open_model
from planner.gguf import quantize as quantizing
from planner.gguf.covariance import Covariances
from planner.gguf.provenance import RECIPE_KEY
from planner.recipe import load_recipe
from state.lock import open_locked
from tests.conftest import ok
from tests.models import dense, experts, made_up_covariances, write_imatrix

FEW = "q2_K,q3_K,q4_K,q4_0,iq4_nl,q5_1"


@pytest.fixture(params=[dense, experts])
def model(request, here):
    return request.param().write(here / "model.gguf")


@pytest.fixture
def planned(model, here, run):
    """A recipe of several types, and covariances for all but one tensor."""
    write_imatrix(model, here / "x.imatrix")
    ok(run("solve", model, "--imatrix", "x.imatrix", "--bpw", 4.4, "--types", FEW))
    return made_up_covariances(model, here / "cov.gguf", skip=["blk.1.attn_v.weight"])


def tensors(path):
    with open_model(path) as opened:
        return {tensor.name: (tensor.format, opened.raw_rows(tensor).tobytes()) for tensor in opened.tensors}


def test_the_same_bytes_hold_less_error(model, planned, here, run):
    ok(run("quantize", model, "recipe.json", "plain.gguf"))
    result = run("quantize", model, "recipe.json", "refined.gguf", "--covariance", planned, "-t", 1)
    assert "as promised" in ok(result).out
    assert "Not refined, as there are no covariances or the type cannot be:" in result.err
    assert "blk.1.attn_v.weight" in result.err
    assert (here / "refined.gguf").stat().st_size == (here / "plain.gguf").stat().st_size
    assert (here / "refined.gguf").stat().st_size == load_recipe(here / "recipe.json").size
    ok(run("quantize", model, "recipe.json", "again.gguf", "--covariance", planned, "-t", 4))
    assert (here / "again.gguf").read_bytes() == (here / "refined.gguf").read_bytes()
    plain, refined = tensors("plain.gguf"), tensors("refined.gguf")
    changed = 0
    with (
        open_model(model) as source, open_model("plain.gguf") as before, open_model("refined.gguf") as after,
        Covariances.open(planned) as covariances,
    ):  # fmt: skip
        for tensor in source.tensors:
            name = tensor.name
            assert refined[name][0] == plain[name][0]
            if not covariances.covers(tensor) or plain[name][0] in ("f32", "f16"):
                assert refined[name] == plain[name]
                continue
            changed += 1
            errors = []
            for file in (before, after):
                d = dequantize_rows(file.format(file[name]), file.raw_rows(file[name]), tensor.row_length)
                d = (d - source.rows(tensor)).reshape(tensor.matrices, -1, tensor.row_length).astype(np.float64)
                metrics = [Metric.of(covariances.matrix(tensor, matrix)).matrix for matrix in range(tensor.matrices)]
                errors.append(np.array([(own @ h * own).sum(axis=1) for own, h in zip(d, metrics, strict=True)]))
            assert (errors[1] <= errors[0]).all()
            assert errors[1].sum() < 0.95 * errors[0].sum(), name
    assert changed >= 7


def test_a_file_says_which_rounding_it_has(model, planned, here, run):
    ok(run("quantize", model, "recipe.json", "plain.gguf"))
    ok(run("quantize", model, "recipe.json", "refined.gguf", "--covariance", planned, "--shrinkage", 0.25))
    values = {}
    for name in ("plain.gguf", "refined.gguf"):
        fields = gguf.GGUFReader(here / name).fields
        values[name] = fields[RECIPE_KEY].contents()
        assert len(values[name]) == 64
    assert values["refined.gguf"].startswith(values["plain.gguf"][:32])
    assert "Rounding    ggml's codes\n" in ok(run("inspect", "plain.gguf")).out
    assert "Rounding" not in ok(run("inspect", model)).out
    with Covariances.open(planned) as covariances:
        digest = covariances.digest[:16]
    shown = f"codes refined against covariances {digest}, shrinkage 0.25"
    assert shown in " ".join(ok(run("inspect", "refined.gguf")).out.split())
    assert json.loads(ok(run("inspect", "refined.gguf", "--json")).out)["rounding"] == shown


def test_what_cannot_be(model, planned, here, run):
    for covariance, message in (
        ("x.imatrix", "an importance matrix without covariances"),
        (model, "not covariances"),
        ("none.gguf", "none.gguf"),
    ):
        result = run("quantize", model, "recipe.json", "out.gguf", "--covariance", covariance)
        assert (result.status, message in result.err) == (1, True), result.text
    result = run("quantize", model, "recipe.json", "out.gguf", "--shrinkage", 1)
    assert (result.status, "--shrinkage is of covariances" in result.err) == (2, True), result.text
    other = dense(width=512, inner=768).write(here / "other.gguf")
    strangers = made_up_covariances(other, here / "other.cov.gguf")
    result = run("quantize", model, "recipe.json", "out.gguf", "--covariance", strangers)
    assert (result.status, "of another model" in result.err) == (1, True), result.text
    assert not (here / "out.gguf").exists()


def test_numba_is_asked_for(model, planned, here, run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "planner.formats.ggml.refine.kernels", None)
    result = run("quantize", model, "recipe.json", "out.gguf", "--covariance", planned)
    assert (result.status, "pip install --upgrade numba" in result.err) == (1, True), result.text
    ok(run("quantize", model, "recipe.json", "out.gguf"))


def to_refine(maker, here, run):
    """Prepare a model to be quantized and refined into out.gguf; return the command."""
    model = maker.write(here / "model.gguf")
    write_imatrix(model, here / "x.imatrix")
    ok(run("solve", model, "--imatrix", "x.imatrix", "--bpw", 4.6, "--types", "iq4_nl,q4_K"))
    covariances = made_up_covariances(model, here / "cov.gguf")
    return "quantize", model, "recipe.json", "out.gguf", "--covariance", covariances, "-t", 1


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for children")
def test_an_interruption_keeps_what_is_refined(here, run, start):
    command = to_refine(dense(width=512, inner=2048, vocabulary=512, blocks=8), here, run)
    before = set(here.iterdir())
    process = start(*command, cwd=here)
    deadline = time.monotonic() + 120
    while set(here.iterdir()) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    (kept,) = set(here.iterdir()) - before
    assert re.fullmatch(r"out\.gguf\.[0-9a-f]{16}\.progress", kept.name)
    # a terminal's lines
    assert f"What is refined is kept in {kept.name}" in " ".join(err.split())
    ok(run(*command[:3], "other.gguf", *command[4:]))
    assert kept.exists()  # of a file of another name
    ok(run(*command))
    assert not kept.exists()
    assert (here / "out.gguf").read_bytes() == (here / "other.gguf").read_bytes()


def test_refining_goes_on_where_it_was_stopped(here, run, monkeypatch):
    """Whatever was stopped, and wherever: what was kept is not refined again, and the files are the same."""
    command = to_refine(dense(width=256, inner=1024, vocabulary=256, blocks=4), here, run)
    monkeypatch.setattr(conversion, "_CHUNK", 1 << 12)
    monkeypatch.setattr(files, "_SYNCED", 1 << 12)
    refined, stops = [], [0]

    def counted(*arguments):
        refined.append(1)
        if len(refined) == stops[0]:
            raise KeyboardInterrupt
        return refine_rows(*arguments)

    monkeypatch.setattr(conversion, "refine_rows", counted)
    split = [*command, "--max-shard-size", "500kB"]
    for arguments in (command, split):
        ok(run(*arguments[:3], "whole.gguf", *arguments[4:]))
        whole = len(refined)
        for stops[0] in (whole // 3, whole // 3, whole // 4):
            refined.clear()
            stopped = run(*arguments)
            assert stopped.status == 130
            assert "What is refined is kept in" in stopped.err
            assert not list(here.glob("out*.gguf"))
        stops[0] = 0
        refined.clear()
        ok(run(*arguments))
        assert 0 < len(refined) < whole / 2, "most of it was kept"
        for path in here.glob("whole*"):
            same = path.with_name(path.name.replace("whole", "out"))
            assert same.read_bytes() == path.read_bytes()
            path.unlink()
            same.unlink()
        assert not list(here.glob("*.progress"))


def test_what_was_kept_of_another_file_is_not_gone_on_with(here, run, monkeypatch):
    """Neither of another recipe, nor of one that somebody else is writing."""
    command = to_refine(dense(width=256, inner=1024, vocabulary=256, blocks=4), here, run)
    ok(run(*command[:3], "whole.gguf", *command[4:]))
    progress = here / "out.gguf.0123456789abcdef.progress"
    held = open_locked(progress, os.O_CREAT)
    assert held is not None
    with monkeypatch.context() as patched:
        patched.setattr(quantizing, "_key", lambda *_: "0123456789abcdef")
        refused = run(*command)
    assert refused.status == 1
    assert "being written by another run" in refused.err
    ok(run(*command))  # under its own key, it leaves the other alone as long as that is in use
    assert progress.exists()
    os.close(held)
    ok(run(*command, "--force"))
    assert not progress.exists()
    assert (here / "out.gguf").read_bytes() == (here / "whole.gguf").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_at_any_time_it_writes_the_same_file_in_the_end(here, run, start):
    command = to_refine(dense(width=256, inner=1024, vocabulary=256, blocks=4), here, run)
    began = time.monotonic()
    ok(run(*command[:3], "whole.gguf", *command[4:]))
    taken = time.monotonic() - began
    for share in np.linspace(0.2, 2, 4):  # of what it takes where everything is loaded already
        process = start(*command, cwd=here)
        time.sleep(taken * share)
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was done already
            break
        assert not (here / "out.gguf").exists()
    ok(run(*command, "--force"))
    assert (here / "out.gguf").read_bytes() == (here / "whole.gguf").read_bytes()
