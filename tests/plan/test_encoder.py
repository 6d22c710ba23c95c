"""Encoders of images (mmproj) are planned and quantized without a run, and that is said."""

from __future__ import annotations

import ctypes
import os

import llama_cpp
import numpy as np
import pytest

from planner.formats.ggml import formats
from planner.gguf import open_model, why_left_alone
from planner.recipe import load_recipe
from tests.models import encoder

TYPES = ("--types", "q2_K,q3_K,q4_0,q4_K,q6_K,q8_0", "-t", 1)


@pytest.fixture
def tower(here):
    return encoder().write(here / "mmproj.gguf")


def chosen(here):
    """The types of what is planned."""
    return {choice.name: choice.format for choice in load_recipe(here / "recipe.json").tensors if not choice.left_alone}


def test_an_encoder_is_planned_and_written_as_promised(tower, here, run):
    assert run("inspect", tower).status == 0
    done = run("solve", tower, "--bpw", 8, *TYPES)
    assert done.status == 0, done.text
    assert "is not measured, but taken from the same roles in language models" in " ".join(done.err.split())
    assert "Encoder    no image or sound was read" in done.out
    recipe, types = load_recipe(here / "recipe.json"), chosen(here)
    assert recipe.sensitivity == "prior"
    assert {name.rpartition(".")[0] for name in types} == {
        f"v.blk.{block}.{role}"
        for block in range(2)
        for role in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down")
    }  # fmt: skip
    written = run("quantize", tower, "recipe.json", "out.gguf")
    assert written.status == 0, written.text
    assert "as promised" in written.out
    with open_model(tower) as before, open_model(here / "out.gguf") as after:
        for name, tensor in before.by_name.items():
            assert after[name].format == types.get(name, tensor.format)
            if name not in types:
                assert np.array_equal(before.raw_rows(tensor), after.raw_rows(after[name]))


def test_llama_cpp_writes_the_same_of_what_is_planned(tower, here, run):
    """llama.cpp takes such a file, and quantizes the projector too, that mtmd then could not transpose."""
    assert run("solve", tower, "--bpw", 16, "--pin", "blk=q8_0", *TYPES).status == 0
    assert run("quantize", tower, "recipe.json", "out.gguf").status == 0
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 1
    names = os.fsencode(tower), os.fsencode(here / "theirs.gguf")
    assert llama_cpp.llama_model_quantize(*names, ctypes.byref(parameters)) == 0
    with open_model(here / "out.gguf") as ours, open_model(here / "theirs.gguf") as theirs:
        differ = {
            name for name, tensor in ours.by_name.items()
            if not np.array_equal(ours.raw_rows(tensor), theirs.raw_rows(theirs[name]))
        }  # fmt: skip
        assert differ == {"mm.input_projection.weight"}
        assert theirs["mm.input_projection.weight"].format == "q8_0"


def test_exports_keep_what_llama_quantize_would_not(tower, run, here):
    assert run("solve", tower, "--bpw", 8, *TYPES).status == 0
    assert run("export", "recipe.json", "--to", "llama-quantize").status == 0
    lines = (here / "recipe.types.txt").read_text().splitlines()
    assert r"^mm\.input_projection\.weight$=f16" in lines
    assert len(lines) == len(chosen(here)) + 2  # the kernel for patches too


def test_four_bits_at_least_unless_less_is_asked_for(tower, here, run):
    def types(*words):
        done = run("solve", tower, *words)
        assert done.status == 0, done.text
        return set(chosen(here).values())

    least = run("solve", tower, "--bpw", 4.5, *TYPES)
    assert least.status == 1
    assert "is below the minimum" in least.err
    assert all(formats()[name].bpw >= 4 for name in types("--bpw", 6.9, *TYPES))
    assert types("--bpw", 6, "--max", "q3_K", *TYPES) <= {"q2_K", "q3_K"}
    assert types("--bpw", 6, "--types", "q2_K,q3_K", "-t", 1) <= {"q2_K", "q3_K"}
    assert "q2_K" in types("--bpw", 7, "--pin", "ffn_up=q2_K", *TYPES)


@pytest.mark.parametrize("command", ["evaluate", "imatrix", "sensitivity"])
def test_nothing_runs_an_encoder(command, tower, here, run):
    (here / "text.txt").write_text("some words")
    more = {"evaluate": (tower,), "imatrix": ("-o", "x.gguf"), "sensitivity": ()}[command]
    done = run(command, tower, *more, "--text", "text.txt")
    assert done.status == 1
    assert "a projector of images or sound" in " ".join(done.err.split())


@pytest.mark.parametrize(
    ("name", "shape", "kept"),
    [
        ("mm.0.weight", (1152, 4096), False),
        ("mm.0.weight", (2, 2, 1152, 4096), True),
        ("a.conv1d.1.weight", (3, 128, 1280), True),
        ("a.blk.0.conv_dw.weight", (32, 1024), True),
        ("a.blk.0.conv_pw1.weight", (1024, 2048), False),
        ("v.blk.0.ffn_up_exps.weight", (1024, 4096, 8), False),
        ("v.sam.blk.0.attn.pos_h.weight", (64, 127), True),
    ],
)
def test_what_mtmd_does_not_multiply_by_stays(name, shape, kept):
    assert (why_left_alone(name, shape, "clip") is not None) == kept
