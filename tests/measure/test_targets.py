"""Models that are quantized in part, imatrix files for other forms of attention, and what is no language model."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from planner.gguf import open_model
from planner.recipe import load_recipe
from tests.models import dense, experts, latent, write_imatrix

MXFP4, BF16, Q8_0 = (getattr(gguf.GGMLQuantizationType, name) for name in ("MXFP4", "BF16", "Q8_0"))
TYPES = ("--types", "q4_0,q8_0,q4_K", "-t", 1)


def store(maker, find, kind):
    """Have tensors whose name contains `find` in another type."""
    for name in [name for name in maker.arrays if find in name]:
        maker.arrays[name] = gguf.quants.quantize(maker.arrays[name].astype(np.float32), kind)
        maker.kinds[name] = kind
    return maker


@pytest.fixture
def partly(here):
    """gpt-oss as it is published: experts in mxfp4."""
    return store(experts(), "_exps.", MXFP4).write(here / "model.gguf")


def test_what_is_quantized_already_stays(partly, here, run):
    done = run("solve", partly, "--bpw", 6, *TYPES)
    assert done.status == 0, done.text
    assert "stay as they are (6 in mxfp4)" in " ".join(done.err.split())
    assert "--allow-requantize" in done.err
    formats = load_recipe(here / "recipe.json").formats
    assert {fmt for name, fmt in formats.items() if "_exps." in name} == {"mxfp4"}
    assert {fmt for name, fmt in formats.items() if "attn_q.w" in name} <= {"q4_0", "q8_0", "q4_K"}
    assert run("quantize", partly, "recipe.json", "out.gguf").status == 0
    with open_model(partly) as before, open_model(here / "out.gguf") as after:
        for name, tensor in before.by_name.items():
            if "_exps." in name:
                assert np.array_equal(before.raw_rows(tensor), after.raw_rows(after[name]))
    assert run("export", "recipe.json", "--to", "llama-quantize").status == 0
    assert r"^blk\.0\.ffn_up_exps\.weight$=mxfp4" in (here / "recipe.types.txt").read_text()


def test_pins_and_bounds_of_what_is_quantized_already(partly, here, run):
    assert run("solve", partly, "--bpw", 6, "--pin", "exps=mxfp4", *TYPES).status == 0
    assert run("solve", partly, "--bpw", 7, "--min", "q8_0", *TYPES).status == 0  # speaks of what can be chosen
    named = run("solve", partly, "--bpw", 9, "--min", "exps=q8_0", *TYPES)
    assert named.status == 2
    assert "No format of blk.0.ffn_gate_exps.weight satisfies exps=q8_0" in " ".join(named.err.split())
    pinned = run("solve", partly, "--bpw", 6, "--pin", "exps=q8_0", *TYPES)
    assert pinned.status == 1
    assert "--allow-requantize" in pinned.err


def test_requantizing_is_asked_for_and_can_be_taken_back(partly, here, run):
    assert run("solve", partly, "--bpw", 9, "--pin", "exps=q8_0", "--allow-requantize", *TYPES).status == 0
    assert "q8_0" in {fmt for name, fmt in load_recipe(here / "recipe.json").formats.items() if "_exps." in name}
    assert run("quantize", partly, "recipe.json", "out.gguf").status == 1
    assert run("quantize", partly, "recipe.json", "out.gguf", "--allow-requantize").status == 0
    # what was measured then is not offered to those who did not ask for it
    assert run("solve", partly, "--bpw", 7, *TYPES).status == 0
    formats = load_recipe(here / "recipe.json").formats
    assert {fmt for name, fmt in formats.items() if "_exps." in name} == {"mxfp4"}


def test_a_model_that_is_quantized_throughout_is_refused(here, run):
    """Also where a few tensors are not, and can be nothing else."""
    model = store(dense(), ".", Q8_0)
    for name, array in dense().arrays.items():
        if array.ndim == 1:
            model.arrays[name] = array
            del model.kinds[name]
    model.matrix("blk.0.odd", 8, 72)
    done = run("measure", model.write(here / "model.gguf"), "--types", "q4_K,q8_0")
    assert done.status == 1
    assert "quantized already" in done.err


def test_an_imatrix_for_the_other_form_of_latent_attention(here, run):
    """`attn_k_b` and `attn_v_b` as matrices of heads stacked, or as one: of other sizes, and of no other model."""
    path = latent().write(here / "model.gguf")
    other = latent()
    other.matrix("blk.0.attn_k_b", 128, 64 + 32)
    other.matrix("blk.0.attn_kv_b", 128, 64)
    del other.arrays["blk.0.attn_v_b.weight"]
    matrix = write_imatrix(other.write(here / "other.gguf"), here / "x.imatrix.gguf")
    done = run("solve", path, "--imatrix", matrix, "--bpw", 6, *TYPES)
    assert done.status == 0, done.text
    note = "nothing for blk.0.attn_v_b.weight, blk.0.attn_k_b.weight: such tensors go without"
    assert note in " ".join(done.err.split())
    assert run("quantize", path, "recipe.json", "out.gguf").status == 0
    wrong = latent()
    wrong.matrix("blk.0.ffn_down", 256, 512)
    matrix = write_imatrix(wrong.write(here / "wrong.gguf"), here / "y.imatrix.gguf")
    refused = run("solve", path, "--imatrix", matrix, "--bpw", 6, *TYPES)
    assert refused.status == 1
    assert "imatrix of another model: blk.0.ffn_down.weight" in " ".join(refused.err.split())


def test_an_imatrix_of_fused_attention(here, run):
    path = dense().write(here / "model.gguf")
    other = dense()
    for block in range(2):
        for part in "qkv":
            del other.arrays[f"blk.{block}.attn_{part}.weight"]
        other.matrix(f"blk.{block}.attn_qkv", 512, 256)
    matrix = write_imatrix(other.write(here / "other.gguf"), here / "x.imatrix.gguf")
    done = run("solve", path, "--imatrix", matrix, "--bpw", 6, *TYPES)
    assert done.status == 0, done.text
    assert "blk.0.attn_v.weight and 3 more: such tensors go without" in " ".join(done.err.split())
