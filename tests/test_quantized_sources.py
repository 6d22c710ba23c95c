"""Models that come in 4 bits: gpt-oss and Kimi K3 with experts in mxfp4, Kimi K2 in int4, which conversions store as
q4_0 (ggml-org/llama.cpp#17083). What is quantized stays, bit for bit, unasked; the rest is planned; llama.cpp runs it.
"""

from __future__ import annotations

import numpy as np
import pytest

import planner
from planner.errors import RecipeError
from planner.gguf import open_model
from planner.gguf.quantize import quantize_model
from tests.architectures import EXAMPLE, write_model

SOURCES = [("gpt-oss", "mxfp4"), ("deepseek2", "q4_0"), ("kimi-k3", "mxfp4")]


@pytest.mark.parametrize(("architecture", "kind"), SOURCES)
def test_from_a_source_in_four_bits_to_a_file_that_runs(architecture, kind, tmp_path):
    source, out, text = (tmp_path / name for name in ("source.gguf", "out.gguf", "text.txt"))
    text.write_text(EXAMPLE.with_name("evaluation.txt").read_text(encoding="utf-8")[:1500], encoding="utf-8")
    with open_model(write_model(architecture, tmp_path / "halves.gguf")) as halves:
        experts = {name for name in halves.by_name if name.endswith("_exps.weight")}
        quantize_model(halves, dict.fromkeys(experts, kind), None, source, file_type=1)
        rest = sum(tensor.nbytes for tensor in halves.tensors if tensor.format == "f16" and tensor.name not in experts)
    with planner.open_state(tmp_path / "s.planner", create=True) as state:
        state.measure(source, types="q4_0,q6_K,q8_0")
        plan = state.solve(budget=source.stat().st_size - rest * 4 // 10)
    chosen = plan.recipe.formats
    assert experts
    assert {chosen[name] for name in experts} == {kind}
    others = {fmt for name, fmt in chosen.items() if name in plan.sources and name not in experts}
    assert others & {"q6_K", "q8_0"}
    written = planner.quantize(source, plan.recipe, out)
    assert written.bytes == written.promised
    with open_model(source) as before, open_model(out) as after:
        for name in experts:
            np.testing.assert_array_equal(before.raw_rows(before[name]), after.raw_rows(after[name]))
        with pytest.raises(RecipeError, match="is quantized already"):
            quantize_model(before, {min(experts): "q8_0"}, None, tmp_path / "no.gguf", file_type=1)
    evaluated = planner.evaluate(source, out, text=text, ctx=64, chunks=4)
    assert 0 < evaluated.quants[0].statistics.kld.value < 1
