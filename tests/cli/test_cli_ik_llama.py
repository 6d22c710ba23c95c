"""`--family ik_llama` from measuring to the file, with ik_llama.cpp's library; what is said of such files without."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planner.formats.ggml import formats, quantize_rows
from planner.gguf import open_model, read_imatrix
from tests.conftest import forget_types, ok

TYPES = "iq2_k,iq3_k,iq4_ks,iq4_k,iq5_ks,q4_0,q8_0"


@pytest.fixture
def made(run, example, tmp_path, monkeypatch, ik_library):
    """A folder with a state, a recipe of 4.2 bpw and its file."""
    monkeypatch.chdir(tmp_path)
    family = ("--family", "ik_llama", "--types", TYPES)
    ok(run("measure", example.model, "--imatrix", example.sums, *family, "--state", "s.planner", "--tolerance", 0.3))
    ok(run("solve", "--state", "s.planner", *family, "--bpw", 4.2, "-o", "r.json"))
    ok(run("quantize", example.model, "r.json", "out.gguf"))
    return tmp_path


def test_from_measuring_to_the_file(made, run, example):
    recipe = json.loads((made / "r.json").read_text())
    assert recipe["family"] == "ik_llama"
    used = {entry["format"] for entry in recipe["tensors"]}
    assert used & {"iq3_k", "iq4_ks", "iq4_k", "iq5_ks"}
    assert (made / "out.gguf").stat().st_size == recipe["size"]
    matrix = read_imatrix(example.sums)
    with open_model(made / "out.gguf") as out, open_model(example.model) as source:
        assert {tensor.name: tensor.format for tensor in out.tensors} == {
            entry["name"]: entry["format"] for entry in recipe["tensors"]
        }
        for tensor in out.tensors[:12]:
            if tensor.format.startswith("iq"):
                weights = matrix.weights(source[tensor.name])
                rows = source.rows(source[tensor.name], 0, 4)
                kernel = quantize_rows(formats()[tensor.format], rows, None if weights is None else weights[0])
                assert np.array_equal(out.raw_rows(tensor, 0, 4), kernel)
    seen = ok(run("inspect", "out.gguf"))
    assert "iq4_k" in seen.out

    ok(run("export", "r.json", "--to", "ik_llama", "--compact"))
    ok(run("import", "r.custom-q.txt", "--model", example.model, "--imatrix", example.sums, "-o", "back.json"))
    assert "All 75 tensors have the same types." in ok(run("diff", "r.json", "back.json")).out
    assert "All 75 tensors have the same types." in ok(run("diff", "r.json", "out.gguf")).out
    ok(run("import", "out.gguf", "--model", example.model, "-o", "own.json"))
    assert json.loads((made / "own.json").read_text())["family"] == "ik_llama"

    # what ggml has as well is measured once for both families; what it has not is no choice of llama.cpp's
    common = ("measure", example.model, "--state", "s.planner", "--tolerance", 0.3, "--types")
    assert "0 of them new" in ok(run(*common, "q4_0,q8_0")).out
    refused = run(*common, "iq4_k")
    assert refused.status == 2
    assert "--family ik_llama" in refused.err


def test_llama_cpp_runs_the_recipe_and_not_the_file(made, run, example):
    pytest.importorskip("llama_cpp")
    text = ("--text", example.model.parent / "evaluation.txt", "--chunks", 1, "-t", 2)
    assert "r.json" in ok(run("evaluate", example.model, "r.json", *text)).out
    refused = run("evaluate", example.model, "out.gguf", *text)
    assert refused.status == 1
    assert "only ik_llama.cpp has its type" in " ".join(refused.err.split())


def test_without_the_library_files_are_refused_and_messages_say_what_to_set(made, run, monkeypatch):
    monkeypatch.delenv("PLANNER_GGML_IK")
    forget_types()
    for command in (("inspect", "out.gguf"), ("export", "r.json", "--to", "ik_llama")):
        refused = run(*command)
        assert refused.status == 1
        assert "PLANNER_GGML_IK" in refused.err
    kept = ok(run("solve", "--state", "s.planner", "--types", "q4_0,q8_0", "--bpw", 6))  # of measurements for ggml
    assert "File" in kept.out
