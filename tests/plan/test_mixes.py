"""llama.cpp's mixes by our rules, against what the library says of the same file in a dry run."""

from __future__ import annotations

import ctypes
import os
import re

import numpy as np
import pytest

from planner.errors import UsageError
from planner.gguf import open_model, read_imatrix
from planner.measure import Settings
from planner.measure.inventory import take_inventory
from planner.plan.mixes import MIXES, mix_formats, mix_named
from tests import models

llama_cpp = pytest.importorskip("llama_cpp")

# "[   1/ 339]  output.weight - [ 1536, 151936, 1, 1], type = f16, size = 445.1 MiB -> 182.6 MiB (q6_K)"
LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*-> .*\((\S+)\)")


def llamas(path, mix, imatrix=None):
    """The types that llama-quantize would convert tensors to."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{mix}")
    parameters.nthread, parameters.dry_run = 1, True
    data = (llama_cpp.llama_model_imatrix_data * 2)()
    values = np.ones(1, np.float32)
    if imatrix:  # that there is one is all that the rules ask
        data[0].name, data[0].size = b"none", 1
        data[0].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = data
    log = []
    listen = llama_cpp.llama_log_callback(lambda _level, text, _data: log.append(text.decode("utf-8", "replace")))
    before, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    llama_cpp.llama_log_set(listen, None)
    try:
        failed = llama_cpp.llama_model_quantize(os.fsencode(path), os.fsencode(os.devnull), ctypes.byref(parameters))
    finally:
        llama_cpp.llama_log_set(before, user_data)
    assert not failed, "".join(log)
    return dict(match.groups() for match in map(LINE.match, "".join(log).splitlines()) if match)


def grouped(architecture, heads, kv_heads, blocks, *, inner=256, tied=False):
    """A model whose rows are as long as a block of 256, of any depth; small, so that it is made at once."""
    maker = models.Maker(architecture)
    models._sizes(maker, blocks, 256, heads, kv_heads)
    maker.pairs |= {"feed_forward_length": inner, "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": 96}
    maker.pairs["attention.layer_norm_epsilon"] = 1e-5
    maker.matrix("token_embd", 96, 256)
    for block in range(blocks):
        models._attention(maker, block, 256, heads, kv_heads, 256 // heads)
        models._feed_forward(maker, block, 256, inner)
    if not tied:
        maker.matrix("output", 96, 256)
    return maker


def mixture(experts, blocks=12):
    maker = grouped("llama", 4, 2, blocks)
    for name in [name for name in maker.arrays if ".ffn_" in name]:
        del maker.arrays[name]
    maker.pairs |= {"expert_count": experts, "expert_used_count": 2}
    for block in range(blocks):
        models._feed_forward(maker, block, 256, 256, "_exps", experts)
    return maker


def fused(kv_heads):
    maker = models.Maker("phi3")
    models._sizes(maker, 9, 256, 8, kv_heads)
    maker.pairs |= {
        "feed_forward_length": 256, "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": 32, "vocab_size": 96,
    }  # fmt: skip
    maker.matrix("token_embd", 96, 256)
    for block in range(9):
        maker.matrix(f"blk.{block}.attn_qkv", 256 + 2 * kv_heads * 32, 256)
        maker.matrix(f"blk.{block}.attn_output", 256, 256)
        maker.matrix(f"blk.{block}.ffn_up", 512, 256)
        maker.matrix(f"blk.{block}.ffn_down", 256, 256)
    maker.matrix("output", 96, 256)
    return maker


def with_keys(maker, **pairs):
    maker.pairs |= pairs
    return maker


MADE = {
    "own heads": lambda: grouped("llama", 4, 4, 17),
    "two share": lambda: grouped("llama", 4, 2, 33),
    "four share": lambda: grouped("llama", 4, 1, 20),
    "70B": lambda: grouped("llama", 4, 2, 80),
    "65B": lambda: grouped("llama", 4, 4, 80),
    "70B of Qwen": lambda: grouped("qwen2", 4, 4, 80),
    "tied": lambda: grouped("llama", 8, 2, 16, tied=True),
    "falcon": lambda: grouped("falcon", 4, 1, 33),
    "odd rows": lambda: grouped("llama", 4, 2, 16, inner=96),
    "8 experts": lambda: mixture(8),
    "4 experts": lambda: mixture(4, 16),
    "3 experts": lambda: mixture(3, 9),
    "fused": lambda: fused(8),
    "fused and shared": lambda: fused(2),
    "Gemma": lambda: with_keys(
        models.post_norm(),
        **{
            "feed_forward_length": 512,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "attention.sliding_window": 64,
        },
    ),
    "hybrid": lambda: with_keys(
        models.state_space(),
        **{
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 512,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 32,
            "feed_forward_length": 256,
            "attention.layer_norm_rms_epsilon": 1e-5,
        },
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixes")


def inventory_of(path, imatrix=None):
    with open_model(path) as model:
        return take_inventory(model, imatrix, Settings())


@pytest.mark.parametrize("name", MADE)
def test_types_are_those_of_llama_cpp(name, folder):
    path = MADE[name]().write(folder / f"{name}.gguf")
    known = inventory_of(path)
    kept = {key: value for key, value in known.metadata.items() if key != "head_groups"}
    without = known.model_copy(update={"metadata": kept})
    for with_imatrix in (False, True):
        digest = "0" * 16 if with_imatrix else None
        inventory = known.model_copy(update={"imatrix_digest": digest})
        for mix in MIXES:
            theirs = llamas(path, mix, with_imatrix)
            assert len(theirs) > 5
            assert mix_formats(inventory, mix) == theirs, mix
            if name != "hybrid":  # whose first block has no attention to count heads of
                older = without.model_copy(update={"imatrix_digest": digest})
                assert mix_formats(older, mix) == theirs, f"{mix}, by shapes"


def test_the_example(example):
    inventory = inventory_of(example.model, read_imatrix(example.sums))
    for mix in MIXES:
        assert mix_formats(inventory, mix) == llamas(example.model, mix, True), mix


def test_names(example):
    assert mix_named("q4_k_m") == "Q4_K_M"
    assert mix_named("q4_K") is None
    with pytest.raises(UsageError, match="not a mix"):
        mix_formats(inventory_of(example.model), "Q4_K_XL")
