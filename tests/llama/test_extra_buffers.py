"""Where weights go in llama.cpp's memory: what it packs for AMX, it crashes on (ggml-org/llama.cpp#20824)."""

from __future__ import annotations

import pytest

from planner.llama.engine import Engine
from planner.llama.library import llama

AMX = b"CPU : AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | REPACK = 1 | "
OTHERS = b"CPU : AVX512 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | REPACK = 1 | "


@pytest.mark.parametrize(
    ("built", "writable", "packed"),
    [(AMX, False, False), (AMX, True, False), (OTHERS, False, True), (OTHERS, True, False)],
)
def test_nothing_is_packed_for_amx(built, writable, packed, example, monkeypatch):
    asked = []
    load = llama().llama_model_load_from_file

    def loading(path, parameters):
        asked.append(parameters.use_extra_bufts)
        return load(path, parameters)

    monkeypatch.setattr(llama(), "llama_model_load_from_file", loading)
    monkeypatch.setattr(llama(), "llama_print_system_info", lambda: built)
    with Engine(example.model, context=16, threads=1, writable=writable):
        assert asked == [packed]
